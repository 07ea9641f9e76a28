//! What goes wrong over NCCL: an error on every rank, in time, with its cause, and streams that go on. NCCL and the driver
//! are those of tests/host_nccl.

mod nccl_support;

use std::ffi::c_void;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use magi_attn::comm::nccl::{Launch, UniqueId, adopt, from_id, from_launch};
use magi_attn::comm::{Communicator, Ticket};
use magi_attn::device::Stream;
use magi_attn::types::{Error, Result, Status};
use nccl_support::{
    Bytes, LONG, SHORT, UserStream, ending, greet_all, inside, nccl, on_ranks, options, record, wish,
};

/// Starts receiving a byte of `peer`, which it may never send.
fn expect_byte(comm: &dyn Communicator, peer: usize, user: &UserStream) -> Result<Ticket> {
    let mut target = Bytes::new(&[0]);
    // SAFETY: the byte stays, and nobody looks at it.
    unsafe { comm.start(&[], &[target.recv(peer, 0, 1)], user.stream) }
}

fn says(error: &Error, status: Status, part: &str) {
    assert_eq!(error.status, status, "{error}");
    assert!(error.message.contains(part), "{part}: {error}");
}

#[test]
fn a_peer_that_never_sends_is_a_timeout() {
    inside("a_peer_that_never_sends_is_a_timeout", &[], || {
        let begun = Instant::now();
        on_ranks(2, LONG, |rank, comm| {
            let comm = comm.unwrap();
            let user = UserStream::new(rank);
            if rank == 0 {
                comm.set_timeout(SHORT);
                // Time that its own stream takes before is not time that it waits.
                user.enqueue(|| thread::sleep(2 * SHORT));
                let begun = Instant::now();
                let ticket = expect_byte(&*comm, 1, &user).unwrap();
                comm.finish(ticket, user.stream).unwrap();
                let error = ending(&*comm);
                says(
                    &error,
                    Status::Timeout,
                    "rank 0 waited 400ms for an exchange with rank 1",
                );
                assert!(begun.elapsed() >= 3 * SHORT, "{:?}", begun.elapsed());
                // The device was set free: the stream goes on.
                user.synchronize();
                assert_eq!(expect_byte(&*comm, 1, &user).unwrap_err(), error);
                assert_eq!(comm.all_gather(b"", Stream::NULL).unwrap_err(), error);
            } else {
                says(&ending(&*comm), Status::CommFailed, "rank 0 waited 400ms");
            }
        });
        assert!(begun.elapsed() < LONG);
        assert_eq!(record(), ["abort 0", "abort 1"]);
        // The process goes on with a new one.
        on_ranks(2, LONG, |rank, comm| greet_all(&*comm.unwrap(), rank));
    });
}

#[test]
fn a_way_that_one_rank_alone_opens_is_a_timeout() {
    inside("a_way_that_one_rank_alone_opens_is_a_timeout", &[], || {
        on_ranks(3, LONG, |rank, comm| {
            let comm = comm.unwrap();
            let others: Vec<usize> = (0..3).filter(|&p| p != rank).collect();
            comm.connect(&others).unwrap();
            // Open already: nobody is waited for, and nothing is sent.
            comm.connect(&others).unwrap();
            let error = comm.connect(&[3]).unwrap_err();
            says(&error, Status::InvalidArgument, "rank 3 of 3 ranks");
            greet_all(&*comm, rank);
        });
        let _ = record();
        on_ranks(2, LONG, |rank, comm| {
            let comm = comm.unwrap();
            if rank == 1 {
                comm.set_timeout(SHORT);
                let error = comm.connect(&[0]).unwrap_err();
                says(
                    &error,
                    Status::Timeout,
                    "rank 1 waited 400ms for a way to one of ranks [0]",
                );
            }
            let error = ending(&*comm);
            assert!(error.message.contains("rank 1 waited 400ms"), "{error}");
        });
        assert_eq!(record(), ["abort 0", "abort 1"]);
    });
}

#[test]
fn an_abort_ends_every_rank_and_returns() {
    inside("an_abort_ends_every_rank_and_returns", &[], || {
        let barrier = Barrier::new(3);
        on_ranks(3, LONG, |rank, comm| {
            let comm = comm.unwrap();
            let user = UserStream::new(rank);
            let ticket = expect_byte(&*comm, (rank + 1) % 3, &user).unwrap();
            comm.finish(ticket, user.stream).unwrap();
            barrier.wait();
            if rank == 1 {
                let begun = Instant::now();
                comm.abort("enough");
                comm.abort("again");
                assert!(begun.elapsed() < SHORT);
            }
            says(
                &ending(&*comm),
                Status::Aborted,
                "rank 1 aborted the communicator: enough",
            );
            user.synchronize();
            assert!(expect_byte(&*comm, 0, &user).is_err());
        });
        assert_eq!(record(), ["abort 0", "abort 1", "abort 2"]);
    });
}

