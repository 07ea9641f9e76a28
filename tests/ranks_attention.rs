//! Keys on CUDA devices: dispatch, attention forward and backward, undispatch over NCCL, against dense attention in f64. With
//! devices of the machine where there are any, else with those of tests/host_ranks, whose kernels run on the processor.

mod common;
mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::sync::{Arc, Mutex};

use common::{Case, load_cases};
use common_backend::{Buffer, Layout, Random, random_mask, shape};
use common_ranks::{Host, Job, Place, assert_close, over_ranks, parts, problem, rank_on, rank_watched};
use common_reference::{Arithmetic, Operands, attention};
use magi_attn::comm::{Communicator, local};
use magi_attn::device::Stream;
use magi_attn::device::cuda::Gpu;
use magi_attn::runtime::{Context, Key, attn_args, forward};
use magi_attn::types::{Config, DType, DsinkReduce, HostStage, KernelChoice, Mask, Status, Tensor};
use ranks_support::{
    CAPABILITY_8, DeviceTensor, Gate, Rank, devices, here, key_of, on_ranks, over_devices, worlds,
};

/// Largest error of f64 results, relative to the largest element of the tensor.
const BOUND: f64 = 1e-10;

/// Tokens that a case is scaled down to: f64 on emulated devices.
const TOKENS: i64 = 96;

/// Every `step`-th case of masks.json from number `first` on, small, with its number. There are at least `least`.
fn small_cases(first: usize, step: usize, least: usize) -> Vec<(usize, Case)> {
    let all = load_cases().into_iter().enumerate();
    let chosen: Vec<_> = all
        .skip(first)
        .step_by(step)
        .map(|(i, c)| (i, c.scaled(TOKENS)))
        .collect();
    assert!(chosen.len() >= least, "only {} cases", chosen.len());
    chosen
}

#[test]
fn cases_equal_dense_attention() {
    here("cases_equal_dense_attention", &[], || {
        let s = shape(2, 1, 8, 16, DType::F64);
        for (i, case) in small_cases(0, 1, 25) {
            let o = problem(&case.mask, &s, i as u64, case.sink_tokens as usize);
            let want = attention(&case.mask, &o, Arithmetic::Exact);
            for (w, world) in worlds(&[1, 2, 3, 4]).enumerate() {
                for (d, degree) in [0, 1, 2, 4, -1].into_iter().enumerate() {
                    if (i + w + d) % 4 != 0 {
                        continue;
                    }
                    let job = Job::new(&case.mask, s, world, degree, case.chunk_size);
                    let name = format!("{} on {world} devices, degree {degree}", case.name);
                    assert_close(&name, &over_devices(&job, &o, 1), &want, BOUND);
                }
            }
        }
    });
}

#[test]
fn random_masks_equal_dense_attention() {
    here("random_masks_equal_dense_attention", &[], || {
        let mut r = Random(77);
        for seed in 0..12u64 {
            let (tq, tk) = (1 + r.below(150), 1 + r.below(150));
            let tk = if seed % 2 == 0 { tq } else { tk };
            let count = 1 + r.below(8) as usize;
            let mask = random_mask(&mut r, tq, tk, count);
            let s = shape(2, 1 + r.below(2), 8, 8 + 8 * r.below(2), DType::F64);
            let o = problem(&mask, &s, seed, r.below(4) as usize);
            let want = attention(&mask, &o, Arithmetic::Exact);
            let Some(world) = worlds(&[2, 3, 4]).nth(seed as usize % 3) else {
                continue;
            };
            let mut job = Job::new(&mask, s, world, r.below(4) as i32, 1 + r.below(20));
            job.layout = [Layout::Dense, Layout::Padded, Layout::HeadsFirst][seed as usize % 3];
            job.max_logits = seed % 4 != 0;
            job.config.dsink_reduce = DsinkReduce::Sum;
            let mut want = want;
            if !job.max_logits {
                want.max_logits.clear();
            }
            assert_close(&format!("{job:?}"), &over_devices(&job, &o, 2), &want, BOUND);
        }
    });
}

