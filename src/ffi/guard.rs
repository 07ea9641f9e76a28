//! What stands between C and a panic.

use std::cell::RefCell;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::log::{self, Level};
use crate::device::process;
use crate::types::{Error, Result, Status};

thread_local! {
    static LAST_ERROR: RefCell<(Status, CString)> = RefCell::new((Status::Ok, CString::default()));
}

/// The last error of this thread; `Status::Ok` and an empty text before the first, and when the thread is ending and
/// its variables are gone (a destructor of the caller's may still call in).
pub(super) fn last_error() -> (Status, CString) {
    LAST_ERROR
        .try_with(|e| e.borrow().clone())
        .unwrap_or((Status::Ok, CString::default()))
}

/// Address of the last error's text, good until the next failing call on this thread.
pub(super) fn last_error_text() -> *const std::ffi::c_char {
    LAST_ERROR
        .try_with(|e| e.borrow().1.as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Makes `error` the last error of this thread and returns its status.
fn remember(name: &str, error: &Error) -> Status {
    let text = format!("{name}: {}", error.message).replace('\0', "\\0");
    // Fails on a thread that is ending, which keeps its status and goes without a message.
    let _ = LAST_ERROR.try_with(|e| *e.borrow_mut() = (error.status, CString::new(text).unwrap_or_default()));
    super::status::log_error(error.status);
    error.status
}

/// The text a panic was raised with.
fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without text")
}

/// Nothing prints across the boundary: panics become error messages, so the hook that would write them to stderr is
/// replaced, once, by one that sends them to the log. The shared library has a runtime of its own; a Rust program that
/// loads it keeps its hook.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| log::log(Level::Error, &info.to_string())));
    });
}

/// Runs `f`, the body of the C function `name`; errors and panics become a status and the thread's last error.
pub(super) fn guard(name: &str, f: impl FnOnce() -> Result<()>) -> Status {
    quiet_panics();
    match catch_unwind(AssertUnwindSafe(|| process::check().and_then(|()| f()))) {
        Ok(Ok(())) => Status::Ok,
        Ok(Err(e)) => remember(name, &e),
        Err(payload) => remember(
            name,
            &Error::internal(format!("a panic: {}", panic_text(payload.as_ref()))),
        ),
    }
}

/// A handle that an internal error makes unusable.
pub(super) trait Handle {
    /// Set once by an internal error.
    fn poisoned(&self) -> &AtomicBool;
    /// Wakes peers that wait for this rank.
    fn abort(&self, why: &str);
}

/// As `guard`, on a handle given as parameter `param`: refuses NULL and poisoned ones, and poisons it (aborting its
/// communicator) when `f` ends in an internal error or a panic.
pub(super) fn guard_handle<H: Handle>(
    name: &str,
    param: &str,
    handle: Option<&H>,
    f: impl FnOnce(&H) -> Result<()>,
) -> Status {
    let status = guard(name, || {
        let handle = super::input::non_null(param, handle)?;
        if handle.poisoned().load(Ordering::Acquire) {
            let message =
                format!("{param} was poisoned by an earlier internal error; only destroy works on it");
            return Err(Error::new(Status::Poisoned, message));
        }
        f(handle)
    });
    if let (Status::Internal, Some(handle)) = (status, handle) {
        handle.poisoned().store(true, Ordering::Release);
        handle.abort(last_error().1.to_str().unwrap_or(name));
    }
    status
}

/// Runs the body of a destroy function: whatever happens inside stays inside. In a forked child nothing is freed: a lock
/// that another thread held at the fork would never open.
pub(super) fn guard_destroy(f: impl FnOnce()) {
    if process::check().is_err() {
        std::mem::forget(f);
        return;
    }
    quiet_panics();
    // A panic while freeing leaves nothing to report to: the handle is gone either way.
    let _ = catch_unwind(AssertUnwindSafe(f));
}
