//! Settings of a key.

use std::ffi::c_void;

use super::{guard::guard, input, single};
use crate::device::log::{self, Level};
use crate::types::{
    Allocator, Compute, Config, DsinkReduce, Effort, Error, HostStage, PlacementKind, Rates, Result, Status,
    env,
};

/// Allocates `bytes` aligned to 256; returns NULL when it cannot.
pub type magi_alloc_fn = Option<unsafe extern "C" fn(bytes: usize, userdata: *mut c_void) -> *mut c_void>;

/// Frees what the matching magi_alloc_fn returned.
pub type magi_free_fn =
    Option<unsafe extern "C" fn(pointer: *mut c_void, bytes: usize, userdata: *mut c_void)>;

/// Settings of a key. Fill with magi_config_init, then change fields.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct magi_config {
    /// sizeof(magi_config).
    pub size: usize,
    /// Tokens of a chunk, the unit in which tokens are given to ranks; 0 lets the planner choose.
    pub chunk_size: i64,
    /// With chunk_size 0: at least so many chunks for each rank (8).
    pub min_chunks_per_rank: i64,
    /// Keys that a communicator keeps for equal requests, least recently used first out (100); 0 keeps none.
    pub cache_size: i64,
    /// With MAGI_PLACEMENT_BALANCED: how far above the mean, in thousandths, the largest area of a rank may be where
    /// that saves received tokens, 0 to 1000 (9).
    pub balance_slack: i64,
    /// Per cent of the ranks that MAGI_PLACEMENT_TOP_HEAP chooses among, 1 to 100 (50).
    pub top_percent: i64,
    /// What predictions take the forward kernel for: GFLOP/s on visible cells, for head_dim up to 64, up to 128, and
    /// above. The defaults of this and the next four are of bf16 on one H200 among four of a host.
    pub forward_gflops: [i64; 3],
    /// The same for the backward kernel.
    pub backward_gflops: [i64; 3],
    /// MB/s that a rank receives while all ranks do.
    pub link_mb_per_s: i64,
    /// Nanoseconds that a transfer takes before its first byte counts.
    pub link_latency_ns: i64,
    /// Nanoseconds that a stage's kernel takes beyond its cells.
    pub kernel_latency_ns: i64,
    /// A magi_placement.
    pub placement: i32,
    /// A magi_effort: how long a balanced placement that moves few tokens is looked for.
    pub effort: i32,
    /// Remote stages of the forward pass, 0 to 8, or -1 (the default), which lets the planner choose by the rates above: 0
    /// fetches everything, then computes once; with more, all but the first are fetched beside a kernel, and results merged.
    pub degree_forward: i32,
    /// Remote stages of the backward pass, likewise (-1).
    pub degree_backward: i32,
    /// When the backward pass computes the host stage (-1). 0: before the remote stages, where it hides the first fetch; 1:
    /// behind them, where it hides the last reduction; 2: half of it at either end, in two kernels; -1: as the slowest rank
    /// is predicted to be ready first, by the rates above. Of no effect with a degree_backward of 0.
    pub bwd_hide_tail_reduce: i32,
    /// A magi_dsink_reduce: what backward does across ranks with the gradient of a sink that all queries share.
    pub dsink_reduce: i32,
    /// 0 or 1: partial dk and dv, and dq of queries that travelled, travel in the accumulator type instead of the input
    /// dtype (0).
    pub backward_high_precision_reduce: i32,
    /// 0 or 1: group collectives, of keys and of group plans, cross hosts once a row, then fan out inside the host (0). Needs
    /// magi_comm_set_mesh.
    pub hierarchical_comm: i32,
    /// 0 or 1: queries may travel to keys, and their outputs back, where that moves fewer bytes than keys to queries (0).
    /// With hierarchical_comm it is NOT_SUPPORTED.
    pub qo_comm: i32,
    /// 0 or 1: partial outputs of queries that travelled go home in the accumulator type instead of the input dtype (0).
    pub forward_high_precision_reduce: i32,
    /// 0 or 1: verify each plan when it is made, and that inputs hold no NaN (0).
    pub sanity_check: i32,
    /// A magi_backend: which kernels compute on a CUDA device.
    pub backend: i32,
    /// 0 or 1: the same bits on every run (0).
    pub deterministic: i32,
    /// Multiprocessors that the forward kernel leaves to communication in stages that overlap it, 0 to 1024; -1 for the
    /// default: none beside one exchange, which is launched first, and 8 where exchanges follow each other. Ranks may differ
    /// in this and the next field.
    pub forward_sm_margin: i32,
    /// The same for the backward kernels.
    pub backward_sm_margin: i32,
    /// 0 or 1: measure each attention call on the key, for magi_key_get_stage_times, magi_key_trace and
    /// magi_key_draw_profile, and name its parts for profilers that follow NVTX (0). Ranks may differ.
    pub profile: i32,
    /// Allocates workspace, aligned to 256 bytes, in prepare only: memory of the communicator's device; NULL (with free)
    /// takes it from the system, or from the CUDA device. Both
    /// functions may be called from any thread with the communicator's lock held: they must not call back.
    pub alloc: magi_alloc_fn,
    /// Frees it, at the latest when the communicator is destroyed.
    pub free: magi_free_fn,
    /// Passed to both.
    pub userdata: *mut c_void,
}

