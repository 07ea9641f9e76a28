//! Memory that is taken, memory that goes while a device uses it, and ranks that leave while theirs computes. With devices of the machine where there are any,
//! else with those of tests/host_ranks.

mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_cases;
mod ranks_support;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common_backend::{Layout, shape};
use common_ranks::{Job, assert_close, problem, rank_watched};
use common_reference::{Arithmetic, attention};
use magi_attn::comm::Communicator;
use magi_attn::runtime::{Key, forward};
use magi_attn::types::{DType, Mask};
use nccl_support::SHORT;
use ranks_cases::{BOUND, Case, Held, Hook, assert_near, context_of};
use ranks_support::{Gate, allocations, here, inside, key_of, on_ranks, worlds};

#[test]
fn a_hook_gets_workspace_back_when_the_device_is_done_with_it() {
    here(
        "a_hook_gets_workspace_back_when_the_device_is_done_with_it",
        &[],
        || {
            for world in worlds(&[1, 2]) {
                let (small, large) = (Case::new(64, world, 1), Case::new(256, world, 1));
                on_ranks(world, |r| {
                    let hook = Hook::new(&r.gpu);
                    let context = context_of(r);
                    let with_hook = |case: &Case| {
                        let mut config = case.job.config;
                        config.allocator = Some(hook.allocator());
                        Key::create(&context, &case.job.mask, case.job.shape, config).unwrap()
                    };
                    let [a, b] = [&small, &large].map(with_hook);
                    a.prepare(r.stream()).unwrap();
                    let mut held = Held::new(&small, r, &a);
                    let grow = || b.prepare(r.stream()).unwrap();
                    let close = || context.close();
                    let closes: [&dyn Fn(); 2] = [&grow, &close];
                    for (n, gives_back) in closes.into_iter().enumerate() {
                        hook.open.store(false, Ordering::SeqCst);
                        let gate = Gate::on(&r.user);
                        if n == 0 {
                            forward::run(&a, &held.forward(&small), r.stream()).unwrap();
                        }
                        thread::scope(|scope| {
                            scope.spawn(|| {
                                thread::sleep(Duration::from_millis(100));
                                hook.open.store(true, Ordering::SeqCst);
                                gate.open();
                            });
                            gives_back();
                        });
                        assert_eq!(
                            hook.early.load(Ordering::SeqCst),
                            0,
                            "freed while a call was under way"
                        );
                        assert_eq!(hook.frees.load(Ordering::SeqCst), n + 1);
                        if n == 0 {
                            assert_near(&held.out(r, &a), &small.want.out);
                        }
                    }
                });
            }
        },
    );
}

/// Memory of a key and its tiles, of a plan that fell out of the cache, and of a communicator's last handle.
#[test]
fn keys_may_go_while_their_calls_are_under_way() {
    here("keys_may_go_while_their_calls_are_under_way", &[], || {
        for world in worlds(&[1, 2, 4]) {
            let cases: Vec<Case> = [96, 64, 128]
                .into_iter()
                .map(|n| Case::new(n, world, 1))
                .collect();
            on_ranks(world, |r| {
                let context = context_of(r);
                for round in 0..2 {
                    let mut outs = Vec::new();
                    for case in &cases {
                        let mut config = case.job.config;
                        config.cache_size = round;
                        let key = Key::create(&context, &case.job.mask, case.job.shape, config).unwrap();
                        key.prepare(r.stream()).unwrap();
                        let mut held = Held::new(case, r, &key);
                        let gate = Gate::on(&r.user);
                        forward::run(&key, &held.forward(case), r.stream()).unwrap();
                        let opener = thread::spawn(move || {
                            thread::sleep(Duration::from_millis(30));
                            gate.open();
                        });
                        drop(key);
                        // Its plan falls out of the cache.
                        let other = cases[0].key(&context);
                        let again = Key::create(&context, &case.job.mask, case.job.shape, config).unwrap();
                        opener.join().unwrap();
                        outs.push((held.out(r, &again), &case.want.out));
                        drop(other);
                    }
                    for (have, want) in outs {
                        assert_near(&have, want);
                    }
                }
            });
        }
    });
}

/// A key that goes, because a new one takes its place in the cache, is behind the call that uses it; what is prepared next is not.
#[test]
fn a_key_is_prepared_while_the_call_of_one_that_goes_is_under_way() {
    const NAME: &str = "a_key_is_prepared_while_the_call_of_one_that_goes_is_under_way";
    here(NAME, &[], || {
        for world in worlds(&[1, 2]) {
            let cases = [128, 96, 64].map(|n| Case::new(n, world, 1));
            on_ranks(world, |r| {
                let context = context_of(r);
                let with_cache = |case: &Case| {
                    let mut config = case.job.config;
                    config.cache_size = 1;
                    Key::create(&context, &case.job.mask, case.job.shape, config).unwrap()
                };
                // Workspace for all of them, and ways between ranks.
                cases.iter().for_each(|case| case.works(r, &with_cache(case)));
                let key = with_cache(&cases[0]);
                key.prepare(r.stream()).unwrap();
                let mut held = Held::new(&cases[0], r, &key);
                let (gate, open) = (Gate::on(&r.user), AtomicBool::new(false));
                forward::run(&key, &held.forward(&cases[0]), r.stream()).unwrap();
                drop(key);
                let mut prepared_before = true;
                thread::scope(|scope| {
                    scope.spawn(|| {
                        thread::sleep(Duration::from_millis(500));
                        open.store(true, Ordering::SeqCst);
                        gate.open();
                    });
                    for case in &cases[1..] {
                        with_cache(case).prepare(r.stream()).unwrap();
                        prepared_before &= !open.load(Ordering::SeqCst);
                    }
                });
                assert!(prepared_before, "preparing waited for a call that was under way");
                assert_near(&held.out(r, &with_cache(&cases[0])), &cases[0].want.out);
            });
        }
    });
}

