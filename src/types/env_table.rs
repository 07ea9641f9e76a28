//! The table of environment variables: all that the library knows about each.

use super::value::{boolean, whole};
use super::{Compute, Config, DsinkReduce, HostStage, KernelChoice};

/// What values a variable takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0 or 1, and words for them.
    Boolean,
    /// A whole number between two others, both included.
    Whole(i64, i64),
    /// One of the words listed.
    OneOf(&'static str),
    /// Anything.
    Text,
    /// Text of this form.
    Form(&'static str),
}

impl Kind {
    /// The kind's name in the C API.
    pub const fn name(self) -> &'static std::ffi::CStr {
        match self {
            Kind::Boolean => c"boolean",
            Kind::Whole(..) => c"integer",
            Kind::OneOf(_) => c"word",
            Kind::Text | Kind::Form(_) => c"text",
        }
    }

    /// What is accepted, for messages and people.
    pub fn accepts(self) -> String {
        match self {
            Kind::Boolean => "0 or 1 (also false, true, off, on, no, yes)".to_owned(),
            Kind::Whole(least, most) => format!("a whole number, {least} to {most}"),
            Kind::OneOf(words) | Kind::Form(words) => words.to_owned(),
            Kind::Text => "any text".to_owned(),
        }
    }
}

/// When a variable acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Acts {
    /// When the library or a kernel is compiled.
    Build = 0,
    /// When a key is created, through its config.
    Key = 1,
    /// In calls.
    Run = 2,
}

/// What a variable does here.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// Sets a field of `Config`; the function gives `None` when the text does not parse.
    Sets(fn(&mut Config, &str) -> Option<()>),
    /// Sets a field of `KernelBuild`.
    Builds,
    /// Tells magi_comm_create_from_env who this process is.
    Launches,
    /// Accepted without effect, for this reason.
    None(&'static str),
}

/// One environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What values it takes.
    pub kind: Kind,
    /// What holds when it is not set; empty where that means something of its own.
    pub default: &'static str,
    /// When it acts.
    pub acts: Acts,
    /// What it does, where it has an effect.
    pub meaning: &'static str,
    /// What it does here.
    pub effect: Effect,
}

fn dsink_reduce(text: &str) -> Option<DsinkReduce> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Some(DsinkReduce::None),
        "sum" => Some(DsinkReduce::Sum),
        "avg" => Some(DsinkReduce::Avg),
        _ => None,
    }
}

/// Multiprocessors, or nothing for the default.
fn margin(text: &str) -> Option<Option<i32>> {
    if text.is_empty() {
        return Some(None);
    }
    whole(text, 0, Compute::MAX_SM_MARGIN.into()).map(|n| Some(n as i32))
}

/// Most keys in a cache and most chunks a rank, as `Config::validate` has them.
const _: () = assert!(Config::MAX_CACHE_SIZE == 1_000_000 && Config::MAX_MIN_CHUNKS_PER_RANK == 4096);

/// A variable without effect.
const fn idle(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    acts: Acts,
    meaning: &'static str,
    why: &'static str,
) -> Variable {
    Variable {
        name,
        kind,
        default,
        acts,
        meaning,
        effect: Effect::None(why),
    }
}

/// A variable that says how kernels are compiled.
const fn building(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        kind,
        default,
        acts: Acts::Build,
        meaning,
        effect: Effect::Builds,
    }
}

/// A variable that sets a field of `Config`.
const fn acting(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
    set: fn(&mut Config, &str) -> Option<()>,
) -> Variable {
    Variable {
        name,
        kind,
        default,
        acts: Acts::Key,
        meaning,
        effect: Effect::Sets(set),
    }
}

/// A variable of a launcher.
const fn launching(name: &'static str, kind: Kind, meaning: &'static str) -> Variable {
    Variable {
        name,
        kind,
        default: "",
        acts: Acts::Run,
        meaning,
        effect: Effect::Launches,
    }
}

/// Numbers that launchers give.
const COUNT: Kind = Kind::Whole(0, u32::MAX as i64);