/// Fills `config` with the defaults overlaid by the environment, which is read once per process.
///
/// `size`: sizeof(magi_config). Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ENVIRONMENT (a variable that does not
/// parse). Any thread.
///
/// # Safety
/// `config` must point to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_config_init(config: *mut magi_config, size: usize) -> Status {
    guard("magi_config_init", || {
        if size != size_of::<magi_config>() {
            let message = format!(
                "size is {size}; it must be {}, sizeof(magi_config)",
                size_of::<magi_config>()
            );
            return Err(Error::new(Status::StructSize, message));
        }
        let c = Config::from_env()?;
        warn_unknown_once();
        let filled = magi_config {
            size,
            chunk_size: c.chunk_size,
            min_chunks_per_rank: c.min_chunks_per_rank,
            cache_size: c.cache_size as i64,
            balance_slack: c.balance_slack,
            top_percent: c.top_percent,
            forward_gflops: c.rates.forward_gflops,
            backward_gflops: c.rates.backward_gflops,
            link_mb_per_s: c.rates.link_mb_per_s,
            link_latency_ns: c.rates.link_latency_ns,
            kernel_latency_ns: c.rates.kernel_latency_ns,
            placement: c.placement as i32,
            effort: c.effort as i32,
            degree_forward: c.degree_forward,
            degree_backward: c.degree_backward,
            bwd_hide_tail_reduce: c.bwd_hide_tail_reduce as i32,
            dsink_reduce: c.dsink_reduce as i32,
            backward_high_precision_reduce: i32::from(c.backward_high_precision_reduce),
            hierarchical_comm: i32::from(c.hierarchical_comm),
            qo_comm: i32::from(c.qo_comm),
            forward_high_precision_reduce: i32::from(c.forward_high_precision_reduce),
            sanity_check: i32::from(c.sanity_check),
            backend: c.compute.kernels as i32,
            deterministic: i32::from(c.compute.deterministic),
            forward_sm_margin: c.compute.forward_sm_margin.unwrap_or(-1),
            backward_sm_margin: c.compute.backward_sm_margin.unwrap_or(-1),
            profile: i32::from(c.compute.profile),
            alloc: None,
            free: None,
            userdata: std::ptr::null_mut(),
        };
        // SAFETY: the caller's promise.
        unsafe { input::write_out("config", config, filled) }
    })
}

/// A name with our prefix that nobody knows is probably a spelling mistake; said once per process.
fn warn_unknown_once() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for name in env::unknown() {
            let line = format!("environment variable {name} is not one this library knows; it has no effect");
            log::log(Level::Warning, &line);
        }
    });
}

