//! Keys: the cache, the comparison of plans, and what a key refuses.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key, movement};
use magi_attn::types::{
    Allocator, AttnShape, Config, DType, Device, Error, Mask, MaskType, Range, Side, Status, Tensor,
    TypedSlice,
};

/// A mask whose cells depend on `number`.
fn mask(number: i64) -> Arc<Mask> {
    let typed = TypedSlice {
        q: Range::new(0, 30 - number),
        k: Range::new(0, 30),
        mask_type: MaskType::Causal,
    };
    Arc::new(Mask::new(&[typed], 30, 30).unwrap())
}

fn shape() -> AttnShape {
    AttnShape {
        heads_q: 2,
        heads_kv: 1,
        head_dim: 8,
        head_dim_v: 8,
        dtype: DType::F64,
    }
}

fn small_chunks() -> Config {
    Config {
        chunk_size: 3,
        degree_forward: 1,
        degree_backward: 1,
        ..Config::default()
    }
}

fn alone() -> Arc<Context> {
    Context::new(local::create(1).unwrap().remove(0))
}

#[test]
fn equal_requests_share_a_plan() {
    let (context, config) = (alone(), small_chunks());
    let make = |m: &Arc<Mask>, s: AttnShape, c: Config| Key::create(&context, m, s, c).unwrap();
    let first = make(&mask(0), shape(), config);
    assert!(
        first.shares_plan(&make(&mask(0), shape(), config)),
        "an equal mask of another handle"
    );
    let other_shape = AttnShape {
        heads_q: 4,
        ..shape()
    };
    let others = [
        Config {
            chunk_size: 4,
            ..config
        },
        Config {
            degree_forward: 2,
            ..config
        },
        Config {
            degree_backward: 0,
            ..config
        },
        Config {
            backward_high_precision_reduce: true,
            ..config
        },
        Config {
            sanity_check: true,
            ..config
        },
    ];
    assert!(!first.shares_plan(&make(&mask(1), shape(), config)));
    assert!(!first.shares_plan(&make(&mask(0), other_shape, config)));
    for c in others {
        assert!(!first.shares_plan(&make(&mask(0), shape(), c)), "{c:?}");
    }
    assert!(
        first.shares_plan(&make(&mask(0), shape(), config)),
        "still there after all of these"
    );
    assert!(
        !first.shares_plan(&Key::create(&alone(), &mask(0), shape(), config).unwrap()),
        "another communicator"
    );
}

#[test]
fn the_least_recently_used_goes_first() {
    for size in 0..=4usize {
        let context = alone();
        let config = Config {
            cache_size: size,
            ..small_chunks()
        };
        let make = |n: i64| Key::create(&context, &mask(n), shape(), config).unwrap();
        // A model of what should be there, most recently used last.
        let mut held: Vec<(i64, Arc<Key>)> = Vec::new();
        for n in [0, 1, 2, 0, 3, 1, 1, 4, 0, 2, 2, 5, 4, 3, 0, 1] {
            let key = make(n);
            let known = held.iter().position(|(m, _)| *m == n);
            if let Some(i) = known {
                let (_, old) = held.remove(i);
                assert!(old.shares_plan(&key), "size {size}: {n} was forgotten");
            }
            held.push((n, key));
            let excess = held.len().saturating_sub(size);
            for (gone, old) in held.drain(..excess) {
                // What falls out lives on in its handles.
                assert_eq!(old.local_tokens(Side::Q), Ok(30), "{gone}");
            }
        }
        // Whoever was dropped is planned again.
        let first = make(9);
        (10..10 + size.max(1) as i64).for_each(|n| drop(make(n)));
        assert!(!first.shares_plan(&make(9)), "size {size}");
    }
}

