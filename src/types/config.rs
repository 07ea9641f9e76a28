//! How plans are made and calls behave, fixed when a key is created.

use std::ffi::c_void;

use super::{Error, Mesh, Rates, Result};

/// Allocates `bytes` aligned to 256; returns null when it cannot.
pub type AllocFn = unsafe extern "C" fn(bytes: usize, userdata: *mut c_void) -> *mut c_void;
/// Frees what the matching `AllocFn` returned.
pub type FreeFn = unsafe extern "C" fn(pointer: *mut c_void, bytes: usize, userdata: *mut c_void);

/// The caller's allocator for workspace.
#[derive(Clone, Copy, Debug)]
pub struct Allocator {
    /// Called in `prepare` only.
    pub alloc: AllocFn,
    /// Called when the communicator goes, or when a larger block replaces a smaller one.
    pub free: FreeFn,
    /// Passed to both.
    pub userdata: *mut c_void,
}

impl Allocator {
    /// What tells one allocator from another.
    fn addresses(&self) -> [usize; 3] {
        [self.alloc as usize, self.free as usize, self.userdata as usize]
    }
}

impl PartialEq for Allocator {
    fn eq(&self, other: &Allocator) -> bool {
        self.addresses() == other.addresses()
    }
}

impl Eq for Allocator {}

impl std::hash::Hash for Allocator {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.addresses().hash(state);
    }
}

// SAFETY: whoever installs an allocator promises (magi_config.alloc) that both functions may be called with
// `userdata` from any thread.
unsafe impl Send for Allocator {}
// SAFETY: as above.
unsafe impl Sync for Allocator {}

/// What `calc_attn` backward does with the gradient of a sink that all queries share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DsinkReduce {
    /// Every rank keeps its partial gradient.
    #[default]
    None = 0,
    /// The sum over ranks, on every rank.
    Sum = 1,
    /// The sum over ranks divided by their number.
    Avg = 2,
}

/// When the backward pass computes the host stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum HostStage {
    /// As the slowest rank is predicted to be ready first.
    #[default]
    Auto = -1,
    /// Before the remote stages: it hides the first fetch.
    First = 0,
    /// Behind them: it hides the last reduction.
    Last = 1,
    /// Half of it before and half of it behind them, in two kernels: it hides both.
    Split = 2,
}

/// cbindgen:ignore
impl HostStage {
    /// The one with this number.
    pub fn numbered(number: i64) -> Option<HostStage> {
        match number {
            -1 => Some(HostStage::Auto),
            0 => Some(HostStage::First),
            1 => Some(HostStage::Last),
            2 => Some(HostStage::Split),
            _ => None,
        }
    }
}

/// How chunks are given to ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum PlacementKind {
    /// Equal numbers of chunks, areas as even as swaps make them, and of such placements one that moves few tokens.
    #[default]
    Balanced = 0,
    /// Contiguous blocks.
    Sequential = 1,
    /// Twice as many contiguous pieces as ranks; rank r has the pieces r and 2 * world - 1 - r.
    Zigzag = 2,
    /// Documents (chunks whose rows see keys from the same place on) heaviest first, the chunks of each dealt to the
    /// ranks in turn, back and forth: every rank has a share of every long document.
    ByDocument = 3,
    /// Longest chunk first to that rank, of the least loaded `top_percent` with room, where it adds fewest received
    /// tokens.
    TopHeap = 4,
    /// The least largest area, then the fewest received tokens, by trying everything: for at most 16 chunks.
    Exact = 5,
}

/// How long the planner looks for a placement that moves few tokens. Budgets count steps, not time, so that every rank
/// comes to the same placement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Effort {
    /// A fraction of a millisecond for 8 ranks, a few for 64.
    #[default]
    Fast = 0,
    /// Up to 100 ms for 64 ranks: for masks that live long.
    Thorough = 1,
    /// By area alone.
    Balance = 2,
}

/// Which kernels compute attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KernelChoice {
    /// The best there are for the device.
    #[default]
    Default,
    /// The fast kernels of a CUDA device.
    Ffa,
    /// Textbook attention.
    Sdpa,
}

