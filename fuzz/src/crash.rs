//! Runs one input, and saves it in fuzz/artifacts if it panics, raises a signal, takes too long or too much memory.

use crate::corpus;
use crate::targets::Target;
use libc::{c_int, c_void};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::panic;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// An input that takes longer counts as a hang.
const SECONDS: u32 = 20;
/// Address space of the process: enough for any reasonable input, and an early end for an allocation that trusts one.
const MEMORY: u64 = 8 << 30;

static INPUT: AtomicPtr<u8> = AtomicPtr::new(null_mut());
static INPUT_LEN: AtomicUsize = AtomicUsize::new(0);
static ARTIFACT: AtomicPtr<libc::c_char> = AtomicPtr::new(null_mut());

fn artifact(target: &Target) -> PathBuf {
    corpus::folder("artifacts", target.name).join("crash")
}

/// Writes the current input with nothing but calls that a signal handler may make, and ends the process.
extern "C" fn on_signal(signal: c_int) {
    let path = ARTIFACT.load(SeqCst);
    let text = match signal {
        libc::SIGALRM => "the input in fuzz/artifacts takes too long\n",
        libc::SIGABRT => "the input in fuzz/artifacts aborts the process\n",
        _ => "the input in fuzz/artifacts raises a signal\n",
    };
    // SAFETY: open, write and _exit are safe in a signal handler; the path is a C string that is never freed, and the
    // input outlives the run that is going on.
    unsafe {
        libc::write(2, text.as_ptr().cast::<c_void>(), text.len());
        if !path.is_null() {
            let file = libc::open(path, libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY, 0o644);
            libc::write(file, INPUT.load(SeqCst).cast::<c_void>(), INPUT_LEN.load(SeqCst));
        }
        libc::_exit(1);
    }
}

/// Makes the folders for what may be saved, and sets the handlers and the memory limit. Once per process.
pub fn install(targets: &[&'static Target]) -> Result<(), String> {
    for target in targets {
        let folder = corpus::folder("artifacts", target.name);
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    // SAFETY: `action` is a valid, fully initialised sigaction; the handler keeps to async-signal-safe calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        let signals = [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
            libc::SIGALRM,
        ];
        for signal in signals {
            libc::sigaction(signal, &action, null_mut());
        }
        let limit = libc::rlimit {
            rlim_cur: MEMORY,
            rlim_max: MEMORY,
        };
        libc::setrlimit(libc::RLIMIT_AS, &limit);
    }
    Ok(())
}

/// Runs `input`; an error names the file where a panicking one was saved.
pub fn run(target: &'static Target, input: &[u8]) -> Result<(), String> {
    let path = artifact(target);
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    INPUT.store(input.as_ptr().cast_mut(), SeqCst);
    INPUT_LEN.store(input.len(), SeqCst);
    ARTIFACT.store(name.as_ptr().cast_mut(), SeqCst);
    // SAFETY: alarm only sets a timer.
    unsafe { libc::alarm(SECONDS) };
    let outcome = panic::catch_unwind(|| (target.run)(input));
    // SAFETY: as above; 0 stops it.
    unsafe { libc::alarm(0) };
    ARTIFACT.store(null_mut(), SeqCst);
    outcome.map_err(|_| {
        let saved = std::fs::write(&path, input).map_or_else(|e| e.to_string(), |()| "saved".to_owned());
        format!(
            "{} panicked on {} bytes ({saved}); again with: scripts/fuzz.sh --input {} {}",
            target.name,
            input.len(),
            path.display(),
            target.name
        )
    })
}