/// Runs every rank to its end, without ending the communicator where one fails; the results by rank.
fn on_ranks<T: Send>(world: usize, f: impl Fn(usize, &Arc<Context>) -> T + Sync) -> Vec<T> {
    let contexts: Vec<Arc<Context>> = local::create(world)
        .unwrap()
        .into_iter()
        .map(|c| Context::new(c))
        .collect();
    std::thread::scope(|scope| {
        let f = &f;
        let threads: Vec<_> = contexts
            .iter()
            .enumerate()
            .map(|(r, c)| scope.spawn(move || f(r, c)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// The rank with another request, and what is different about it.
#[derive(Clone, Copy, Debug)]
enum Difference {
    Mask,
    Degree,
    Precision,
    Chunk,
}

#[test]
fn ranks_that_planned_differently_all_learn_of_it() {
    for world in 2..=8 {
        for difference in [
            Difference::Mask,
            Difference::Degree,
            Difference::Precision,
            Difference::Chunk,
        ] {
            let odd = (world * 3 + difference as usize) % world;
            let results = on_ranks(world, |rank, context| {
                let (mut config, mut number) = (small_chunks(), 0);
                if rank == odd {
                    match difference {
                        Difference::Mask => number = 7,
                        Difference::Degree => config.degree_backward = 3,
                        Difference::Precision => config.backward_high_precision_reduce = true,
                        Difference::Chunk => config.chunk_size = 2,
                    }
                }
                let key = Key::create(context, &mask(number), shape(), config).unwrap();
                let refused = key.prepare(Stream::NULL).unwrap_err();
                // The communicator is good: the same call with the same request works.
                assert_eq!(context.async_error(), None);
                let right = Key::create(context, &mask(0), shape(), small_chunks()).unwrap();
                right.prepare(Stream::NULL).unwrap();
                (key.hash().unwrap(), refused)
            });
            let usual = results[(odd + 1) % world].0;
            for (rank, (_, error)) in results.iter().enumerate() {
                let what = format!("rank {rank} of {world}, {difference:?}: {error}");
                assert_eq!(error.status, Status::PlanMismatch, "{what}");
                for hash in [usual, results[odd].0] {
                    assert!(error.message.contains(&format!("{hash:#018x}")), "{what}");
                }
                assert!(error.message.contains(&format!("rank {odd} compared")), "{what}");
                assert_eq!(error.message, results[0].1.message, "every rank says the same");
            }
        }
    }
}

#[test]
fn keys_prepared_in_another_order_are_a_mismatch() {
    for world in [2, 5] {
        let results = on_ranks(world, |rank, context| {
            let make = |n| Key::create(context, &mask(n), shape(), small_chunks()).unwrap();
            let (first, second) = (make(0), make(1));
            let order = if rank == 0 {
                [&second, &first]
            } else {
                [&first, &second]
            };
            let errors = order.map(|k| k.prepare(Stream::NULL).unwrap_err().status);
            // In one order it works after all.
            first.prepare(Stream::NULL).unwrap();
            second.prepare(Stream::NULL).unwrap();
            errors
        });
        assert!(
            results.iter().all(|e| *e == [Status::PlanMismatch; 2]),
            "{results:?}"
        );
    }
}

/// Refuses its first `refusals` calls.
struct Stingy {
    refusals: AtomicUsize,
    blocks: AtomicUsize,
}

unsafe extern "C" fn stingy_alloc(bytes: usize, userdata: *mut c_void) -> *mut c_void {
    // SAFETY: the test passes a Stingy that outlives the context.
    let s = unsafe { &*userdata.cast::<Stingy>() };
    let left = s
        .refusals
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    if left.is_ok() {
        return std::ptr::null_mut();
    }
    s.blocks.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the size is a multiple of the alignment.
    unsafe { libc::aligned_alloc(256, bytes.next_multiple_of(256)) }
}

unsafe extern "C" fn stingy_free(pointer: *mut c_void, _bytes: usize, userdata: *mut c_void) {
    // SAFETY: as above; `stingy_alloc` made the pointer.
    unsafe {
        (*userdata.cast::<Stingy>()).blocks.fetch_sub(1, Ordering::SeqCst);
        libc::free(pointer);
    }
}

#[test]
fn one_rank_without_memory_stops_all_and_a_retry_works() {
    for world in [1, 2, 5] {
        let poor = world / 2;
        let stingy: Vec<Stingy> = (0..world)
            .map(|r| Stingy {
                refusals: AtomicUsize::new(usize::from(r == poor) * 2),
                blocks: AtomicUsize::new(0),
            })
            .collect();
        let results: Vec<Error> = on_ranks(world, |rank, context| {
            let allocator = Allocator {
                alloc: stingy_alloc,
                free: stingy_free,
                userdata: (&raw const stingy[rank]).cast_mut().cast(),
            };
            let config = Config {
                allocator: Some(allocator),
                ..small_chunks()
            };
            let key = Key::create(context, &mask(0), shape(), config).unwrap();
            let first = key.prepare(Stream::NULL).unwrap_err();
            assert_eq!(key.prepare(Stream::NULL).unwrap_err().status, Status::OutOfMemory);
            key.prepare(Stream::NULL).unwrap();
            key.prepare(Stream::NULL).unwrap();
            assert_eq!(stingy[rank].blocks.load(Ordering::SeqCst), 1);
            first
        });
        for error in results {
            assert_eq!(error.status, Status::OutOfMemory, "{error}");
            assert!(error.message.contains(&format!("rank {poor}")), "{error}");
        }
        assert!(
            stingy.iter().all(|s| s.blocks.load(Ordering::SeqCst) == 0),
            "memory went back with the communicator"
        );
    }
}

#[test]
fn calls_take_turns() {
    let context = alone();
    let key = Key::create(&context, &mask(0), shape(), small_chunks()).unwrap();
    let session = context.enter().unwrap();
    let busy = [
        key.prepare(Stream::NULL).unwrap_err(),
        Key::create(&context, &mask(1), shape(), small_chunks())
            .err()
            .unwrap(),
    ];
    assert!(busy.iter().all(|e| e.status == Status::HandleBusy), "{busy:?}");
    // Questions do not wait for calls.
    assert_eq!(key.local_tokens(Side::K), Ok(30));
    drop(session);
    key.prepare(Stream::NULL).unwrap();
}

#[test]
fn a_second_call_is_refused_while_one_waits_for_its_peer() {
    let barrier = Barrier::new(2);
    let seen = Mutex::new(None);
    let results = on_ranks(2, |rank, context| {
        let key = Key::create(context, &mask(0), shape(), small_chunks()).unwrap();
        if rank == 1 {
            barrier.wait();
            return key.prepare(Stream::NULL);
        }
        std::thread::scope(|scope| {
            // The loop below may be in its way for a moment.
            let waiting = scope.spawn(|| {
                loop {
                    match key.prepare(Stream::NULL) {
                        Err(e) if e.status == Status::HandleBusy => {}
                        other => return other,
                    }
                }
            });
            // Until the other thread is inside, questions about the right to call succeed.
            while context.enter().is_ok() {
                std::thread::yield_now();
            }
            *seen.lock().unwrap() = key.prepare(Stream::NULL).err().map(|e| e.status);
            barrier.wait();
            waiting.join().unwrap()
        })
    });
    assert!(results.iter().all(|r| r.is_ok()), "{results:?}");
    assert_eq!(*seen.lock().unwrap(), Some(Status::HandleBusy));
}

#[test]
fn keys_of_a_destroyed_communicator_say_so() {
    let context = alone();
    let key = Key::create(&context, &mask(0), shape(), small_chunks()).unwrap();
    key.prepare(Stream::NULL).unwrap();
    let mut x = [0.0f64; 30];
    // SAFETY: the array outlives the tensors.
    let t = unsafe { Tensor::dense(x.as_mut_ptr().cast(), DType::F64, Device::Cpu, &[30]) };
    context.close();
    let refused = [
        key.prepare(Stream::NULL).err(),
        key.local_tokens(Side::Q).err(),
        key.position_ids(Side::K).err(),
        key.stats().err(),
        key.workspace_bytes().err(),
        key.hash().err(),
        movement::dispatch(&key, Side::Q, t, t, Stream::NULL).err(),
        Key::create(&context, &mask(0), shape(), small_chunks()).err(),
    ];
    for (i, error) in refused.into_iter().enumerate() {
        let error = error.unwrap_or_else(|| panic!("call {i} works on a destroyed communicator"));
        assert_eq!(error.status, Status::CommDestroyed, "call {i}: {error}");
    }
}

#[test]
fn hashes_are_of_the_plan_and_equal_on_all_ranks() {
    let hashes = on_ranks(4, |_, context| {
        let hash = |n, c| {
            Key::create(context, &mask(n), shape(), c)
                .unwrap()
                .hash()
                .unwrap()
        };
        let config = small_chunks();
        [
            hash(0, config),
            hash(1, config),
            hash(
                0,
                Config {
                    degree_forward: 3,
                    ..config
                },
            ),
            hash(
                0,
                Config {
                    cache_size: 7,
                    ..config
                },
            ),
        ]
    });
    assert!(hashes.iter().all(|h| *h == hashes[0]));
    let [usual, other_mask, other_degree, other_cache] = hashes[0];
    assert!(usual != other_mask && usual != other_degree && other_mask != other_degree);
    assert_ne!(
        usual, other_cache,
        "ranks that keep different numbers of keys would prepare at different times"
    );
}