/// How a rank's device computes. Of no interest to the plan: ranks may differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Compute {
    /// Which kernels.
    pub kernels: KernelChoice,
    /// The same bits on every run.
    pub deterministic: bool,
    /// Multiprocessors that the forward kernel leaves to communication in stages that overlap it; `None` for the default.
    pub forward_sm_margin: Option<i32>,
    /// The same for the backward kernels.
    pub backward_sm_margin: Option<i32>,
    /// Calls on the key are measured.
    pub profile: bool,
}

/// cbindgen:ignore
impl Compute {
    /// Largest margin.
    pub const MAX_SM_MARGIN: i32 = 1024;
}

/// Settings of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Tokens of a chunk, the unit of placement; 0 lets the planner choose.
    pub chunk_size: i64,
    /// With `chunk_size` 0: at least this many chunks for every rank.
    pub min_chunks_per_rank: i64,
    /// How chunks are given to ranks.
    pub placement: PlacementKind,
    /// How long a balanced placement is searched for.
    pub effort: Effort,
    /// In thousandths: how far above the mean the largest area of a rank may be where that saves received tokens.
    pub balance_slack: i64,
    /// Per cent of the ranks that `PlacementKind::TopHeap` chooses among.
    pub top_percent: i64,
    /// Remote stages of the forward pass, 0 to 8; 0 fetches everything and computes once; `AUTO_DEGREE` lets the
    /// planner choose.
    pub degree_forward: i32,
    /// Remote stages of the backward pass, likewise.
    pub degree_backward: i32,
    /// When the backward pass computes the host stage; of no effect with a degree of 0.
    pub bwd_hide_tail_reduce: HostStage,
    /// What the planner takes kernels and links for.
    pub rates: Rates,
    /// Partial dk and dv travel in the accumulator type instead of the input dtype.
    pub backward_high_precision_reduce: bool,
    /// Partial outputs of queries that travel go home in the accumulator type instead of the input dtype.
    pub forward_high_precision_reduce: bool,
    /// Queries may travel to keys where that moves less than keys to queries. Not with `hierarchical_comm`.
    pub qo_comm: bool,
    /// Group collectives cross hosts once a token, then fan out inside. Needs a communicator whose mesh is known.
    pub hierarchical_comm: bool,
    /// The communicator's mesh; set when the key is made with `hierarchical_comm`.
    pub mesh: Option<Mesh>,
    /// What backward does with the gradient of a shared sink.
    pub dsink_reduce: DsinkReduce,
    /// Verify every plan when it is made, and that inputs hold no NaN.
    pub sanity_check: bool,
    /// Keys a communicator keeps; the least recently used goes first. 0 keeps none.
    pub cache_size: usize,
    /// How devices compute.
    pub compute: Compute,
    /// Workspace allocator; `None` takes memory from the system, or from the CUDA device.
    pub allocator: Option<Allocator>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            chunk_size: 0,
            min_chunks_per_rank: 8,
            placement: PlacementKind::Balanced,
            effort: Effort::Fast,
            balance_slack: 9,
            top_percent: 50,
            degree_forward: Self::AUTO_DEGREE,
            degree_backward: Self::AUTO_DEGREE,
            bwd_hide_tail_reduce: HostStage::Auto,
            rates: Rates::default(),
            backward_high_precision_reduce: false,
            forward_high_precision_reduce: false,
            qo_comm: false,
            hierarchical_comm: false,
            mesh: None,
            dsink_reduce: DsinkReduce::None,
            sanity_check: false,
            cache_size: 100,
            compute: Compute::default(),
            allocator: None,
        }
    }
}

/// cbindgen:ignore
impl Config {
    /// Largest `chunk_size`, in tokens.
    pub const MAX_CHUNK_SIZE: i64 = 1 << 31;
    /// Largest `min_chunks_per_rank`.
    pub const MAX_MIN_CHUNKS_PER_RANK: i64 = 4096;
    /// Most remote stages of a pass.
    pub const MAX_DEGREE: i32 = 8;
    /// The degree that lets the planner choose.
    pub const AUTO_DEGREE: i32 = -1;
    /// Largest `balance_slack`.
    pub const MAX_BALANCE_SLACK: i64 = 1000;
    /// Most keys in a cache.
    pub const MAX_CACHE_SIZE: usize = 1_000_000;