/// Single keys in turn on two ranks: every run of keys is one row.
#[test]
fn many_small_runs_travel_packed() {
    here("many_small_runs_travel_packed", &[], || {
        let mask = Mask::from_sliding_window(96, 96, (-1, -1), 0).unwrap();
        for dtype in [DType::F64, DType::F32] {
            let s = shape(2, 2, 8, 8, dtype);
            let o = problem(&mask, &s, 3, 0);
            let want = attention(&mask, &o, Arithmetic::Exact);
            for world in worlds(&[2, 4]) {
                let mut job = Job::new(&mask, s, world, 1, 1);
                job.config.placement = magi_attn::types::PlacementKind::Zigzag;
                let bound = if dtype == DType::F64 { BOUND } else { 1e-5 };
                assert_close("packed", &over_devices(&job, &o, 1), &want, bound);
            }
        }
    });
}

#[test]
fn queries_travel_too() {
    here("queries_travel_too", &[], || {
        // Few queries of many see many keys.
        let s = shape(1, 1, 8, 8, DType::F64);
        for (i, case) in small_cases(0, 4, 7) {
            let o = problem(&case.mask, &s, i as u64, case.sink_tokens as usize);
            let want = attention(&case.mask, &o, Arithmetic::Exact);
            for world in worlds(&[2, 4]) {
                let mut job = Job::new(&case.mask, s, world, 1, case.chunk_size);
                job.config.qo_comm = true;
                job.config.balance_slack = 1000;
                assert_close(&case.name, &over_devices(&job, &o, 1), &want, BOUND);
            }
        }
    });
}

/// The host stage behind the remote ones, and half of it at either end: keys alone, queries that travel, and a mesh.
#[test]
fn backward_computes_the_host_stage_where_it_is_told() {
    here("backward_computes_the_host_stage_where_it_is_told", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        for (i, case) in small_cases(1, 6, 4) {
            let o = problem(&case.mask, &s, i as u64, case.sink_tokens as usize);
            let want = attention(&case.mask, &o, Arithmetic::Exact);
            for (w, world) in worlds(&[1, 2, 4]).enumerate() {
                for (d, degree) in [1, 3].into_iter().enumerate() {
                    for order in [HostStage::Last, HostStage::Split] {
                        let mut job = Job::new(&case.mask, s, world, degree, case.chunk_size);
                        job.config.bwd_hide_tail_reduce = order;
                        match (i / 6 + w + d) % 3 {
                            0 => job.config.qo_comm = true,
                            1 if world > 1 => {
                                job.mesh = Some((2, world / 2));
                                job.config.hierarchical_comm = true;
                            }
                            _ => {}
                        }
                        let name = format!("{} on {world} devices, degree {degree}, {order:?}", case.name);
                        assert_close(&name, &over_devices(&job, &o, 1), &want, BOUND);
                    }
                }
            }
        }
    });
}

#[test]
fn hosts_of_a_mesh_take_keys_in_once() {
    here("hosts_of_a_mesh_take_keys_in_once", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        for (i, case) in small_cases(0, 5, 5) {
            let o = problem(&case.mask, &s, i as u64, case.sink_tokens as usize);
            let want = attention(&case.mask, &o, Arithmetic::Exact);
            for world in worlds(&[2, 4]) {
                let mut job = Job::new(&case.mask, s, world, 2, case.chunk_size);
                job.mesh = Some((2, world / 2));
                job.config.hierarchical_comm = true;
                assert_close(&case.name, &over_devices(&job, &o, 1), &want, BOUND);
            }
        }
    });
}

/// bf16 and f16 by textbook kernels: as the processor over as many local ranks, and the same bits on every run.
#[test]
fn low_precision_equals_the_processor() {
    here("low_precision_equals_the_processor", &[CAPABILITY_8], || {
        let mask = Mask::from_sliding_window(120, 120, (-1, 0), 0).unwrap();
        for (i, dtype) in [DType::Bf16, DType::F16, DType::F32].into_iter().enumerate() {
            let s = shape(4, 2, 16, 8, dtype);
            let o = problem(&mask, &s, i as u64, 2);
            for world in worlds(&[1, 2, 4]) {
                let mut job = Job::new(&mask, s, world, i as i32, 16);
                job.round_outputs = world == 2;
                job.config.backward_high_precision_reduce = world == 4;
                job.config.compute.kernels = KernelChoice::Sdpa;
                let (have, want) = (over_devices(&job, &o, 2), over_ranks(&job, &o));
                let bound = match dtype {
                    DType::Bf16 => 1.0 / 128.0,
                    DType::F16 => 1.0 / 1024.0,
                    _ => 1e-5,
                };
                let name = format!("{} on {world} devices", dtype.name());
                for ((name_of, have), (_, want)) in parts(&have).into_iter().zip(parts(&want)) {
                    let largest = want
                        .iter()
                        .filter(|x| x.is_finite())
                        .fold(0.0f64, |m, x| m.max(x.abs()));
                    for (h, w) in have.iter().zip(want) {
                        let near = (h - w).abs() <= bound * largest.max(1e-3);
                        assert!(near || h == w, "{name}: {name_of} has {h}, must be {w}");
                    }
                }
            }
        }
    });
}

