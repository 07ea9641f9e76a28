//! From a variant to its cubin: embedded in the library, kept on disk, or compiled now.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::cache::Cache;
use super::digest::Digest;
use super::embedded;
use super::nvrtc::{Compiled, Nvrtc};
use super::variant::{Kind, Variant};
use crate::device::log::{self, Level};
use crate::types::{Error, KernelBuild, Result, Status};

/// After so long somebody who looks at a terminal is told what takes time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What machine code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Compute capability, before the point.
    pub major: i32,
    /// Compute capability, after the point.
    pub minor: i32,
}

impl Arch {
    /// Compute capability 9.0, what kernels are compiled for ahead of time.
    pub const HOPPER: Arch = Arch { major: 9, minor: 0 };

    /// As compilers write it: on 9.0 with the instructions that only that one has.
    pub fn name(self) -> String {
        let suffix = if self == Arch::HOPPER { "a" } else { "" };
        format!("sm_{}{}{suffix}", self.major, self.minor)
    }

    /// Fails with `Status::NotSupported` where a variant cannot run.
    fn expect(self, variant: &Variant) -> Result<()> {
        let needs = match variant.kind {
            Kind::Attention if self != Arch::HOPPER => "exactly 9.0 (H100, H200)",
            Kind::Helper if self.major < 8 => "8.0 or later",
            _ => return Ok(()),
        };
        let message = format!(
            "kernel {} needs compute capability {needs}; the device has {}.{}",
            variant.name, self.major, self.minor
        );
        Err(Error::new(Status::NotSupported, message))
    }
}

/// The machine code of `variant` for `arch`. May take seconds. `Status::NotSupported` for a device that it was not
/// written for, `Status::CompileFailed` without a compiler or when it refuses.
pub fn cubin(variant: &Variant, arch: Arch, settings: &KernelBuild) -> Result<Cow<'static, [u8]>> {
    arch.expect(variant)?;
    if arch == Arch::HOPPER
        && !settings.force_jit
        && let Some(cubin) = embedded::cubin(variant)
    {
        return Ok(Cow::Borrowed(cubin));
    }
    let nvrtc = Nvrtc::get()?;
    let text = embedded::text(variant)?;
    let options = options(variant, arch, settings);
    let make = || {
        let compiled = nvrtc.compile(&variant.name, &text, &options)?;
        report(variant, nvrtc, &options, &compiled, settings);
        Ok(compiled.cubin)
    };
    let (major, minor) = nvrtc.version();
    let line = format!(
        "libmagi_attn: compiling kernel {} with NVRTC {major}.{minor}",
        variant.name
    );
    let found = with_patience(
        std::io::stderr().is_terminal(),
        PATIENCE,
        || say(&line),
        || {
            let Some(cache) = cache(settings) else {
                return make();
            };
            let name = file_name(variant, &text, &options, nvrtc.version());
            cache.get_or_make(&name, make, |line| log::log(Level::Warning, line))
        },
    );
    found.map(Cow::Owned)
}

/// What NVRTC is told.
pub fn options(variant: &Variant, arch: Arch, settings: &KernelBuild) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={}", arch.name()),
        "--std=c++17".to_owned(),
    ];
    if settings.debug {
        options.extend(["--generate-line-info".to_owned(), "-DRACECHECK=1".to_owned()]);
    }
    if settings.debug || settings.verbose {
        options.push("--ptxas-options=-v".to_owned());
    }
    options.extend(variant.defines.iter().map(|d| format!("-D{d}")));
    options
}

/// Name of the file that keeps a cubin: all that it depends on is in the digest.
pub fn file_name(variant: &Variant, text: &str, options: &[String], compiler: (i32, i32)) -> String {
    let compiler = format!("nvrtc {}.{}", compiler.0, compiler.1);
    let digest = [text, &options.join("\n"), &compiler]
        .iter()
        .fold(Digest::default(), |digest, field| digest.field(field.as_bytes()));
    format!("{}-{}", variant.name, digest.hex())
}

/// The cache on disk; `None` when it is switched off or cannot be written, which is logged once.
fn cache(settings: &KernelBuild) -> Option<&'static Cache> {
    static CACHE: OnceLock<Option<Cache>> = OnceLock::new();
    if settings.no_cache {
        return None;
    }
    CACHE
        .get_or_init(|| {
            let home = std::env::var("HOME").ok();
            let Some(folder) = settings.cache_folder(home.as_deref()) else {
                let line = "no kernel cache: neither MAGI_ATTENTION_WORKSPACE_BASE nor HOME is set";
                log::log(Level::Warning, line);
                return None;
            };
            Cache::open(&folder)
                .inspect_err(|e| {
                    let line = format!(
                        "no kernel cache: {} cannot be written ({e}); kernels are compiled anew in every process",
                        folder.display()
                    );
                    log::log(Level::Warning, &line);
                })
                .ok()
        })
        .as_ref()
}

/// Runs `f`, and `tell` when that takes longer than `patience` and somebody is `watching`.
fn with_patience<T>(
    watching: bool,
    patience: Duration,
    tell: impl FnOnce() + Send,
    f: impl FnOnce() -> T,
) -> T {
    if !watching {
        return f();
    }
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        // Without a thread nothing is told.
        let _ = std::thread::Builder::new().spawn_scoped(scope, move || {
            if waiting.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                tell();
            }
        });
        let result = f();
        drop(done);
        result
    })
}

/// What MAGI_ATTENTION_BUILD_VERBOSE and MAGI_ATTENTION_BUILD_DEBUG ask for: the command, and registers and memory.
fn report(variant: &Variant, nvrtc: &Nvrtc, options: &[String], compiled: &Compiled, settings: &KernelBuild) {
    if settings.verbose {
        let line = format!(
            "libmagi_attn: {} {} kernels/{} ({} bytes)",
            nvrtc.path(),
            options.join(" "),
            variant.source,
            compiled.cubin.len()
        );
        say(&line);
    }
    if (settings.verbose || settings.debug) && !compiled.log.is_empty() {
        say(&compiled.log);
    }
}

/// To stderr, which may be closed.
fn say(line: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Whether something is told while a computation takes `takes` milliseconds.
    fn told(watching: bool, patience: u64, takes: u64) -> bool {
        let told = AtomicBool::new(false);
        let tell = || told.store(true, Ordering::Relaxed);
        let result = with_patience(watching, Duration::from_millis(patience), tell, || {
            std::thread::sleep(Duration::from_millis(takes));
            7
        });
        assert_eq!(result, 7);
        told.into_inner()
    }

    #[test]
    fn who_watches_is_told_of_what_takes_long() {
        assert!(told(true, 1, 300));
        assert!(!told(true, 60_000, 1), "and nobody waits for the patience to end");
        assert!(!told(false, 1, 100));
    }

    #[test]
    fn architectures_are_written_as_compilers_want_them() {
        let name = |major, minor| Arch { major, minor }.name();
        assert_eq!(
            [name(9, 0), name(8, 0), name(12, 1)],
            ["sm_90a", "sm_80", "sm_121"]
        );
    }
}