#[test]
fn a_rank_that_fails_tells_the_others() {
    inside("a_rank_that_fails_tells_the_others", &[], || {
        on_ranks(2, LONG, |rank, comm| {
            let comm = comm.unwrap();
            if rank == 1 {
                comm.fail(&Error::internal("a test"));
            }
            says(
                &ending(&*comm),
                Status::CommFailed,
                "rank 1 failed with Internal: a test",
            );
        });
        on_ranks(2, LONG, |rank, comm| {
            let comm = comm.unwrap();
            if rank == 0 {
                wish("async_fails", 0);
            }
            let why = "rank 0 failed with CommFailed: NCCL: remote process exited: as the test wished";
            says(&ending(&*comm), Status::CommFailed, why);
        });
        wish("async_fails", -1);
        on_ranks(2, LONG, |rank, comm| {
            let comm = comm.unwrap();
            let user = UserStream::new(rank);
            if rank == 0 {
                wish("send_fails", 0);
                let error = expect_byte(&*comm, 1, &user).unwrap_err();
                says(&error, Status::CommFailed, "unhandled system error");
            }
            says(
                &ending(&*comm),
                Status::CommFailed,
                "NCCL sends and receives: unhandled system error",
            );
        });
    });
}

#[test]
fn connecting_that_fails_or_hangs_ends_for_all() {
    inside("connecting_that_fails_or_hangs_ends_for_all", &[], || {
        let begun = Instant::now();
        // Loads the library, so that something can be wished.
        on_ranks(1, LONG, |rank, comm| greet_all(&*comm.unwrap(), rank));
        wish("init_hangs", 1);
        for error in on_ranks(2, SHORT, |_, comm| comm.unwrap_err()) {
            assert!(
                matches!(error.status, Status::Timeout | Status::CommFailed),
                "{error}"
            );
            assert!(
                error.message.contains("connecting ranks did not end within"),
                "{error}"
            );
        }
        wish("init_hangs", -1);
        wish("init_fails", 2);
        for error in on_ranks(3, LONG, |_, comm| comm.unwrap_err()) {
            says(
                &error,
                Status::CommFailed,
                "ncclCommInitRankConfig: unhandled system error",
            );
        }
        wish("init_fails", -1);
        let mut calls = record();
        calls.retain(|c| c.starts_with("abort"));
        assert_eq!(calls, ["abort 0", "abort 0", "abort 1", "abort 1", "abort 2"]);
        on_ranks(2, LONG, |rank, comm| greet_all(&*comm.unwrap(), rank));
        assert!(begun.elapsed() < LONG);
    });
}

#[test]
fn what_one_rank_lacks_all_ranks_hear_at_once() {
    inside("what_one_rank_lacks_all_ranks_hear_at_once", &[], || {
        let meet = |devices: [i32; 2]| {
            let id = UniqueId::create().unwrap();
            let begun = Instant::now();
            let ranks = [0, 1].map(|rank| {
                let id = id.clone();
                thread::spawn(move || from_id(&id, (rank, 2), devices[rank], &options(LONG)).unwrap_err())
            });
            let errors = ranks.map(|r| r.join().unwrap());
            assert!(begun.elapsed() < LONG / 2);
            errors
        };
        let [zero, one] = meet([0, 99]);
        says(&one, Status::NoDevice, "no CUDA device 99");
        says(
            &zero,
            Status::CommFailed,
            "rank 1 failed with NoDevice: there is no CUDA device 99",
        );
        for error in meet([2, 2]) {
            says(
                &error,
                Status::CommFailed,
                "ranks 0 and 1 are both on CUDA device 2",
            );
        }
    });
}

#[test]
fn a_rank_that_leaves_fails_those_who_wait_for_it() {
    inside("a_rank_that_leaves_fails_those_who_wait_for_it", &[], || {
        let barrier = Barrier::new(3);
        on_ranks(3, LONG, |rank, comm| {
            let comm = comm.unwrap();
            greet_all(&*comm, rank);
            barrier.wait();
            if rank == 2 {
                comm.leave();
                says(
                    &comm.all_gather(b"", Stream::NULL).unwrap_err(),
                    Status::CommDestroyed,
                    "rank 2 has destroyed",
                );
                barrier.wait();
                return;
            }
            let user = UserStream::new(rank);
            if rank == 0 {
                // Before or after the other has left.
                let _ = expect_byte(&*comm, 2, &user);
            }
            barrier.wait();
            says(
                &ending(&*comm),
                Status::CommFailed,
                "rank 2 left the communicator",
            );
            user.synchronize();
        });
        let calls = record();
        assert!(calls.contains(&"destroy 2".to_owned()), "{calls:?}");
    });
}