/// What a caller gives up by streams that differ from call to call: nothing.
#[test]
fn calls_on_different_streams_follow_each_other() {
    here("calls_on_different_streams_follow_each_other", &[], || {
        let mask = Mask::from_sliding_window(128, 128, (-1, 0), 0).unwrap();
        let s = shape(2, 1, 8, 8, DType::F64);
        let job = Job::new(&mask, s, worlds(&[2]).next().unwrap_or(1), 1, 8);
        let all: Vec<Operands> = (0..4).map(|seed| problem(&mask, &s, 3 * seed, 0)).collect();
        let answers = on_ranks(job.world, |r| {
            let key = key_of(&job, r);
            let streams: Vec<_> = all
                .iter()
                .map(|_| nccl_support::UserStream::new(r.rank))
                .collect();
            streams
                .into_iter()
                .zip(&all)
                .map(|(user, o)| {
                    let place = OnStream { rank: r, user };
                    rank_on(&place, &job, o, &key).unwrap()
                })
                .collect::<Vec<_>>()
        });
        for (i, o) in all.iter().enumerate() {
            let want = attention(&mask, o, Arithmetic::Exact);
            for of_rank in &answers {
                assert_close("streams", &of_rank[i], &want, BOUND);
            }
        }
    });
}

/// A rank with another stream.
struct OnStream<'a> {
    rank: &'a Rank,
    user: nccl_support::UserStream,
}

impl Place for OnStream<'_> {
    type Held = DeviceTensor;

    fn values(&self, values: &[f64], shape: &[i64], dtype: DType, layout: Layout) -> DeviceTensor {
        self.rank.values(values, shape, dtype, layout)
    }

    fn poisoned(&self, shape: &[i64], dtype: DType, layout: Layout) -> DeviceTensor {
        self.rank.unwritten(shape, dtype, layout)
    }

    fn tensor(&self, held: &mut DeviceTensor) -> Tensor {
        DeviceTensor::tensor(held)
    }

    fn read(&self, held: &mut DeviceTensor) -> Vec<f64> {
        self.user.synchronize();
        held.read()
    }

    fn stream(&self) -> Stream {
        self.user.stream
    }
}

#[test]
fn what_a_device_cannot_take_is_refused() {
    here("what_a_device_cannot_take_is_refused", &[], || {
        let mask = Mask::from_sliding_window(64, 64, (-1, 0), 0).unwrap();
        let s = shape(2, 1, 8, 8, DType::F64);
        let job = Job::new(&mask, s, 1, 1, 8);
        on_ranks(1, |r| {
            let key = key_of(&job, r);
            let mut host = Buffer::poisoned(&[64, 2, 8], DType::F64, Layout::Dense);
            let x = r.unwritten(&[64, 2, 8], DType::F64, Layout::Dense);
            let side = magi_attn::types::Side::Q;
            let refused = |from: Tensor, to: Tensor, stream: Stream| {
                magi_attn::runtime::movement::dispatch(&key, side, from, to, stream)
                    .unwrap_err()
                    .to_string()
            };
            let text = refused(host.tensor(), x.tensor(), r.stream());
            assert!(
                text.contains("x lies in host memory; this call works on CUDA device 0"),
                "{text}"
            );
            let mut config = Config::default();
            config.compute.kernels = KernelChoice::Ffa;
            let comm: Arc<dyn Communicator> = r.comm.clone();
            let ffa = Key::create(&Context::new(comm), &job.mask, s, config).unwrap();
            let text = ffa.prepare(r.stream()).unwrap_err().to_string();
            assert!(
                text.contains("config.backend ffa: ") && text.contains("dtype f64"),
                "{text}"
            );
        });
    });
}

