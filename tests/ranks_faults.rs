//! Ranks on CUDA devices whose calls go wrong. With devices of the machine where there are any, else with those of tests/host_ranks.

mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_cases;
mod ranks_support;

use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common_backend::Layout;
use common_ranks::Place;
use magi_attn::runtime::{Context, Key, attn_args, forward, movement};
use magi_attn::types::{DType, Result, Side, Status, Tensor};
use nccl_support::{SHORT, driver, ending, is_inside};
use ranks_cases::{Case, Held, Hook, assert_near, context_of};
use ranks_support::{here, on_ranks, worlds};

/// Streams of this process say that they are being captured while `f` runs. Only the driver for tests takes such a wish.
fn capturing(f: impl FnOnce()) {
    // SAFETY: an int of the driver for tests.
    let wish: *mut i32 = unsafe { driver("fake_capturing") };
    // SAFETY: ranks take turns with this, and nobody else makes calls meanwhile.
    unsafe { wish.write_volatile(1) };
    f();
    // SAFETY: as above.
    unsafe { wish.write_volatile(0) };
}

#[test]
fn captured_collective_calls_are_refused_before_anything_begins() {
    const NAME: &str = "captured_collective_calls_are_refused_before_anything_begins";
    here(NAME, &[], || {
        if !is_inside(NAME) {
            return println!("skipped: a stream of a real device is not captured by a wish");
        }
        let (case, barrier) = (Case::new(64, 2, 1), Barrier::new(2));
        on_ranks(2, |r| {
            let context = context_of(r);
            let key = case.key(&context);
            case.works(r, &key);
            let fresh = Case::new(80, 2, 1).key(&context);
            let mut held = Held::new(&case, r, &key);
            r.user.synchronize();
            barrier.wait();
            let mut refused = Vec::new();
            if r.rank == 0 {
                capturing(|| {
                    refused.push(forward::run(&key, &held.forward(&case), r.stream()));
                    refused.push(fresh.prepare(r.stream()));
                    let whole = r.unwritten(&[64, 2, 8], DType::F64, Layout::Dense);
                    let (part, names) = (r.tensor(&mut held.out), ["local_x", "x"]);
                    refused.push(movement::undispatch(
                        &key,
                        Side::Q,
                        part,
                        whole.tensor(),
                        names,
                        r.stream(),
                    ));
                });
            }
            // Only now: a rank that panicked before would leave the other one waiting.
            barrier.wait();
            for error in refused.into_iter().map(Result::unwrap_err) {
                assert_eq!(error.status, Status::NotSupported, "{error}");
                assert!(error.message.contains("being captured"), "{error}");
            }
            assert!(context.async_error().is_none());
            case.works(r, &key);
            fresh.prepare(r.stream()).unwrap();
        });
    });
}

#[test]
fn a_rank_alone_may_be_captured() {
    here("a_rank_alone_may_be_captured", &[], || {
        if !is_inside("a_rank_alone_may_be_captured") {
            return println!("skipped: a stream of a real device is not captured by a wish");
        }
        let case = Case::new(64, 1, 1);
        on_ranks(1, |r| {
            let context = context_of(r);
            let [key, unprepared] = [64, 72].map(|n| Case::new(n, 1, 1).key(&context));
            // Tiles are there, and the workspace is not.
            unprepared.workspace_bytes().unwrap();
            key.prepare(r.stream()).unwrap();
            let mut held = Held::new(&case, r, &key);
            let whole = r.unwritten(&[64, 2, 8], DType::F64, Layout::Dense);
            capturing(|| {
                assert_eq!(
                    unprepared.prepare(r.stream()).unwrap_err().status,
                    Status::NotSupported
                );
                let args = attn_args::Forward {
                    max_logits: Some(held.maxima.tensor()),
                    ..held.forward(&case)
                };
                forward::run(&key, &args, r.stream()).unwrap();
                let (part, names) = (r.tensor(&mut held.out), ["local_x", "x"]);
                movement::undispatch(&key, Side::Q, part, whole.tensor(), names, r.stream()).unwrap();
            });
            assert_near(&r.download(&whole), &case.want.out);
            assert!(context.async_error().is_none());
            case.works(r, &key);
        });
    });
}

