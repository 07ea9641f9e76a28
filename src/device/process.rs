//! Detects that the process is a forked child of the one that used the library.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::types::{Error, Result, Status};

/// The process that used the library first; 0 before that.
static FIRST: AtomicU32 = AtomicU32::new(0);

/// Fails with `Status::Forked` in a child that was forked after the library's first use: the other ranks' threads
/// do not exist there, and a lock that one of them held is never released. Costs one `getpid`.
///
/// Called first in everything that takes a lock or waits.
pub fn check() -> Result<()> {
    let here = std::process::id();
    match FIRST.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(()),
        Err(first) if first == here => Ok(()),
        Err(first) => Err(Error::new(
            Status::Forked,
            format!(
                "process {here} was forked after process {first} had used this library, whose threads and locks do not \
                 survive a fork; fork before the first call, or start the child as a fresh program (exec, or the \
                 start method \"spawn\")"
            ),
        )),
    }
}