#[test]
fn different_plans_are_told_apart() {
    here("different_plans_are_told_apart", &[], || {
        let Some(world) = worlds(&[2]).next() else { return };
        let s = shape(2, 1, 8, 8, DType::F64);
        let mask = |keys: i64| Mask::from_sliding_window(64, keys, (-1, -1), 0).unwrap();
        on_ranks(world, |r| {
            let comm: Arc<dyn Communicator> = r.comm.clone();
            let context = Context::new(comm);
            let create = |keys: i64| {
                let mask = Arc::new(mask(keys));
                let config = Config {
                    degree_forward: 1,
                    degree_backward: 1,
                    ..Config::default()
                };
                Key::create(&context, &mask, s, config).unwrap()
            };
            let error = create(60 + r.rank as i64).prepare(r.stream()).unwrap_err();
            assert_eq!(error.status, Status::PlanMismatch);
            let text = error.to_string();
            assert!(text.contains("rank 0") && text.contains("rank 1"), "{text}");
            assert_eq!(r.comm.async_error(), None, "it stays good");
            let key = create(64);
            key.prepare(r.stream()).unwrap();
            let job = Job::new(&mask(64), s, world, 1, 8);
            let o = problem(&mask(64), &s, 0, 0);
            let want = attention(&job.mask, &o, Arithmetic::Exact);
            assert_close(
                "after a mismatch",
                &rank_on(r, &job, &o, &key).unwrap(),
                &want,
                BOUND,
            );
            context.close();
            assert_eq!(key.prepare(r.stream()).unwrap_err().status, Status::CommDestroyed);
        });
    });
}

/// What a rank's passes moved by the communicator's count, and by the plan: sent and received, forward then backward.
fn moved<P: Place>(place: &P, job: &Job, o: &Operands, key: &Key) -> [[(u64, u64); 2]; 2] {
    let comm = key.context().comm();
    let mut counts = Vec::new();
    rank_watched(place, job, o, key, |_| counts.push(comm.traffic())).unwrap();
    let between = |i: usize| {
        let (before, after) = (&counts[i], &counts[i + 1]);
        (after.sent - before.sent, after.received - before.received)
    };
    let planned = |pass: usize| {
        let volume = &key.stats().unwrap().volume[pass];
        (
            volume.sent[comm.rank()] as u64,
            volume.received[comm.rank()] as u64,
        )
    };
    [[between(0), planned(0)], [between(1), planned(1)]]
}

#[test]
fn bytes_moved_are_those_of_the_plan() {
    here("bytes_moved_are_those_of_the_plan", &[CAPABILITY_8], || {
        for (i, case) in small_cases(0, 1, 25) {
            let s = shape(2, 1, 8, 16, [DType::F64, DType::Bf16][i % 2]);
            let o = problem(&case.mask, &s, 1 + i as u64, 0);
            for world in worlds(&[2, 4]) {
                let mut job = Job::new(&case.mask, s, world, i as i32 % 4, case.chunk_size);
                job.max_logits = false;
                job.config.qo_comm = i % 3 == 0;
                if i % 3 == 1 {
                    job.mesh = Some((2, world / 2));
                    job.config.hierarchical_comm = true;
                }
                job.config.backward_high_precision_reduce = i % 5 == 0;
                job.config.compute.kernels = KernelChoice::Sdpa;
                let on_devices = on_ranks(world, |r| moved(r, &job, &o, &key_of(&job, r)));
                let here = Mutex::new(Vec::new());
                local::run(world, |_, comm| {
                    let context = Context::new(comm);
                    if let Some((inter, intra)) = job.mesh {
                        context.set_mesh(inter, intra)?;
                    }
                    let key = Key::create(&context, &job.mask, job.shape, job.config)?;
                    let counts = moved(&Host, &job, &o, &key);
                    // Not while the lock is held: the other ranks are waited for.
                    here.lock().unwrap().push(counts);
                    Ok(())
                })
                .unwrap();
                for [forward, backward] in on_devices.into_iter().chain(here.into_inner().unwrap()) {
                    assert_eq!(forward[0], forward[1], "forward of {} on {world}", case.name);
                    assert_eq!(backward[0], backward[1], "backward of {} on {world}", case.name);
                }
            }
        }
    });
}