/// Waits until everybody has an error, at most as long as the longest timeout and a little.
fn everybody_fails(context: &Context, begun: Instant) -> Status {
    let error = ending(context.comm());
    assert!(begun.elapsed() < SHORT + Duration::from_secs(2), "{error}");
    error.status
}

#[test]
fn a_rank_that_asks_for_more_than_the_others_ends_in_an_error() {
    here(
        "a_rank_that_asks_for_more_than_the_others_ends_in_an_error",
        &[],
        || {
            for world in worlds(&[2, 3]) {
                let case = Case::new(96, world, 1);
                let seen = on_ranks(world, |r| {
                    let context = context_of(r);
                    let key = case.key(&context);
                    case.works(r, &key);
                    context.set_timeout(SHORT).unwrap();
                    let mut held = Held::new(&case, r, &key);
                    r.user.synchronize();
                    let begun = Instant::now();
                    let maxima = (r.rank == 0).then(|| held.maxima.tensor());
                    let args = attn_args::Forward {
                        max_logits: maxima,
                        ..held.forward(&case)
                    };
                    let called = forward::run(&key, &args, r.stream());
                    // The others go on with another call.
                    let whole = r.unwritten(&[96, 2, 8], DType::F64, Layout::Dense);
                    let part = r.tensor(&mut held.out);
                    let after = movement::undispatch(
                        &key,
                        Side::Q,
                        part,
                        whole.tensor(),
                        ["local_x", "x"],
                        r.stream(),
                    );
                    let status = everybody_fails(&context, begun);
                    // The stream goes on, and every later call says why.
                    r.user.synchronize();
                    let later = forward::run(&key, &held.forward(&case), r.stream()).unwrap_err();
                    assert_eq!(later.status, status, "{later}; {called:?} {after:?}");
                    status
                });
                assert!(seen.contains(&Status::Timeout), "{seen:?}");
                let known = |s: &Status| matches!(s, Status::Timeout | Status::CommFailed);
                assert!(seen.iter().all(known), "{seen:?}");
            }
        },
    );
}

#[test]
fn a_wrong_argument_on_one_rank_is_its_error_and_a_timeout_elsewhere() {
    here(
        "a_wrong_argument_on_one_rank_is_its_error_and_a_timeout_elsewhere",
        &[],
        || {
            for world in worlds(&[2, 4]) {
                let case = Case::new(96, world, 1);
                let seen = on_ranks(world, |r| {
                    let context = context_of(r);
                    let key = case.key(&context);
                    case.works(r, &key);
                    context.set_timeout(SHORT).unwrap();
                    let held = Held::new(&case, r, &key);
                    r.user.synchronize();
                    let begun = Instant::now();
                    let good = held.forward(&case);
                    if r.rank == 1 {
                        let short = Tensor::rows(&good.q, 0, good.q.tokens() - 1);
                        let wrong = attn_args::Forward { q: short, ..good };
                        let refused = forward::run(&key, &wrong, r.stream()).unwrap_err();
                        assert_eq!(refused.status, Status::ShapeMismatch);
                    } else {
                        // Where a rank fetches nothing it returns; what it waits for ends all the same.
                        let _ = forward::run(&key, &good, r.stream());
                        let _ = context.comm().all_gather(&[], r.stream());
                    }
                    let status = everybody_fails(&context, begun);
                    r.user.synchronize();
                    status
                });
                let known = |s: &Status| matches!(s, Status::Timeout | Status::CommFailed);
                assert!(
                    seen.contains(&Status::Timeout) && seen.iter().all(known),
                    "{seen:?}"
                );
            }
        },
    );
}

#[test]
fn a_rank_without_workspace_fails_on_every_rank_and_may_try_again() {
    here(
        "a_rank_without_workspace_fails_on_every_rank_and_may_try_again",
        &[],
        || {
            for world in worlds(&[2, 4]) {
                let case = Case::new(96, world, 1);
                on_ranks(world, |r| {
                    let hook = Hook::new(&r.gpu);
                    let context = context_of(r);
                    let mut config = case.job.config;
                    config.allocator = Some(hook.allocator());
                    let key = Key::create(&context, &case.job.mask, case.job.shape, config).unwrap();
                    hook.refuse.store(r.rank == 1, Ordering::SeqCst);
                    let refused = key.prepare(r.stream()).unwrap_err();
                    assert_eq!(refused.status, Status::OutOfMemory, "{refused}");
                    assert!(context.async_error().is_none());
                    hook.refuse.store(false, Ordering::SeqCst);
                    case.works(r, &key);
                    r.user.synchronize();
                    context.close();
                });
            }
        },
    );
}

