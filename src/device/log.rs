//! Log lines: to a callback, or to stderr when somebody asked for that.

use std::ffi::{CString, c_char, c_void};
use std::io::Write;

use parking_lot::RwLock;

/// Called with (level, line, userdata) from any thread.
pub type Callback = unsafe extern "C" fn(level: i32, line: *const c_char, userdata: *mut c_void);

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Off = 0,
    /// What failed.
    Error = 1,
    /// Also what is probably not meant.
    Warning = 2,
}

impl Level {
    /// Every level.
    pub const ALL: [Level; 3] = [Level::Off, Level::Error, Level::Warning];
}

struct Log {
    callback: Option<Callback>,
    userdata: *mut c_void,
    level: Level,
}

// SAFETY: the pointer is only handed back to the callback, which `set` requires to take it from any thread.
unsafe impl Send for Log {}
// SAFETY: as above.
unsafe impl Sync for Log {}

static LOG: RwLock<Log> = RwLock::new(Log {
    callback: None,
    userdata: std::ptr::null_mut(),
    level: Level::Off,
});

/// Sends lines of at most `level` to `callback`, or to stderr without one. Returns when no call of the previous callback is
/// running. Whoever gives a callback promises that it may be called with `userdata` from any thread.
pub fn set(callback: Option<Callback>, userdata: *mut c_void, level: Level) {
    *LOG.write() = Log {
        callback,
        userdata,
        level,
    };
}

/// Whether lines of this level go anywhere.
pub fn is_on(level: Level) -> bool {
    LOG.read().level >= level
}

/// Says `line` to the callback, or to stderr without one, when `level` asks for it.
pub fn log(level: Level, line: &str) {
    let log = LOG.read();
    if level > log.level {
        return;
    }
    match log.callback {
        // SAFETY: the promise made to `set`.
        Some(f) => unsafe {
            let text = CString::new(line.replace('\0', "\\0")).unwrap_or_default();
            f(level as i32, text.as_ptr(), log.userdata);
        },
        // A stderr that takes nothing (a full disk, a closed pipe) is no reason to fail, and eprintln would panic.
        None => {
            let _ = std::io::stderr().write_all(format!("libmagi_attn: {line}\n").as_bytes());
        }
    }
}