/// bf16 and f16 by the fast kernels of compute capability 9.0, where there are such devices: near the processor.
#[test]
fn fast_kernels_stay_close_to_the_processor() {
    if devices() == 0 || Gpu::open(0).unwrap().properties().major != 9 {
        println!("skipped: no device of compute capability 9.0");
        return;
    }
    let ends = [0, 70, 390, 401, 700];
    let docs = Mask::from_cu_seqlens(&ends, &ends, true, (-1, -1), 0).unwrap();
    let causal = Mask::from_sliding_window(700, 700, (-1, 0), 0).unwrap();
    let window = Mask::from_sliding_window(700, 700, (99, 0), 3).unwrap();
    let mut r = Random(5);
    let random = random_mask(&mut r, 517, 640, 9);
    let dims = [(64, 64), (128, 128), (192, 128), (256, 256), (72, 40)];
    for (m, mask) in [docs, causal, window, random].iter().enumerate() {
        for (d, (qk, v)) in dims.into_iter().enumerate() {
            let dtype = [DType::Bf16, DType::F16][(m + d) % 2];
            let s = shape(4, [1, 2, 4][d % 3], qk, v, dtype);
            let o = problem(mask, &s, (m + d) as u64, (m + d) % 3);
            for world in worlds(&[1, 2, 4]) {
                let mut job = Job::new(mask, s, world, (m + d) as i32 % 4, 64);
                job.round_outputs = d % 2 == 0;
                job.max_logits = m % 2 == 0;
                job.config.qo_comm = d == 1;
                job.config.sanity_check = false;
                job.config.compute.kernels = KernelChoice::Ffa;
                job.config.compute.deterministic = m == 3;
                let times = if m == 3 { 3 } else { 1 };
                let have = over_devices(&job, &o, times);
                // Host memory has the textbook alone.
                job.config.compute.kernels = KernelChoice::Default;
                let want = over_ranks(&job, &o);
                let bound = if dtype == DType::F16 { 4e-3 } else { 3e-2 };
                for ((name, have), (_, want)) in parts(&have).into_iter().zip(parts(&want)) {
                    let largest = want
                        .iter()
                        .filter(|x| x.is_finite())
                        .fold(0.0f64, |m, x| m.max(x.abs()));
                    for (i, (h, w)) in have.iter().zip(want).enumerate() {
                        let near = (h - w).abs() <= bound * largest.max(0.1);
                        assert!(near || h == w, "{name}[{i}] is {h}, not {w}, in {job:?}");
                    }
                }
            }
        }
    }
}

/// The device still works with a key's tiles when nobody holds the key any more: the host waits for nothing, and what is
/// freed is not used afterwards (the devices of tests/host_ranks poison it).
#[test]
fn a_key_goes_while_its_call_is_under_way() {
    here("a_key_goes_while_its_call_is_under_way", &[], || {
        let s = shape(2, 1, 8, 8, DType::F64);
        let mask = |tokens: i64| Mask::from_sliding_window(tokens, tokens, (-1, 0), 0).unwrap();
        let mut job = Job::new(&mask(64), s, 1, 1, 8);
        job.config.cache_size = 0;
        job.config.sanity_check = false;
        let o = problem(&job.mask, &s, 0, 0);
        let want = attention(&job.mask, &o, Arithmetic::Exact);
        on_ranks(1, |r| {
            let comm: Arc<dyn Communicator> = r.comm.clone();
            let context = Context::new(comm);
            let create = |tokens| Key::create(&context, &Arc::new(mask(tokens)), s, job.config).unwrap();
            let key = create(64);
            key.prepare(r.stream()).unwrap();
            let values =
                |x: &[f64], row: &[i64]| r.values(x, &[&[64], row].concat(), DType::F64, Layout::Dense);
            let (q, k, v) = (
                values(&o.q, &[2, 8]),
                values(&o.k, &[1, 8]),
                values(&o.v, &[1, 8]),
            );
            let (out, lse) = (
                r.unwritten(&[64, 2, 8], DType::F64, Layout::Dense),
                r.unwritten(&[64, 2], DType::F64, Layout::Dense),
            );
            let gate = Gate::on(&r.user);
            let args = attn_args::Forward {
                q: q.tensor(),
                k: k.tensor(),
                v: v.tensor(),
                sink: None,
                softmax_scale: o.scale,
                softcap: o.cap,
                out: out.tensor(),
                lse: Some(lse.tensor()),
                max_logits: None,
            };
            forward::run(&key, &args, r.stream()).unwrap();
            drop(key);
            // The key that was made last is this one now.
            drop(create(72));
            gate.open();
            let got = r.download(&out);
            for (got, want) in got.iter().zip(&want.out) {
                assert!((got - want).abs() < 1e-10, "{got} for {want}");
            }
        });
    });
}