/// Ranks have different numbers of exchanges: what one that has left sent still arrives.
#[test]
fn a_rank_that_left_after_few_exchanges_is_no_loss() {
    here("a_rank_that_left_after_few_exchanges_is_no_loss", &[], || {
        if worlds(&[3]).next().is_none() {
            return println!("skipped: fewer than three devices");
        }
        let gone = Barrier::new(2);
        on_ranks(3, |r| {
            let mine = r.values(&[r.rank as f64 + 1.0; 8], &[8], DType::F32, Layout::Dense);
            let theirs = r.unwritten(&[8], DType::F32, Layout::Dense);
            if r.rank < 2 {
                for _ in 0..5 {
                    let other = 1 - r.rank;
                    r.exchange(&[mine.send(other)], &[theirs.recv(other)]);
                }
                assert_eq!(r.download(&theirs), [(2 - r.rank) as f64; 8]);
            }
            match r.rank {
                2 => {
                    r.exchange(&[mine.send(0)], &[]);
                    r.user.synchronize();
                    r.comm.leave();
                    gone.wait();
                }
                0 => {
                    gone.wait();
                    // The news may be a moment on its way.
                    thread::sleep(Duration::from_millis(100));
                    let late = r.unwritten(&[8], DType::F32, Layout::Dense);
                    r.exchange(&[], &[late.recv(2)]);
                    assert_eq!(r.download(&late), [3.0; 8]);
                    assert!(r.comm.async_error().is_none());
                }
                _ => {}
            }
            // Nobody else leaves before rank 0 has looked.
            r.comm.set_timeout(nccl_support::LONG);
            let _ = (r.rank < 2).then(|| r.exchange(&[mine.send(1 - r.rank)], &[theirs.recv(1 - r.rank)]));
            r.user.synchronize();
        });
    });
}

/// A timeout counts from when an exchange could begin; so does the patience of a rank that leaves.
#[test]
fn a_rank_may_leave_while_its_stream_still_computes() {
    here("a_rank_may_leave_while_its_stream_still_computes", &[], || {
        for world in worlds(&[2]) {
            on_ranks(world, |r| {
                r.comm.set_timeout(SHORT);
                let mine = r.values(&[r.rank as f64 + 1.0; 8], &[8], DType::F32, Layout::Dense);
                let theirs = r.unwritten(&[8], DType::F32, Layout::Dense);
                let (gate, other) = (Gate::on(&r.user), 1 - r.rank);
                r.exchange(&[mine.send(other)], &[theirs.recv(other)]);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        thread::sleep(3 * SHORT);
                        gate.open();
                    });
                    r.comm.leave();
                });
                assert_eq!(r.download(&theirs), [other as f64 + 1.0; 8]);
            });
        }
    });
}

/// Forward and backward calls on a prepared key, the first ones as later ones: keys in stages, strided, packed, over a mesh, queries that
/// travel, sinks of every kind.
#[test]
fn prepared_calls_take_no_memory() {
    inside("prepared_calls_take_no_memory", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        let mask = Mask::from_sliding_window(96, 96, (-1, 0), 0).unwrap();
        let job = |world, degree, chunk| Job::new(&mask, s, world, degree, chunk);
        let mut jobs: Vec<(Job, u64, usize)> =
            vec![(job(1, 1, 8), 0, 0), (job(2, 2, 8), 2, 3), (job(4, 1, 1), 3, 8)];
        let with = |change: fn(&mut Job)| {
            let mut job = job(4, 2, 8);
            change(&mut job);
            job
        };
        jobs.push((with(|j| j.layout = Layout::Padded), 1, 2));
        // Shared sinks and each query's own, added to.
        jobs.extend([2, 3].map(|seed| (with(|j| j.add_dsink = true), seed, 4)));
        let queries = with(|j| (j.config.qo_comm, j.config.balance_slack) = (true, 1000));
        jobs.push((queries, 0, 0));
        let mesh = with(|j| (j.mesh, j.config.hierarchical_comm) = (Some((2, 2)), true));
        jobs.push((mesh, 0, 0));
        for (job, seed, sinks) in &mut jobs {
            job.config.sanity_check = false;
            let o = problem(&mask, &s, *seed, *sinks);
            let want = attention(&mask, &o, Arithmetic::Exact);
            let together = Barrier::new(job.world);
            let answers = on_ranks(job.world, |r| {
                let key = key_of(job, r);
                key.prepare(r.stream()).unwrap();
                let mut runs = Vec::new();
                for _ in 0..2 {
                    let mut counts = Vec::new();
                    let answer = rank_watched(r, job, &o, &key, |_| {
                        together.wait();
                        counts.push(allocations());
                        together.wait();
                    });
                    assert!(counts[0] > 0 && counts == [counts[0]; 3], "{counts:?} of {job:?}");
                    runs.push(answer.unwrap());
                }
                runs
            });
            for answer in answers.iter().flatten() {
                assert_close("prepared", answer, &want, BOUND);
            }
        }
    });
}