#[test]
fn ranks_with_other_masks_are_told() {
    here("ranks_with_other_masks_are_told", &[], || {
        for world in worlds(&[2, 4]) {
            let cases = [96, 104].map(|n| Case::new(n, world, 1));
            on_ranks(world, |r| {
                let context = context_of(r);
                let refused = cases[usize::from(r.rank == 1)].key(&context).prepare(r.stream());
                let refused = refused.unwrap_err();
                assert_eq!(refused.status, Status::PlanMismatch, "{refused}");
                cases[0].works(r, &cases[0].key(&context));
            });
        }
    });
}

#[test]
fn a_nan_is_found_before_anything_begins() {
    here("a_nan_is_found_before_anything_begins", &[], || {
        for world in worlds(&[1, 2]) {
            let mut case = Case::new(64, world, 1);
            case.job.config.sanity_check = true;
            on_ranks(world, |r| {
                let context = context_of(r);
                let key = case.key(&context);
                case.works(r, &key);
                let held = Held::new(&case, r, &key);
                let good = held.forward(&case);
                let spoiled = r.unwritten(good.k.shape(), DType::F64, Layout::Dense);
                let k = spoiled.tensor();
                let refused = forward::run(&key, &attn_args::Forward { k, ..good }, r.stream());
                let refused = refused.unwrap_err();
                assert_eq!(refused.status, Status::InvalidArgument);
                assert!(refused.message.contains("args.k holds a NaN"), "{refused}");
                case.works(r, &key);
            });
        }
    });
}

#[test]
fn a_second_thread_on_a_communicator_is_turned_away() {
    here("a_second_thread_on_a_communicator_is_turned_away", &[], || {
        for world in worlds(&[2]) {
            let (cases, tried) = ([96, 64].map(|n| Case::new(n, world, 1)), Barrier::new(2));
            on_ranks(world, |r| {
                let context = context_of(r);
                let keys = cases.each_ref().map(|c| c.key(&context));
                if r.rank == 1 {
                    // Rank 0 waits for this one meanwhile.
                    tried.wait();
                    keys[0].prepare(r.stream()).unwrap();
                } else {
                    thread::scope(|scope| {
                        let waiting = scope.spawn(|| keys[0].prepare(r.stream()));
                        thread::sleep(Duration::from_millis(100));
                        let refused = keys[1].prepare(r.stream()).unwrap_err();
                        assert_eq!(refused.status, Status::HandleBusy, "{refused}");
                        tried.wait();
                        waiting.join().unwrap().unwrap();
                    });
                }
                cases.iter().zip(&keys).for_each(|(case, key)| case.works(r, key));
            });
        }
    });
}

#[cfg(feature = "fault")]
#[test]
fn a_failure_in_the_middle_ends_in_an_error_everywhere() {
    use magi_attn::device::fault::{Action, clear, set};

    here("a_failure_in_the_middle_ends_in_an_error_everywhere", &[], || {
        let Some(world) = worlds(&[2, 3]).last() else {
            return;
        };
        let (case, barrier) = (Case::new(96, world, 2), Barrier::new(world));
        let hits = [0, 1, 2, 3, 5, 8].map(|after| [("comm.start", after), ("comm.finish", after)]);
        let calls = [("calc_attn_forward", 0), ("calc_attn_backward", 0)];
        for (point, after) in hits.into_iter().flatten().chain(calls) {
            let seen = on_ranks(world, |r| {
                let context = context_of(r);
                let key = case.key(&context);
                case.works(r, &key);
                context.set_timeout(SHORT).unwrap();
                barrier.wait();
                if r.rank == 0 {
                    set(point, 1, Action::Error(Status::OutOfMemory), after);
                }
                barrier.wait();
                let begun = Instant::now();
                let outcome = case.answer(r, &key);
                assert!(outcome.is_err() || r.rank != 1, "{point} {after} was not met");
                let status = everybody_fails(&context, begun);
                r.user.synchronize();
                status
            });
            clear();
            let known = |s: &Status| matches!(s, Status::Timeout | Status::CommFailed);
            assert!(seen.iter().all(known), "{point} {after}: {seen:?}");
        }
    });
}
