//! Ranks on CUDA devices whose calls go wrong, and memory that goes while a device uses it. With devices of the machine where there
//! are any, else with those of tests/host_ranks.

mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common_backend::{Layout, Random, operands, shape};
use common_ranks::{Job, Place, assert_close, rank_on};
use common_reference::{Answer, Arithmetic, Operands, attention};
use magi_attn::comm::Communicator;
use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::runtime::{Context, Key, attn_args, forward, movement};
use magi_attn::types::{Allocator, DType, Mask, Result, Side, Status, Tensor};
use nccl_support::{SHORT, driver, ending, is_inside};
use ranks_support::{DeviceTensor, Gate, Rank, here, on_ranks, worlds};

/// Largest error of f64 results, relative to the largest element of the tensor.
const BOUND: f64 = 1e-10;

/// A causal job of so many tokens, its operands and its answer.
struct Case {
    job: Job,
    operands: Operands,
    want: Answer,
}

impl Case {
    fn new(tokens: i64, world: usize, degree: i32) -> Case {
        let mask = Mask::from_sliding_window(tokens, tokens, (-1, 0), 0).unwrap();
        let s = shape(2, 1, 8, 8, DType::F64);
        let operands = operands(&mut Random(tokens as u64), &mask, &s);
        let want = attention(&mask, &operands, Arithmetic::Exact);
        let mut job = Job::new(&mask, s, world, degree, 8);
        job.config.sanity_check = false;
        Case { job, operands, want }
    }

    fn key(&self, context: &Arc<Context>) -> Arc<Key> {
        Key::create(context, &self.job.mask, self.job.shape, self.job.config).unwrap()
    }

    fn answer(&self, r: &Rank, key: &Key) -> Result<Answer> {
        rank_on(r, &self.job, &self.operands, key)
    }

    /// Fails unless `key` computes what it must.
    fn works(&self, r: &Rank, key: &Key) {
        assert_close("works", &self.answer(r, key).unwrap(), &self.want, BOUND);
    }
}

fn context_of(r: &Rank) -> Arc<Context> {
    let comm: Arc<dyn Communicator> = r.comm.clone();
    Context::new(comm)
}

/// The tensors of one forward call on one rank.
struct Held {
    q: DeviceTensor,
    k: DeviceTensor,
    v: DeviceTensor,
    out: DeviceTensor,
    lse: DeviceTensor,
    maxima: DeviceTensor,
}

impl Held {
    fn new(case: &Case, r: &Rank, key: &Key) -> Held {
        let s = case.job.shape;
        let rows = |side| key.local_tokens(side).unwrap();
        let local = |side, values: &[f64], row: &[i64]| {
            let held = common_ranks::local_on(r, key, side, Some(values), row, (s.dtype, Layout::Dense));
            held.unwrap()
        };
        let unwritten = |shape: &[i64], dtype| r.unwritten(shape, dtype, Layout::Dense);
        Held {
            q: local(Side::Q, &case.operands.q, &[s.heads_q, s.head_dim]),
            k: local(Side::K, &case.operands.k, &[s.heads_kv, s.head_dim]),
            v: local(Side::K, &case.operands.v, &[s.heads_kv, s.head_dim_v]),
            out: unwritten(&[rows(Side::Q), s.heads_q, s.head_dim_v], s.dtype),
            lse: unwritten(&[rows(Side::Q), s.heads_q], s.dtype),
            maxima: unwritten(&[s.heads_q], DType::F32),
        }
    }

    fn forward(&self, case: &Case) -> attn_args::Forward {
        attn_args::Forward {
            q: self.q.tensor(),
            k: self.k.tensor(),
            v: self.v.tensor(),
            sink: None,
            softmax_scale: case.operands.scale,
            softcap: 0.0,
            out: self.out.tensor(),
            lse: Some(self.lse.tensor()),
            max_logits: None,
        }
    }

    /// out of all ranks.
    fn out(&mut self, r: &Rank, key: &Key) -> Vec<f64> {
        common_ranks::gather_on(r, key, Side::Q, &mut self.out).unwrap()
    }
}

fn assert_near(have: &[f64], want: &[f64]) {
    let near = |(h, w): (&f64, &f64)| (h - w).abs() < BOUND;
    assert!(have.len() == want.len() && have.iter().zip(want).all(near));
}

/// A caller's allocator on one device that counts what is freed, and what of it while a gate was closed.
struct Hook {
    gpu: Arc<Gpu>,
    blocks: Mutex<HashMap<usize, DeviceMemory>>,
    open: AtomicBool,
    frees: AtomicUsize,
    early: AtomicUsize,
    refuse: AtomicBool,
}

impl Hook {
    fn new(gpu: &Arc<Gpu>) -> Box<Hook> {
        Box::new(Hook {
            gpu: gpu.clone(),
            blocks: Mutex::default(),
            open: AtomicBool::new(true),
            frees: AtomicUsize::new(0),
            early: AtomicUsize::new(0),
            refuse: AtomicBool::new(false),
        })
    }

    fn allocator(&self) -> Allocator {
        Allocator {
            alloc: hook_alloc,
            free: hook_free,
            userdata: std::ptr::from_ref(self).cast_mut().cast(),
        }
    }
}

unsafe extern "C" fn hook_alloc(bytes: usize, hook: *mut c_void) -> *mut c_void {
    // SAFETY: `Hook::allocator` passes a hook, which tests keep.
    let hook = unsafe { &*hook.cast::<Hook>() };
    if hook.refuse.load(Ordering::SeqCst) {
        return std::ptr::null_mut();
    }
    let memory = DeviceMemory::new(&hook.gpu, bytes).unwrap();
    let at = memory.as_ptr();
    hook.blocks.lock().unwrap().insert(at as usize, memory);
    at.cast()
}

unsafe extern "C" fn hook_free(at: *mut c_void, _: usize, hook: *mut c_void) {
    // SAFETY: as in `hook_alloc`.
    let hook = unsafe { &*hook.cast::<Hook>() };
    hook.frees.fetch_add(1, Ordering::SeqCst);
    if !hook.open.load(Ordering::SeqCst) {
        hook.early.fetch_add(1, Ordering::SeqCst);
    }
    // Its memory is not freed, which would wait: an allocator that pools gives it to the next who asks.
    std::mem::forget(hook.blocks.lock().unwrap().remove(&(at as usize)).unwrap());
}

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
