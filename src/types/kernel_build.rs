//! How kernels are compiled, ahead of time and at run time. Used by build.rs too, so of this crate only its neighbour
//! `value` is named here.

use super::value::{boolean, whole};

/// Settings that environment variables make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelBuild {
    /// Folder in which `.magi_attention/kernels` keeps compiled kernels; `None` is the home folder.
    pub workspace_base: Option<String>,
    /// Print compiler command lines and resource usage.
    pub verbose: bool,
    /// Line numbers in kernels, and a report of registers.
    pub debug: bool,
    /// Neither read nor write the kernel cache.
    pub no_cache: bool,
    /// Compile at run time even what was compiled ahead.
    pub force_jit: bool,
    /// Compile the common attention kernels ahead of time.
    pub prebuild: bool,
    /// Compile the helper kernels at run time only.
    pub skip_helpers: bool,
    /// Compile the kernels of group collectives at run time only.
    pub skip_collectives: bool,
    /// Attention kernels compiled at a time; `None`: nine tenths of the processors.
    pub attention_jobs: Option<usize>,
    /// Other kernels compiled at a time; `None`: nine tenths of the processors.
    pub jobs: Option<usize>,
    /// Threads of one compilation with nvcc.
    pub threads: usize,
}

impl Default for KernelBuild {
    fn default() -> Self {
        KernelBuild {
            workspace_base: None,
            verbose: false,
            debug: false,
            no_cache: false,
            force_jit: false,
            prebuild: true,
            skip_helpers: false,
            skip_collectives: false,
            attention_jobs: None,
            jobs: None,
            threads: 4,
        }
    }
}

impl KernelBuild {
    /// The variables that make these settings.
    pub const VARIABLES: [&'static str; 11] = [
        "MAGI_ATTENTION_WORKSPACE_BASE",
        "MAGI_ATTENTION_BUILD_VERBOSE",
        "MAGI_ATTENTION_BUILD_DEBUG",
        "MAGI_ATTENTION_NO_BUILD_CACHE",
        "MAGI_ATTENTION_FORCE_JIT_BUILD",
        "MAGI_ATTENTION_PREBUILD_FFA",
        "MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD",
        "MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD",
        "MAGI_ATTENTION_PREBUILD_FFA_JOBS",
        "MAX_JOBS",
        "NVCC_THREADS",
    ];

    /// Takes over the value of the variable `name`; `None` when the text does not parse. An empty text where that is no
    /// value of its own counts as not set.
    pub fn set(&mut self, name: &str, text: &str) -> Option<()> {
        let jobs = || whole(text, 1, 4096).map(|n| Some(n as usize));
        match name {
            "MAGI_ATTENTION_WORKSPACE_BASE" => {
                self.workspace_base = (!text.is_empty()).then(|| text.to_owned());
            }
            "MAGI_ATTENTION_BUILD_VERBOSE" => self.verbose = boolean(text)?,
            "MAGI_ATTENTION_BUILD_DEBUG" => self.debug = boolean(text)?,
            "MAGI_ATTENTION_NO_BUILD_CACHE" => self.no_cache = boolean(text)?,
            "MAGI_ATTENTION_FORCE_JIT_BUILD" => self.force_jit = boolean(text)?,
            "MAGI_ATTENTION_PREBUILD_FFA" => self.prebuild = boolean(text)?,
            "MAGI_ATTENTION_SKIP_FFA_UTILS_BUILD" => self.skip_helpers = boolean(text)?,
            "MAGI_ATTENTION_SKIP_MAGI_ATTN_COMM_BUILD" => self.skip_collectives = boolean(text)?,
            "MAGI_ATTENTION_PREBUILD_FFA_JOBS" if text.is_empty() => self.attention_jobs = None,
            "MAGI_ATTENTION_PREBUILD_FFA_JOBS" => self.attention_jobs = jobs()?,
            "MAX_JOBS" if text.is_empty() => self.jobs = None,
            "MAX_JOBS" => self.jobs = jobs()?,
            "NVCC_THREADS" => self.threads = whole(text, 1, 1024)? as usize,
            _ => (),
        }
        Some(())
    }

    /// Nine tenths of `processors`, rounded up.
    pub fn default_jobs(processors: usize) -> usize {
        (processors * 9).div_ceil(10).max(1)
    }

    /// Attention kernels compiled at a time on this many processors.
    pub fn attention_jobs_on(&self, processors: usize) -> usize {
        self.attention_jobs.unwrap_or(Self::default_jobs(processors))
    }

    /// Other kernels compiled at a time on this many processors.
    pub fn jobs_on(&self, processors: usize) -> usize {
        self.jobs.unwrap_or(Self::default_jobs(processors))
    }

    /// The folder of compiled kernels, below the base or else below `home`; `None` when neither is known.
    pub fn cache_folder(&self, home: Option<&str>) -> Option<std::path::PathBuf> {
        let base = self
            .workspace_base
            .as_deref()
            .or(home)
            .filter(|b| !b.is_empty())?;
        Some(std::path::Path::new(base).join(".magi_attention").join("kernels"))
    }
}
