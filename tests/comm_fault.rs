//! Failures that only the test-only build can provoke.
#![cfg(feature = "fault")]

mod comm_support;

use comm_support::{receive, send, start};
use magi_attn::comm::Communicator;
use magi_attn::comm::local::{create, run};
use magi_attn::device::fault::{Action, clear, set};
use magi_attn::device::{Arena, Stream};
use magi_attn::types::Status;
use parking_lot::{Mutex, MutexGuard};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Faults are the process's: one test at a time, and none left behind.
struct Turn(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

fn turn() -> Turn {
    Turn(ONE_AT_A_TIME.lock())
}

impl Drop for Turn {
    fn drop(&mut self) {
        clear();
    }
}

#[test]
fn a_refused_thread_runs_no_rank() {
    let _turn = turn();
    let calls = Mutex::new(0);
    set("local.spawn", 5, Action::Error(Status::ResourceExhausted), 0);
    let body = |_: usize, comm: std::sync::Arc<magi_attn::comm::local::LocalComm>| {
        *calls.lock() += 1;
        comm.all_gather(b"x", Stream::NULL).map(|_| ())
    };
    let error = run(8, body).unwrap_err();
    assert_eq!(error.status, Status::ResourceExhausted);
    assert!(error.message.contains("rank 5"), "{error}");
    assert_eq!(*calls.lock(), 0, "the call can be repeated");
    clear();
    run(8, body).unwrap();
    assert_eq!(*calls.lock(), 8);

    set("local.spawn", 2, Action::Panic, 0);
    let panic = std::panic::catch_unwind(|| run(4, |_, _| Ok(())));
    assert!(
        panic.is_err(),
        "it comes out, and the threads are not left waiting"
    );
}

#[test]
fn a_panic_in_one_rank() {
    let _turn = turn();
    set("local.rank", 1, Action::Panic, 0);
    let error = run(3, |_, comm| comm.all_gather(b"x", Stream::NULL).map(|_| ())).unwrap_err();
    assert_eq!(error.status, Status::Internal);
    assert!(error.message.contains("rank 1 panicked"), "{error}");
}

#[test]
fn a_failed_start_sent_nothing() {
    let _turn = turn();
    let comms = create(2).unwrap();
    set("comm.start", 0, Action::Error(Status::OutOfMemory), 1);
    set("comm.all_gather", -1, Action::Error(Status::OutOfMemory), 0);
    set("comm.finish", 1, Action::Error(Status::Internal), 1);
    send(&comms[0], 1, b"one").unwrap();
    let error = start(&comms[0], &[(1, vec![0; 9])], &mut []).unwrap_err();
    assert_eq!(error.status, Status::OutOfMemory);
    assert_eq!(
        comms[1].all_gather(b"x", Stream::NULL).unwrap_err().status,
        Status::OutOfMemory
    );
    assert_eq!(comms[0].async_error(), None);
    assert_eq!(receive(&comms[1], 0, 3).unwrap(), b"one");
    let ticket = start(&comms[1], &[], &mut []).unwrap();
    assert_eq!(
        comms[1].finish(ticket, Stream::NULL).unwrap_err().status,
        Status::Internal
    );
    clear();
    send(&comms[0], 1, b"two").unwrap();
    assert_eq!(receive(&comms[1], 0, 3).unwrap(), b"two");
}

#[test]
fn workspace_runs_out_on_one_rank() {
    let _turn = turn();
    set("arena.reserve", 1, Action::Error(Status::OutOfMemory), 1);
    let (mut zero, mut one) = (Arena::new(0), Arena::new(1));
    one.reserve(100, None).unwrap();
    one.reserve(50, None).unwrap();
    assert_eq!(one.reserve(200, None).unwrap_err().status, Status::OutOfMemory);
    assert_eq!(one.bytes(), 100);
    zero.reserve(200, None).unwrap();
    clear();
    one.reserve(200, None).unwrap();
}
