//! Status codes, the last error of a thread, and log lines.

use std::ffi::{c_char, c_void};

use super::guard;
use crate::device::log::{self, Level};
use crate::types::{Error, Status};

/// Called with (level, line, userdata), from whichever thread has something to say. `line` ends without a newline and
/// is good during the call. Must not call back into the library.
pub type magi_log_callback =
    Option<unsafe extern "C" fn(level: i32, line: *const c_char, userdata: *mut c_void)>;

/// How much is said.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum magi_log_level {
    /// Nothing.
    Off = 0,
    /// What failed.
    Error = 1,
    /// Also what is probably not meant, such as an unknown environment variable.
    Warning = 2,
}

const _: () = assert!(
    magi_log_level::Error as i32 == Level::Error as i32
        && magi_log_level::Warning as i32 == Level::Warning as i32
);

/// Says the thread's last error.
pub(super) fn log_error(status: Status) {
    if log::is_on(Level::Error) {
        let text = guard::last_error().1;
        log::log(
            Level::Error,
            &format!("{} ({})", text.to_string_lossy(), status as i32),
        );
    }
}

/// A few words for `code`, in a static string; "unknown status" for a number that is none.
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn magi_status_string(code: i32) -> *const c_char {
    Status::from_i32(code)
        .map_or(c"unknown status", Status::text)
        .as_ptr()
}

/// The message of the last call on this thread that did not return MAGI_STATUS_OK: function, parameter, value and what
/// would have been accepted. "" before the first. Good until the next failing call on this thread.
///
/// Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn magi_last_error_message() -> *const c_char {
    guard::last_error_text()
}

/// Sends log lines of at most `level` (a magi_log_level) to `callback`, or to stderr when it is NULL. Starts off.
///
/// Any thread. Returns when no call of the previous callback is running.
#[unsafe(no_mangle)]
pub extern "C" fn magi_log_set_callback(
    callback: magi_log_callback,
    userdata: *mut c_void,
    level: i32,
) -> Status {
    guard::guard("magi_log_set_callback", || {
        let Some(level) = Level::ALL.into_iter().find(|&l| l as i32 == level) else {
            let message = format!("level is {level}, which is no magi_log_level (0 to 2)");
            return Err(Error::new(Status::InvalidEnum, message));
        };
        log::set(callback, userdata, level);
        Ok(())
    })
}