/// Reads and checks a config; NULL means defaults overlaid by the environment.
///
/// # Safety
/// As `input::sized`.
pub(super) unsafe fn read_config(param: &str, config: *const magi_config) -> Result<Config> {
    if config.is_null() {
        return Config::from_env();
    }
    // SAFETY: the caller's promise.
    let c = unsafe { input::sized(param, config) }?;
    let bad = |field: &str, value: i64, want: &str| {
        Error::new(
            Status::InvalidEnum,
            format!("{param}.{field} is {value}; it must be {want}"),
        )
    };
    let placement = match c.placement {
        0 => PlacementKind::Balanced,
        1 => PlacementKind::Sequential,
        2 => PlacementKind::Zigzag,
        3 => PlacementKind::ByDocument,
        4 => PlacementKind::TopHeap,
        5 => PlacementKind::Exact,
        v => return Err(bad("placement", v.into(), "a magi_placement (0 to 5)")),
    };
    let effort = match c.effort {
        0 => Effort::Fast,
        1 => Effort::Thorough,
        2 => Effort::Balance,
        v => return Err(bad("effort", v.into(), "a magi_effort (0, 1 or 2)")),
    };
    let dsink_reduce = match c.dsink_reduce {
        0 => DsinkReduce::None,
        1 => DsinkReduce::Sum,
        2 => DsinkReduce::Avg,
        v => return Err(bad("dsink_reduce", v.into(), "a magi_dsink_reduce (0, 1 or 2)")),
    };
    let hide = i64::from(c.bwd_hide_tail_reduce);
    let host_stage = HostStage::numbered(hide);
    let bwd_hide_tail_reduce =
        host_stage.ok_or_else(|| bad("bwd_hide_tail_reduce", hide, "-1, 0, 1 or 2"))?;
    let cache_size = usize::try_from(c.cache_size).map_err(|_| {
        Error::argument(format!(
            "{param}.cache_size is {}; it must be 0 or more",
            c.cache_size
        ))
    })?;
    let read = Config {
        chunk_size: c.chunk_size,
        min_chunks_per_rank: c.min_chunks_per_rank,
        placement,
        effort,
        balance_slack: c.balance_slack,
        top_percent: c.top_percent,
        rates: Rates {
            forward_gflops: c.forward_gflops,
            backward_gflops: c.backward_gflops,
            link_mb_per_s: c.link_mb_per_s,
            link_latency_ns: c.link_latency_ns,
            kernel_latency_ns: c.kernel_latency_ns,
        },
        degree_forward: c.degree_forward,
        degree_backward: c.degree_backward,
        bwd_hide_tail_reduce,
        backward_high_precision_reduce: input::flag(
            "config.backward_high_precision_reduce",
            c.backward_high_precision_reduce,
        )?,
        forward_high_precision_reduce: input::flag(
            "config.forward_high_precision_reduce",
            c.forward_high_precision_reduce,
        )?,
        qo_comm: input::flag("config.qo_comm", c.qo_comm)?,
        hierarchical_comm: input::flag("config.hierarchical_comm", c.hierarchical_comm)?,
        mesh: None,
        dsink_reduce,
        sanity_check: input::flag("config.sanity_check", c.sanity_check)?,
        cache_size,
        compute: Compute {
            kernels: single::backend_of(&format!("{param}.backend"), c.backend)?,
            deterministic: input::flag("config.deterministic", c.deterministic)?,
            forward_sm_margin: (c.forward_sm_margin != -1).then_some(c.forward_sm_margin),
            backward_sm_margin: (c.backward_sm_margin != -1).then_some(c.backward_sm_margin),
            profile: input::flag("config.profile", c.profile)?,
        },
        allocator: read_allocator(param, &c)?,
    };
    read.validate()
        .map_err(|e| Error::new(e.status, format!("{param}.{}", e.message)))?;
    Ok(read)
}

fn read_allocator(param: &str, c: &magi_config) -> Result<Option<Allocator>> {
    match (c.alloc, c.free) {
        (None, None) => Ok(None),
        (Some(alloc), Some(free)) => Ok(Some(Allocator {
            alloc,
            free,
            userdata: c.userdata,
        })),
        _ => Err(Error::argument(format!(
            "{param}.alloc and {param}.free must both be set or both be NULL"
        ))),
    }
}