/// Every variable that has a meaning in this or a later version, those that act first.
pub const TABLE: &[Variable] = &[
    acting(
        "MAGI_ATTENTION_BACKWARD_HIGH_PRECISION_REDUCE",
        Kind::Boolean,
        "0",
        "Partial dk and dv (and dq, where queries travel) travel in the accumulator type (f64 for f64, else f32) instead of the input dtype. They are added in it either way. Field backward_high_precision_reduce of magi_config.",
        |config, text| {
            config.backward_high_precision_reduce = boolean(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_DSINK_ALL_REDUCE_OP",
        Kind::OneOf("none, sum or avg"),
        "none",
        "What backward does across ranks with the gradient of a sink that all queries share. Field dsink_reduce of magi_config.",
        |config, text| {
            config.dsink_reduce = dsink_reduce(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_DIST_ATTN_RUNTIME_DICT_SIZE",
        Kind::Whole(0, 1_000_000),
        "100",
        "Keys that a communicator keeps for equal requests, least recently used first out; 0 keeps none. Field cache_size of magi_config.",
        |config, text| {
            config.cache_size = whole(text, 0, 1_000_000)? as usize;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_HIERARCHICAL_COMM",
        Kind::Boolean,
        "0",
        "Two-level group collectives, of keys and of group plans: each row crosses to a host once and fans out there; needs magi_comm_set_mesh. Field hierarchical_comm of magi_config.",
        |config, text| {
            config.hierarchical_comm = boolean(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_QO_COMM",
        Kind::Boolean,
        "0",
        "Queries may travel to keys, and their outputs back, where that moves fewer bytes than keys to queries. Not together with MAGI_ATTENTION_HIERARCHICAL_COMM. Field qo_comm of magi_config.",
        |config, text| {
            config.qo_comm = boolean(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_FORWARD_HIGH_PRECISION_REDUCE",
        Kind::Boolean,
        "0",
        "Where queries travel, partial outputs go home in the accumulator type instead of the input dtype. Field forward_high_precision_reduce of magi_config.",
        |config, text| {
            config.forward_high_precision_reduce = boolean(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_SANITY_CHECK",
        Kind::Boolean,
        "0",
        "Verify every plan when it is made, and that inputs hold no NaN. Field sanity_check of magi_config.",
        |config, text| {
            config.sanity_check = boolean(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_MIN_CHUNKS_PER_RANK",
        Kind::Whole(1, 4096),
        "8",
        "With a chunk size of 0: at least so many chunks for each rank. Field min_chunks_per_rank of magi_config.",
        |config, text| {
            config.min_chunks_per_rank = whole(text, 1, 4096)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_FFA_FORWARD_SM_MARGIN",
        Kind::Whole(0, 1024),
        "",
        "Multiprocessors that the forward kernel leaves to communication in stages that overlap it; never in calls on one device. Unset: none beside one exchange, which is launched first, and 8 where exchanges follow each other. Field forward_sm_margin of magi_config.",
        |config, text| {
            config.compute.forward_sm_margin = margin(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_FFA_BACKWARD_SM_MARGIN",
        Kind::Whole(0, 1024),
        "",
        "Multiprocessors that the backward kernel leaves to communication in stages that overlap it; never in calls on one device. Unset: none beside one exchange, which is launched first, and 8 where exchanges follow each other. Field backward_sm_margin of magi_config.",
        |config, text| {
            config.compute.backward_sm_margin = margin(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_SDPA_BACKEND",
        Kind::Boolean,
        "0",
        "Textbook attention instead of the fast kernels of a CUDA device, in f16, bf16, f32 and f64. Calls on one device have options.backend instead. Field backend of magi_config.",
        |config, text| {
            if boolean(text)? {
                config.compute.kernels = KernelChoice::Sdpa;
            }
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_KERNEL_BACKEND",
        Kind::OneOf("ffa or sdpa"),
        "ffa",
        "Which kernels compute attention on CUDA devices: ffa, the fast ones where they can, or sdpa, as MAGI_ATTENTION_SDPA_BACKEND, which counts too. Field backend of magi_config.",
        |config, text| match text {
            "ffa" => Some(()),
            "sdpa" => {
                config.compute.kernels = KernelChoice::Sdpa;
                Some(())
            }
            _ => None,
        },
    ),
    acting(
        "MAGI_ATTENTION_DETERMINISTIC_MODE",
        Kind::Boolean,
        "0",
        "The same bits on every run. On the CPU, in forward, in reductions between ranks and with textbook kernels that is so anyway. Field deterministic of magi_config.",
        |config, text| {
            config.compute.deterministic = boolean(text)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_BWD_HIDE_TAIL_REDUCE",
        Kind::Whole(-1, 2),
        "-1",
        "When backward computes the host stage: 0 first, so that it hides the first fetch; 1 last, so that it hides the last reduction; 2 half of it at either end; -1 as predictions say. Field bwd_hide_tail_reduce of magi_config.",
        |config, text| {
            config.bwd_hide_tail_reduce = HostStage::numbered(whole(text, -1, 2)?)?;
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_RATES",
        Kind::Form(
            "name=value parts joined by \";\": forward_gflops=A,B,C, backward_gflops=A,B,C, link_mb_per_s=N, link_latency_ns=N, kernel_latency_ns=N, each at most once; or nothing. Rates are 1 to 10^12, latencies 0 to 10^12",
        ),
        "",
        "What predictions take kernels and links for, as bench/calibrate.py measures and prints them; what is not named keeps its default. Fields forward_gflops, backward_gflops, link_mb_per_s, link_latency_ns and kernel_latency_ns of magi_config.",
        |config, text| {
            if !text.is_empty() {
                config.rates = config.rates.with(text)?;
            }
            Some(())
        },
    ),
    acting(
        "MAGI_ATTENTION_PROFILE_MODE",
        Kind::Boolean,
        "0",
        "Measure each attention call on a key (see planning.md), and name its parts for profilers that follow NVTX. Field profile of magi_config.",
        |config, text| {
            config.compute.profile = boolean(text)?;
            Some(())
        },
    ),
    building(
        "MAGI_ATTENTION_WORKSPACE_BASE",
        Kind::Text,
        "",
        "Folder below which kernels compiled at run time are kept, in .magi_attention/kernels; unset: the home folder.",
    ),
    building(
        "MAGI_ATTENTION_BUILD_VERBOSE",
        Kind::Boolean,
        "0",
        "Print compiler command lines, and registers and memory of each kernel: in cargo's output, and on stderr at run time.",
    ),
    building(
        "MAGI_ATTENTION_BUILD_DEBUG",
        Kind::Boolean,
        "0",
        "Line numbers in kernels and barriers that compute-sanitizer follows; prints registers and memory of each kernel: in cargo's output, and on stderr at run time.",
    ),
    building(
        "MAGI_ATTENTION_NO_BUILD_CACHE",
        Kind::Boolean,
        "0",
        "Neither read nor write compiled kernels that are kept on disk.",
    ),
    building(
        "MAGI_ATTENTION_FORCE_JIT_BUILD",
        Kind::Boolean,
        "0",
        "Compile kernels at run time even where one was compiled ahead.",
    ),
    building(
        "MAGI_ATTENTION_PREBUILD_FFA",
        Kind::Boolean,
        "1",
        "Compile the common attention kernels ahead of time, where nvcc is found.",
    ),
    building(
        "MAGI_ATTENTION_PREBUILD_FFA_JOBS",
        Kind::Whole(1, 4096),
        "",
        "Attention kernels compiled at a time ahead of time; unset: nine tenths of the processors.",
    ),
    building(
        "MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD",
        Kind::Boolean,
        "0",
        "Leave the helper kernels (casts, range gather and reduce) to run time.",
    ),
    building(
        "MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD",
        Kind::Boolean,
        "0",
        "Leave the kernels of group collectives (range gather and reduce) to run time. The collectives themselves are always in: \
         attention over ranks is made of them.",
    ),
    building(
        "NVCC_THREADS",
        Kind::Whole(1, 1024),
        "4",
        "Threads of one compilation with nvcc.",
    ),
    building(
        "MAX_JOBS",
        Kind::Whole(1, 4096),
        "",
        "Other kernels compiled at a time ahead of time; unset: nine tenths of the processors.",
    ),
    launching(
        "RANK",
        COUNT,
        "This process's rank, as torchrun sets it; asked first.",
    ),
    launching("WORLD_SIZE", COUNT, "Number of processes of torchrun."),
    launching(
        "LOCAL_RANK",
        COUNT,
        "This process's rank on its host, and so its CUDA device; a process that sees one device takes that.",
    ),
    launching(
        "MASTER_ADDR",
        Kind::Text,
        "Host of rank 0. Unset: this host when all processes are on one, else the first of Slurm's node list.",
    ),
    launching(
        "MASTER_PORT",
        Kind::Whole(1, 65_535),
        "Rank 0 listens on the port after this one (65535: on the one before), because the launcher or the framework has this one. Unset: 29501, or in a job of Slurm 20001 + SLURM_JOB_ID modulo 20000. Field port of magi_nccl_config stands above it.",
    ),
    launching(
        "TORCHELASTIC_RUN_ID",
        Kind::Text,
        "Name of the job: ranks of different jobs that meet at one port refuse each other.",
    ),
    launching(
        "OMPI_COMM_WORLD_RANK",
        COUNT,
        "As RANK, from Open MPI; asked second.",
    ),
    launching("OMPI_COMM_WORLD_SIZE", COUNT, "As WORLD_SIZE, from Open MPI."),
    launching(
        "OMPI_COMM_WORLD_LOCAL_RANK",
        COUNT,
        "As LOCAL_RANK, from Open MPI.",
    ),
    launching(
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        COUNT,
        "Number of processes on this host, from Open MPI.",
    ),
    launching(
        "PMI_RANK",
        COUNT,
        "As RANK, from a PMI launcher (MPICH, Intel MPI); asked third.",
    ),
    launching("PMI_SIZE", COUNT, "As WORLD_SIZE, from a PMI launcher."),
    launching(
        "PMI_LOCAL_RANK",
        COUNT,
        "As LOCAL_RANK, from a PMI launcher, after MPI_LOCALRANKID.",
    ),
    launching(
        "MPI_LOCALRANKID",
        COUNT,
        "As LOCAL_RANK, from MPICH and Intel MPI.",
    ),
    launching(
        "MPI_LOCALNRANKS",
        COUNT,
        "Number of processes on this host, from MPICH and Intel MPI.",
    ),
    launching("SLURM_PROCID", COUNT, "As RANK, from srun; asked last."),
    launching("SLURM_NTASKS", COUNT, "As WORLD_SIZE, from srun."),
    launching("SLURM_LOCALID", COUNT, "As LOCAL_RANK, from srun."),
    launching(
        "SLURM_STEP_NODELIST",
        Kind::Text,
        "Its first host is that of rank 0 where MASTER_ADDR is not set.",
    ),
    launching(
        "SLURM_JOB_NODELIST",
        Kind::Text,
        "Likewise, where SLURM_STEP_NODELIST is not set.",
    ),
    launching(
        "SLURM_JOB_ID",
        Kind::Text,
        "Makes the port of a job, and keeps jobs apart as TORCHELASTIC_RUN_ID does.",
    ),
    launching("SLURM_STEP_ID", Kind::Text, "Keeps the steps of a job apart."),
    idle(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        Kind::Whole(1, 32),
        "8",
        Acts::Run,
        "Hardware queues of a device; with 1, stages are fetched one at a time, in launch order.",
        "read by the CUDA driver itself; the library fetches stages one at a time, in launch order, whatever it is, and launches \
         nothing before what it waits for, so that 1 is enough (architecture.md)",
    ),
    idle(
        "MAGI_ATTENTION_NATIVE_GRPCOLL",
        Kind::Boolean,
        "0",
        Acts::Key,
        "The library's own group collectives inside a host instead of NCCL's sends and receives.",
        "local ranks always use the library's own, and ranks on CUDA devices always NCCL's",
    ),
    idle(
        "MAGI_ATTENTION_PRECISION",
        Kind::OneOf("bf16, fp16, fp32 or fp64"),
        "",
        Acts::Run,
        "A dtype that attention is computed in, whatever that of the tensors.",
        "the dtype is that of the tensors; accumulators are f64 for f64, else f32",
    ),
    idle(
        "MAGI_ATTENTION_LOG_LEVEL",
        Kind::Text,
        "",
        Acts::Run,
        "How much is logged.",
        "log lines are asked for with magi_log_set_callback",
    ),
    idle(
        "MAGI_ATTENTION_AUTO_RANGE_MERGE",
        Kind::Boolean,
        "0",
        Acts::Run,
        "Merge neighbouring slices before a kernel runs.",
        "the planner always joins slices that continue each other",
    ),
    idle(
        "MAGI_ATTENTION_CATGQA",
        Kind::Boolean,
        "0",
        Acts::Run,
        "Pack the query heads of a key head into one tile.",
        "the forward kernel packs them wherever that saves a quarter of the tiles",
    ),
    idle(
        "MAGI_ATTENTION_FLATTEN_HEAD_GROUPS",
        Kind::Boolean,
        "0",
        Acts::Run,
        "Plan the query heads of a key head as rows of one sequence.",
        "heads are never part of a plan",
    ),
    idle(
        "MAGI_ATTENTION_CPP_BACKEND",
        Kind::Boolean,
        "0",
        Acts::Key,
        "Plan with native code instead of an interpreter.",
        "all planning is native code",
    ),
    idle(
        "MAGI_ATTENTION_BUILD_COMPUTE_CAPABILITY",
        Kind::Text,
        "",
        Acts::Build,
        "Device architecture that kernels are compiled for.",
        "kernels are compiled ahead of time for 9.0, and at run time for the device that is there",
    ),
    idle(
        "MAGI_ATTENTION_SKIP_MAGI_ATTN_EXT_BUILD",
        Kind::Boolean,
        "0",
        Acts::Build,
        "Leave out the fast parts of the planner.",
        "the planner has no parts that could be left out",
    ),
    idle(
        "NVSHMEM_DIR",
        Kind::Text,
        "",
        Acts::Build,
        "Where NVSHMEM is installed.",
        "the library needs no NVSHMEM",
    ),
];
