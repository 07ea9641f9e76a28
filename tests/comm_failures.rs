//! How a local communicator ends, and who learns what.

mod comm_support;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use comm_support::{Random, exchange, on_ranks, receive, send, start};
use magi_attn::comm::Communicator;
use magi_attn::comm::local::{LocalComm, create, run};
use magi_attn::device::Stream;
use magi_attn::types::{Error, Result, Status};

/// Far below the timeout of 300 s, far above what a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(20);

fn says(error: &Error, status: Status, words: &[&str]) {
    assert_eq!(error.status, status, "{error}");
    for word in words {
        assert!(error.message.contains(word), "{error} lacks {word:?}");
    }
}

/// Every call of an ended communicator fails at once with `status`.
fn assert_ended(comm: &LocalComm, status: Status) {
    let began = Instant::now();
    assert_eq!(comm.async_error().unwrap().status, status);
    assert_eq!(start(comm, &[], &mut []).unwrap_err().status, status);
    assert_eq!(receive(comm, 0, 1).unwrap_err().status, status);
    assert_eq!(comm.all_gather(b"x", Stream::NULL).unwrap_err().status, status);
    comm.abort("again");
    assert_eq!(comm.async_error().unwrap().status, status, "the first cause wins");
    assert!(began.elapsed() < AT_ONCE);
}

#[test]
fn a_rank_that_never_shows_up() {
    let comms = create(3).unwrap();
    comms[0].set_timeout(Duration::from_millis(50));
    let began = Instant::now();
    thread::scope(|scope| {
        let patient = scope.spawn(|| receive(&comms[1], 2, 1).unwrap_err());
        let error = receive(&comms[0], 2, 1).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(50));
        says(&error, Status::Timeout, &["rank 0 waited 50ms for rank 2"]);
        says(
            &patient.join().unwrap(),
            Status::CommFailed,
            &["rank 0 waited 50ms for rank 2"],
        );
    });
    assert!(began.elapsed() < AT_ONCE);
    assert_ended(&comms[0], Status::Timeout);
    assert_ended(&comms[1], Status::CommFailed);
    assert_ended(&comms[2], Status::CommFailed);
}

#[test]
fn a_message_in_time_is_not_late() {
    let comms = create(2).unwrap();
    comms[0].set_timeout(Duration::ZERO);
    send(&comms[1], 0, b"early").unwrap();
    assert_eq!(receive(&comms[0], 1, 5).unwrap(), b"early");
    let error = receive(&comms[0], 1, 5).unwrap_err();
    says(&error, Status::Timeout, &["rank 0 waited 0ns for rank 1"]);
}

#[test]
fn abort_wakes_everybody() {
    let comms = create(64).unwrap();
    let began = Instant::now();
    thread::scope(|scope| {
        let waiting: Vec<_> = comms
            .iter()
            .map(|comm| scope.spawn(move || receive(comm, (comm.rank() + 1) % 64, 1)))
            .collect();
        // From a thread that runs no rank, while the ranks wait or are about to.
        thread::sleep(Duration::from_millis(20));
        comms[5].abort("the user pressed a button");
        for thread in waiting {
            let error = thread.join().unwrap().unwrap_err();
            says(&error, Status::Aborted, &["rank 5", "the user pressed a button"]);
        }
    });
    assert!(began.elapsed() < AT_ONCE);
    for comm in &comms {
        assert_ended(comm, Status::Aborted);
    }
}

#[test]
fn abort_in_the_middle_of_traffic_never_hangs() {
    for round in 0..40 {
        let began = Instant::now();
        let errors = on_ranks(6, |rank, comm| {
            let mut random = Random::of(&[round, rank]);
            let steps = random.below(60);
            for step in 0.. {
                if rank == round % 6 && step == steps {
                    comm.abort("enough");
                }
                let sends: Vec<_> = (0..6).map(|peer| (peer, vec![step as u8; 50])).collect();
                let mut recvs: Vec<_> = (0..6).map(|peer| (peer, vec![0; 50])).collect();
                let result = match step % 3 {
                    0 => comm.all_gather(&sends[0].1, Stream::NULL).map(|_| ()),
                    _ => exchange(comm, &sends, &mut recvs),
                };
                if let Err(error) = result {
                    return error;
                }
            }
            unreachable!()
        });
        assert!(errors.iter().all(|e| e.status == Status::Aborted), "{errors:?}");
        assert!(began.elapsed() < AT_ONCE);
    }
}

#[test]
fn lengths_that_differ_end_the_communicator() {
    for (sent, expected) in [(8, 9), (9, 8), (0, 1), (1, 0)] {
        let comms = create(3).unwrap();
        thread::scope(|scope| {
            let bystander = scope.spawn(|| receive(&comms[2], 0, 1).unwrap_err());
            send(&comms[0], 1, &vec![1; sent]).unwrap();
            let error = receive(&comms[1], 0, expected).unwrap_err();
            let text = format!("rank 0 sent {sent} bytes where rank 1 expects {expected}");
            says(&error, Status::CommFailed, &[&text]);
            says(&bystander.join().unwrap(), Status::CommFailed, &[&text]);
        });
        comms
            .iter()
            .for_each(|comm| assert_ended(comm, Status::CommFailed));
    }
}

#[test]
fn calls_in_another_order_end_the_communicator() {
    let errors = on_ranks(2, |rank, comm| match rank {
        0 => comm.all_gather(&[1; 4], Stream::NULL).map(|_| ()),
        _ => exchange(comm, &[(0, vec![1; 4])], &mut [(0, vec![0; 4])]),
    });
    for error in errors {
        says(
            &error.unwrap_err(),
            Status::CommFailed,
            &["rank 0", "rank 1", "all_gather"],
        );
    }
}

