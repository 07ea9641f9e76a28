//! A forked child is refused, and nothing in it hangs.

mod comm_support;

use comm_support::start;
use magi_attn::comm::Communicator;
use magi_attn::comm::local::{LocalComm, create};
use magi_attn::device::{Stream, process};
use magi_attn::types::Status;
use std::sync::Arc;

/// What the child checks; the number of the check that failed, or 0.
fn in_child(comms: Vec<Arc<LocalComm>>) -> i32 {
    let forked = |status: Option<Status>| status == Some(Status::Forked);
    let Err(error) = process::check() else { return 1 };
    if !forked(Some(error.status)) || !error.message.contains(&std::process::id().to_string()) {
        return 2;
    }
    if !forked(start(&comms[0], &[], &mut []).err().map(|e| e.status)) {
        return 3;
    }
    if !forked(comms[0].all_gather(b"x", Stream::NULL).err().map(|e| e.status)) {
        return 4;
    }
    if !forked(comms[0].async_error().map(|e| e.status)) || !forked(create(1).err().map(|e| e.status)) {
        return 5;
    }
    comms[0].abort("from the child");
    drop(comms);
    0
}

#[test]
fn a_forked_child_is_refused() {
    process::check().unwrap();
    let comms = create(2).unwrap();
    let copies = comms.clone();
    // SAFETY: the child calls this library's checks, which take no lock, and the C library's allocator, which
    // survives a fork; then it leaves with `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: `alarm` and `_exit` may be called in a forked child; the alarm ends a child that hangs.
        unsafe {
            libc::alarm(10);
            drop(copies);
            libc::_exit(in_child(comms));
        }
    }
    let mut status = 0;
    // SAFETY: `child` is this process's own child, and `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(
        libc::WIFEXITED(status),
        "the child was ended by a signal: {status}"
    );
    assert_eq!(libc::WEXITSTATUS(status), 0, "the check of this number failed");
    process::check().unwrap();
    assert_eq!(
        comms[0].async_error(),
        None,
        "the child's abort stays in the child"
    );
}