#[test]
fn leaving_ends_also_where_nccl_does_not() {
    inside("leaving_ends_also_where_nccl_does_not", &[], || {
        on_ranks(2, 3 * SHORT, |rank, comm| {
            let comm = comm.unwrap();
            greet_all(&*comm, rank);
            if rank == 1 {
                wish("finalize_hangs", 1);
            }
            let begun = Instant::now();
            comm.leave();
            assert!(begun.elapsed() < LONG / 4);
        });
        assert_eq!(record(), ["abort 1", "destroy 0", "finalize 0", "finalize 1"]);
    });
}

/// Communicators that a framework made: raw handles, on devices 0 and up.
fn framework(size: usize) -> Vec<usize> {
    let mut raw = vec![0usize; size];
    type InitAll = unsafe extern "C" fn(*mut usize, i32, *const c_void) -> i32;
    // SAFETY: the type of NCCL; there is room for `size` handles.
    let code = unsafe { nccl::<InitAll>("ncclCommInitAll")(raw.as_mut_ptr(), size as i32, std::ptr::null()) };
    assert_eq!(code, 0);
    raw
}

fn on_adopted(raw: &[usize], abort: bool, f: impl Fn(usize, Arc<magi_attn::comm::nccl::NcclComm>) + Sync) {
    thread::scope(|scope| {
        for (rank, &raw) in raw.iter().enumerate() {
            let f = &f;
            scope.spawn(move || {
                // SAFETY: a handle of NCCL's that stays.
                let comm = unsafe { adopt(raw as *mut c_void, abort, &options(LONG)) }.unwrap();
                assert_eq!(comm.rank(), rank);
                f(rank, comm);
            });
        }
    });
}

/// As `greet_all`, until every rank has done it: an end that one declares would reach others in the middle of it.
fn greet_together(comm: &dyn Communicator, rank: usize) {
    greet_all(comm, rank);
    // An error: a rank was through and went on to its end.
    let _ = comm.all_gather(&[0], Stream::NULL);
}

#[test]
fn an_adopted_communicator_stays_its_owners() {
    inside("an_adopted_communicator_stays_its_owners", &[], || {
        let raw = framework(3);
        for _ in 0..2 {
            on_adopted(&raw, true, |rank, comm| {
                greet_all(&*comm, rank);
                let all = comm.all_gather(&[rank as u8], Stream::NULL).unwrap();
                assert_eq!(all, [[0], [1], [2]]);
            });
        }
        on_adopted(&raw, false, |rank, comm| {
            greet_together(&*comm, rank);
            if rank == 0 {
                comm.abort("a test");
            }
            says(&ending(&*comm), Status::Aborted, "a test");
        });
        assert_eq!(record(), Vec::<String>::new(), "neither aborted nor destroyed");
        on_adopted(&raw, true, |rank, comm| {
            greet_together(&*comm, rank);
            if rank == 0 {
                comm.abort("a test");
            }
            says(&ending(&*comm), Status::Aborted, "a test");
        });
        assert_eq!(record(), ["abort 0", "abort 1", "abort 2"]);
    });
}

#[test]
fn a_launched_process_alone_is_a_communicator() {
    inside("a_launched_process_alone_is_a_communicator", &[], || {
        let launch = Launch {
            rank: 0,
            world: 1,
            local_rank: Some(3),
            host: "nowhere.invalid".to_owned(),
            port: 1,
            job: String::new(),
        };
        for _ in 0..2 {
            let comm = from_launch(&launch, &options(LONG)).unwrap();
            assert_eq!((comm.size(), comm.rank()), (1, 0));
            let user = UserStream::new(3);
            let (source, mut target) = (Bytes::new(b"self"), Bytes::new(&[0; 4]));
            // SAFETY: the bytes stay.
            let ticket =
                unsafe { comm.start(&[source.send(0, 0, 4)], &[target.recv(0, 0, 4)], user.stream) }.unwrap();
            comm.finish(ticket, user.stream).unwrap();
            user.synchronize();
            assert_eq!(target.get(), b"self");
        }
        let error = from_launch(
            &Launch {
                local_rank: Some(9),
                ..launch
            },
            &options(LONG),
        );
        says(
            &error.unwrap_err(),
            Status::NoDevice,
            "process 9 of its host, and it sees 4",
        );
        assert_eq!(record().len(), 4);
    });
}

#[test]
fn communicators_leave_no_files_open() {
    inside("communicators_leave_no_files_open", &[], || {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let make = |rounds| {
            for _ in 0..rounds {
                on_ranks(2, LONG, |rank, comm| greet_all(&*comm.unwrap(), rank));
            }
        };
        make(2);
        let before = open();
        make(10);
        // A hub's thread may be about to close its last socket.
        let begun = Instant::now();
        while open() > before && begun.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(20));
        }
        assert!(open() <= before, "{} files open, {before} before", open());
    });
}