#[test]
fn what_a_rank_sent_before_it_left_still_arrives() {
    let mut comms = create(3).unwrap();
    let leaver = comms.remove(1);
    let (first, third) = (&comms[0], &comms[1]);
    let began = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let sent = receive(third, 1, 4).unwrap();
            (sent, receive(third, 1, 1).unwrap_err())
        });
        send(&leaver, 0, b"bye").unwrap();
        thread::sleep(Duration::from_millis(10));
        send(&leaver, 2, b"all!").unwrap();
        drop(leaver);
        let (sent, error) = waiting.join().unwrap();
        assert_eq!(sent, b"all!");
        says(&error, Status::CommFailed, &["rank 1 left", "rank 2"]);
    });
    assert!(began.elapsed() < AT_ONCE);
    assert_ended(first, Status::CommFailed);
}

#[test]
fn leaving_harms_nobody_who_needs_nothing() {
    let comms = create(3).unwrap();
    send(&comms[2], 0, b"last words").unwrap();
    send(&comms[0], 2, b"never read").unwrap();
    comms[2].leave();
    comms[2].leave();
    let error = comms[2].all_gather(b"x", Stream::NULL).unwrap_err();
    says(&error, Status::CommDestroyed, &["rank 2"]);
    assert_eq!(comms[2].async_error(), None);
    assert_eq!(receive(&comms[0], 2, 10).unwrap(), b"last words");
    send(&comms[0], 1, b"on").unwrap();
    assert_eq!(receive(&comms[1], 0, 2).unwrap(), b"on");
    assert_eq!(comms[0].async_error(), None);
    let error = send(&comms[1], 2, b"hello?").unwrap_err();
    says(&error, Status::CommFailed, &["rank 2 left", "rank 1"]);
    assert_ended(&comms[0], Status::CommFailed);
}

#[test]
fn a_rank_destroyed_while_it_waits_is_woken() {
    let comms = create(2).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| receive(&comms[0], 1, 1).unwrap_err());
        thread::sleep(Duration::from_millis(10));
        comms[0].leave();
        assert_eq!(waiting.join().unwrap().status, Status::CommDestroyed);
    });
}

fn wait_for_all(comm: &LocalComm) -> Result<()> {
    comm.all_gather(&[comm.rank() as u8], Stream::NULL).map(|_| ())
}

#[test]
fn run_returns_the_first_error_and_wakes_the_others() {
    for (size, culprit) in [(1, 0), (2, 1), (7, 3), (64, 40)] {
        let woken = parking_lot::Mutex::new(Vec::new());
        let began = Instant::now();
        let body = |rank: usize, comm: Arc<LocalComm>, panics: bool| {
            if rank != culprit {
                // Twice: the culprit only takes part in the first. A slow rank may still be there when it is woken.
                return wait_for_all(&comm)
                    .and_then(|()| wait_for_all(&comm))
                    .inspect_err(|error| woken.lock().push(error.clone()));
            }
            wait_for_all(&comm)?;
            if panics {
                panic!("boom {}", rank * 2);
            }
            Err(Error::argument("tau is 7"))
        };

        let error = run(size, |rank, comm| body(rank, comm, false)).unwrap_err();
        says(&error, Status::InvalidArgument, &["tau is 7"]);
        assert_eq!(woken.lock().len(), size - 1);
        let name = format!("rank {culprit} ");
        for error in woken.lock().drain(..) {
            says(
                &error,
                Status::CommFailed,
                &[&name, "tau is 7", "InvalidArgument"],
            );
        }

        let error = run(size, |rank, comm| body(rank, comm, true)).unwrap_err();
        let text = format!("boom {}", culprit * 2);
        says(&error, Status::Internal, &[&name, &text]);
        assert_eq!(woken.lock().len(), size - 1);
        for error in woken.lock().iter() {
            says(error, Status::CommFailed, &[&name, &text, "Internal"]);
        }
        assert!(began.elapsed() < AT_ONCE);
    }
}

#[test]
fn run_prefers_the_cause_to_what_follows_from_it() {
    for _ in 0..10 {
        let error = run(4, |rank, comm| {
            comm.set_timeout(if rank == 2 {
                Duration::from_millis(5)
            } else {
                Duration::from_secs(300)
            });
            let result = receive(&comm, (rank + 1) % 4, 1).map(|_| ());
            if rank == 2 {
                // The ranks that it wakes return before it does.
                thread::sleep(Duration::from_millis(10));
            }
            result
        })
        .unwrap_err();
        says(&error, Status::Timeout, &["rank 2 waited 5ms for rank 3"]);
    }
}

#[test]
fn run_wakes_ranks_that_wait_for_one_that_returned() {
    let error = run(
        3,
        |rank, comm| if rank == 0 { Ok(()) } else { wait_for_all(&comm) },
    )
    .unwrap_err();
    says(&error, Status::CommFailed, &["rank 0 left"]);
}

#[test]
fn run_forgives_an_abort_that_everybody_handled() {
    run(3, |rank, comm| {
        if rank == 1 {
            comm.abort("done here");
        }
        while comm.async_error().is_none() {
            thread::yield_now();
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn handles_end_with_run() {
    let kept = parking_lot::Mutex::new(None);
    run(2, |rank, comm| {
        if rank == 0 {
            *kept.lock() = Some(comm);
        }
        Ok(())
    })
    .unwrap();
    let comm = kept.into_inner().unwrap();
    assert_eq!(wait_for_all(&comm).unwrap_err().status, Status::CommDestroyed);
}