    /// `Status::InvalidArgument` naming the first field that is out of its range.
    pub fn validate(&self) -> Result<()> {
        let check = |name: &str, value: i64, least: i64, most: i64, special: &str| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::argument(format!(
                "{name} is {value}; it must be {special}{least} to {most}"
            )))
        };
        if self.chunk_size != 0 {
            let most = Self::MAX_CHUNK_SIZE;
            check(
                "chunk_size",
                self.chunk_size,
                1,
                most,
                "0 (the planner chooses) or ",
            )?;
        }
        let most = Self::MAX_MIN_CHUNKS_PER_RANK;
        check("min_chunks_per_rank", self.min_chunks_per_rank, 1, most, "")?;
        for (name, degree) in [
            ("degree_forward", self.degree_forward),
            ("degree_backward", self.degree_backward),
        ] {
            if degree != Self::AUTO_DEGREE {
                let special = "-1 (the planner chooses) or ";
                check(name, degree.into(), 0, Self::MAX_DEGREE.into(), special)?;
            }
        }
        check(
            "balance_slack",
            self.balance_slack,
            0,
            Self::MAX_BALANCE_SLACK,
            "",
        )?;
        check("top_percent", self.top_percent, 1, 100, "")?;
        self.rates.validate()?;
        for (name, margin) in [
            ("forward_sm_margin", self.compute.forward_sm_margin),
            ("backward_sm_margin", self.compute.backward_sm_margin),
        ] {
            let special = "-1 (the default) or ";
            let value = margin.unwrap_or(0).into();
            check(name, value, 0, Compute::MAX_SM_MARGIN.into(), special)?;
        }
        if self.cache_size > Self::MAX_CACHE_SIZE {
            return Err(Error::argument(format!(
                "cache_size is {}; it must be 0 to {}",
                self.cache_size,
                Self::MAX_CACHE_SIZE
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validate_names_the_field_and_its_bounds() {
        let good = Config::default();
        assert_eq!(good.validate(), Ok(()));
        let most = Config {
            chunk_size: 1 << 31,
            min_chunks_per_rank: 4096,
            degree_forward: 8,
            degree_backward: 0,
            cache_size: 1_000_000,
            ..good
        };
        assert_eq!(most.validate(), Ok(()));
        let bad: [(&str, Config); 12] = [
            (
                "balance_slack is -1",
                Config {
                    balance_slack: -1,
                    ..good
                },
            ),
            (
                "top_percent is 101",
                Config {
                    top_percent: 101,
                    ..good
                },
            ),
            (
                "link_mb_per_s is 0",
                Config {
                    rates: Rates {
                        link_mb_per_s: 0,
                        ..Rates::default()
                    },
                    ..good
                },
            ),
            (
                "chunk_size is -1",
                Config {
                    chunk_size: -1,
                    ..good
                },
            ),
            (
                "chunk_size is 2147483649",
                Config {
                    chunk_size: (1 << 31) + 1,
                    ..good
                },
            ),
            (
                "min_chunks_per_rank is 0",
                Config {
                    min_chunks_per_rank: 0,
                    ..good
                },
            ),
            (
                "min_chunks_per_rank is 4097",
                Config {
                    min_chunks_per_rank: 4097,
                    ..good
                },
            ),
            (
                "degree_forward is 9",
                Config {
                    degree_forward: 9,
                    ..good
                },
            ),
            (
                "degree_forward is -2",
                Config {
                    degree_forward: -2,
                    ..good
                },
            ),
            (
                "degree_backward is 9",
                Config {
                    degree_backward: 9,
                    ..good
                },
            ),
            (
                "degree_backward is -2",
                Config {
                    degree_backward: -2,
                    ..good
                },
            ),
            (
                "cache_size is 1000001",
                Config {
                    cache_size: 1_000_001,
                    ..good
                },
            ),
        ];
        for (want, config) in bad {
            let error = config.validate().unwrap_err();
            assert!(
                error.message.starts_with(&format!("{want}; it must be ")),
                "{}",
                error.message
            );
            assert_eq!(error.status, crate::types::Status::InvalidArgument);
        }
    }
}
