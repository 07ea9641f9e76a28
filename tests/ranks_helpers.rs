//! Kernels of several devices at once, on streams, between exchanges: what the driver for ranks (tests/host_ranks) promises,
//! and helpers and textbook attention on it against the CPU backend. The host waits for nothing between launches.

mod common_backend;
mod common_cuda;
mod common_reference;
mod nccl_support;
mod ranks_support;

use std::time::Instant;

use common_backend::*;
use common_reference::{Answer, Operands};
use magi_attn::backend::cuda::embedded;
use magi_attn::backend::cuda::kernels;
use magi_attn::backend::cuda::textbook::Textbook;
use magi_attn::backend::cuda::textbook_params::tile_shape;
use magi_attn::backend::cuda::tile_lists::DeviceTiles;
use magi_attn::backend::cuda::walk::Walk;
use magi_attn::backend::{Backend, BackwardArgs, CpuBackend, CudaBackend, ForwardArgs};
use magi_attn::comm::Communicator;
use magi_attn::device::cuda::{Arguments, DeviceMemory, Event, Launch, StreamMemory, pointer};
use magi_attn::plan::tiles::{StageRows, key_tiles, query_tiles};
use magi_attn::types::{AttnShape, DType, Device, Mask, Range, StageSlice, Status, Tensor};
use nccl_support::UserStream;
use ranks_support::{CAPABILITY_8, DeviceTensor, Gate, Rank, fails_inside, inside, on_ranks};

const WORLD: usize = 3;

fn near(got: &[f64], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let good = g == w || (g - w).abs() <= bound * w.abs().max(1.0);
        assert!(good, "{what}[{i}] is {g}, not {w}");
    }
}

// ---- helpers

/// Ranges of `[0, 30)`, not sorted, one of them empty, some rows twice.
fn ranges() -> Vec<Range> {
    [(20, 25), (3, 4), (7, 7), (0, 9), (22, 30)]
        .map(|(a, b)| Range::new(a, b))
        .to_vec()
}

/// Shape, dtype and layout of the tensors of one rank. Those that travel are dense.
fn helper_tensors() -> [(Vec<i64>, DType, Layout); 11] {
    let packed = ranges().iter().map(Range::len).sum();
    let rows = |n| vec![n, 3, 8];
    [
        (rows(30), DType::Bf16, Layout::HeadsFirst), // 0: what is gathered
        (rows(packed), DType::Bf16, Layout::Dense),  // 1: the gathered
        (rows(packed), DType::Bf16, Layout::Dense),  // 2: the other rank's
        (rows(30), DType::F32, Layout::Padded),      // 3: sums
        (rows(30), DType::F16, Layout::Padded),      // 4: sums, rounded
        (vec![30, 3], DType::F32, Layout::Dense),    // 5: delta
        (vec![30, 3], DType::F32, Layout::Dense),    // 6: the other rank's
        (rows(30), DType::F32, Layout::Dense),       // 7: out at its start
        (vec![30, 3], DType::F32, Layout::Padded),   // 8: lse at its start
        (vec![3], DType::F32, Layout::Dense),        // 9: max_logits at its start
        (vec![2, 3], DType::F32, Layout::Dense),     // 10: sinks
    ]
}

/// The values of those that calls read, the others are written before they are read.
fn helper_values(rank: usize, i: usize) -> Option<Vec<f64>> {
    let (shape, dtype, _) = &helper_tensors()[i];
    let n = shape.iter().product::<i64>() as usize;
    [0, 3, 10]
        .contains(&i)
        .then(|| Random((100 * rank + i) as u64).normals(n, 2.0, *dtype))
}

fn before_the_exchange(b: &dyn Backend, t: &[Tensor]) {
    b.range_gather(t[0], &ranges(), t[1]).unwrap();
}

fn after_the_exchange(b: &dyn Backend, t: &[Tensor]) {
    b.range_reduce(t[2], t[3], &ranges()).unwrap();
    b.cast(t[3], t[4], false).unwrap();
    b.attn_delta(t[4], t[3], t[5]).unwrap();
}

fn after_the_second(b: &dyn Backend, t: &[Tensor]) {
    b.attn_init(t[7], t[8], Some(t[9]), Some(t[10])).unwrap();
    b.cast(t[6], t[8], true).unwrap();
    b.divide(t[6], 4).unwrap();
}

/// The values of all tensors of all ranks, by the CPU backend.
fn helpers_on_the_cpu() -> Vec<Vec<Vec<f64>>> {
    let backend = CpuBackend::new();
    let buffer = |rank, (i, (shape, dtype, layout)): (usize, (Vec<i64>, DType, Layout))| match helper_values(
        rank, i,
    ) {
        Some(values) => Buffer::new(&values, &shape, dtype, layout),
        None => Buffer::poisoned(&shape, dtype, layout),
    };
    let mut ranks: Vec<Vec<Buffer>> = (0..WORLD)
        .map(|rank| {
            let all = helper_tensors().into_iter().enumerate();
            all.map(|tensor| buffer(rank, tensor)).collect()
        })
        .collect();
    let each = |ranks: &mut Vec<Vec<Buffer>>, f: fn(&dyn Backend, &[Tensor])| {
        for buffers in ranks {
            let tensors: Vec<Tensor> = buffers.iter_mut().map(Buffer::tensor).collect();
            f(&backend, &tensors);
        }
    };
    // From the rank after this one.
    let travel = |ranks: &mut Vec<Vec<Buffer>>, from: usize, to: usize| {
        for rank in 0..WORLD {
            let values = ranks[(rank + 1) % WORLD][from].values();
            ranks[rank][to].set(&values);
        }
    };
    each(&mut ranks, before_the_exchange);
    travel(&mut ranks, 1, 2);
    each(&mut ranks, after_the_exchange);
    travel(&mut ranks, 5, 6);
    each(&mut ranks, after_the_second);
    ranks
        .iter()
        .map(|buffers| buffers.iter().map(Buffer::values).collect())
        .collect()
}

#[test]
fn helpers_between_exchanges_give_what_the_cpu_gives() {
    inside("helpers_between_exchanges_give_what_the_cpu_gives", &[], || {
        let want = helpers_on_the_cpu();
        on_ranks(WORLD, |r| {
            let all: Vec<DeviceTensor> = helper_tensors()
                .iter()
                .enumerate()
                .map(|(i, (shape, dtype, layout))| match helper_values(r.rank, i) {
                    Some(values) => r.values(&values, shape, *dtype, *layout),
                    None => r.unwritten(shape, *dtype, *layout),
                })
                .collect();
            let t: Vec<Tensor> = all.iter().map(DeviceTensor::tensor).collect();
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            let (next, last) = ((r.rank + 1) % WORLD, (r.rank + WORLD - 1) % WORLD);
            // All is enqueued before anything happens.
            let gate = Gate::on(&r.user);
            before_the_exchange(&backend, &t);
            r.exchange(&[all[1].send(last)], &[all[2].recv(next)]);
            after_the_exchange(&backend, &t);
            r.exchange(&[all[5].send(last)], &[all[6].recv(next)]);
            after_the_second(&backend, &t);
            gate.open();
            for (i, (tensor, want)) in all.iter().zip(&want[r.rank]).enumerate() {
                // Only sums of products are rounded in another order.
                let bound = if (5..=8).contains(&i) { 1e-5 } else { 0.0 };
                let what = format!("tensor {i} of rank {}", r.rank);
                near(&r.download(tensor), want, bound, &what);
            }
        });
    });
}

// ---- attention

const TOKENS: i64 = 70;

/// A rank's queries, and its keys in front of those of the rank after it.
fn problem(rank: usize, s: &AttnShape) -> (Mask, Operands) {
    let mask = random_mask(&mut Random(7 + rank as u64), TOKENS, 2 * TOKENS, 5);
    let own = |rank: usize| {
        let whole = Mask::new(&[], TOKENS, TOKENS).unwrap();
        operands(&mut Random(50 + rank as u64), &whole, s)
    };
    let (mut mine, theirs) = (own(rank), own((rank + 1) % WORLD));
    mine.k.extend(theirs.k);
    mine.v.extend(theirs.v);
    (mask, mine)
}

/// The slices over a rank's own keys, and over those that come to it.
fn stages(mask: &Mask) -> [Vec<StageSlice>; 2] {
    [0, 1].map(|source| {
        let keys = Range::new(source * TOKENS, (source + 1) * TOKENS);
        let cut = |s: &magi_attn::types::Slice| StageSlice {
            slice: s.cut(&Range::new(0, TOKENS), &keys).shift(0, -source * TOKENS),
            source: source as u8,
        };
        mask.slices().iter().map(cut).collect()
    })
}

struct Gradients {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

/// Everything of a rank, which hands the gradients of the keys that came back to where they came from.
fn attend(r: &Rank, s: &AttnShape) -> (Answer, Gradients) {
    let (mask, o) = problem(r.rank, s);
    let (hq, hkv, d, dv, acc) = (
        s.heads_q,
        s.heads_kv,
        s.head_dim,
        s.head_dim_v,
        s.dtype.accumulator(),
    );
    let own = |x: &[f64], heads: i64, width: i64| {
        let n = (TOKENS * heads * width) as usize;
        r.values(&x[..n], &[TOKENS, heads, width], s.dtype, Layout::Dense)
    };
    let unwritten = |shape: &[i64], dtype| r.unwritten(shape, dtype, Layout::Dense);
    let (q, k, v) = (own(&o.q, hq, d), own(&o.k, hkv, d), own(&o.v, hkv, dv));
    let dout = own(&o.dout, hq, dv);
    let [k_in, v_in] = [d, dv].map(|w| unwritten(&[TOKENS, hkv, w], s.dtype));
    let (out, lse) = (unwritten(&[TOKENS, hq, dv], acc), unwritten(&[TOKENS, hq], acc));
    let (max, delta) = (unwritten(&[hq], DType::F32), unwritten(&[TOKENS, hq], acc));
    let final_out = unwritten(&[TOKENS, hq, dv], s.dtype);
    let dq = unwritten(&[TOKENS, hq, d], acc);
    // Of own keys, of those that came, and from the rank that had these.
    let [dk, dk_away, dk_back] = [0; 3].map(|_| unwritten(&[TOKENS, hkv, d], acc));
    let [dv, dv_away, dv_back] = [0; 3].map(|_| unwritten(&[TOKENS, hkv, dv], acc));
    let stages = stages(&mask);
    let rows = StageRows {
        q: TOKENS,
        k: [TOKENS; 2],
    };
    let shape = tile_shape(s.dtype);
    let lists = stages.each_ref().map(|slices| {
        [
            query_tiles(slices, &rows, &shape),
            key_tiles(slices, &rows, &shape),
        ]
        .map(|list| DeviceTiles::upload(&r.gpu, &list.unwrap()).unwrap())
    });
    let (next, last) = ((r.rank + 1) % WORLD, (r.rank + WORLD - 1) % WORLD);
    let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
    let textbook = Textbook::load(&r.gpu).unwrap();
    let pair = |a: &DeviceTensor, b: &DeviceTensor| [Some(a.tensor()), Some(b.tensor())];
    let begun = Instant::now();
    let (sends, recvs) = ([k.send(last), v.send(last)], [k_in.recv(next), v_in.recv(next)]);
    // SAFETY: everything lives until the results were downloaded.
    let ticket = unsafe { r.comm.start(&sends, &recvs, r.stream()) }.unwrap();
    let mut ticket = Some(ticket);
    backend
        .attn_init(out.tensor(), lse.tensor(), Some(max.tensor()), None)
        .unwrap();
    for (slices, [queries, _]) in stages.iter().zip(&lists) {
        let args = ForwardArgs {
            q: q.tensor(),
            k: pair(&k, &k_in),
            v: pair(&v, &v_in),
            slices,
            shape: *s,
            softmax_scale: o.scale,
            softcap: o.cap,
            out: out.tensor(),
            lse: lse.tensor(),
            max_logits: Some(max.tensor()),
        };
        textbook.forward(r.stream(), queries, &args).unwrap();
        if let Some(ticket) = ticket.take() {
            r.comm.finish(ticket, r.stream()).unwrap();
        }
    }
    backend.cast(out.tensor(), final_out.tensor(), false).unwrap();
    backend
        .attn_delta(final_out.tensor(), dout.tensor(), delta.tensor())
        .unwrap();
    for sums in [&dq, &dk, &dv, &dk_away, &dv_away] {
        backend.fill_zero(sums.tensor()).unwrap();
    }
    for (slices, [queries, keys]) in stages.iter().zip(&lists) {
        let args = BackwardArgs {
            q: q.tensor(),
            k: pair(&k, &k_in),
            v: pair(&v, &v_in),
            dout: dout.tensor(),
            lse: lse.tensor(),
            delta: delta.tensor(),
            slices,
            shape: *s,
            softmax_scale: o.scale,
            softcap: o.cap,
            dq: dq.tensor(),
            dk: pair(&dk, &dk_away),
            dv: pair(&dv, &dv_away),
        };
        textbook.backward(r.stream(), queries, keys, &args).unwrap();
    }
    r.exchange(
        &[dk_away.send(next), dv_away.send(next)],
        &[dk_back.recv(last), dv_back.recv(last)],
    );
    let all = [Range::new(0, TOKENS)];
    for (back, sums) in [(&dk_back, &dk), (&dv_back, &dv)] {
        backend.range_reduce(back.tensor(), sums.tensor(), &all).unwrap();
    }
    let enqueued = begun.elapsed();
    let answer = Answer {
        out: r.download(&final_out),
        lse: r.download(&lse),
        max_logits: r.download(&max),
        ..Answer::default()
    };
    println!(
        "rank {}: enqueued in {enqueued:?}, done in {:?}",
        r.rank,
        begun.elapsed()
    );
    let gradients = Gradients {
        q: r.download(&dq),
        k: r.download(&dk),
        v: r.download(&dv),
    };
    (answer, gradients)
}

fn attention_over_ranks(s: &AttnShape, bound: f64) {
    let want: Vec<Answer> = (0..WORLD)
        .map(|rank| {
            let (mask, o) = problem(rank, s);
            compute(&mask, &o, s, PLAIN)
        })
        .collect();
    let got = on_ranks(WORLD, |r| attend(r, s));
    for (rank, (answer, gradients)) in got.iter().enumerate() {
        let (mine, before) = (&want[rank], &want[(rank + WORLD - 1) % WORLD]);
        // Own keys are the first half of the keys, those that came from the next rank the second.
        let sum = |a: &[f64], b: &[f64]| -> Vec<f64> {
            let half = a.len() / 2;
            a[..half].iter().zip(&b[half..]).map(|(a, b)| a + b).collect()
        };
        for (name, got, want) in [
            ("out", &answer.out, &mine.out),
            ("lse", &answer.lse, &mine.lse),
            ("max_logits", &answer.max_logits, &mine.max_logits),
            ("dq", &gradients.q, &mine.dq),
            ("dk", &gradients.k, &sum(&mine.dk, &before.dk)),
            ("dv", &gradients.v, &sum(&mine.dv, &before.dv)),
        ] {
            let bound = if name == "max_logits" {
                bound.max(1e-6)
            } else {
                bound
            };
            near(
                got,
                want,
                bound * peak(want).clamp(1.0, 1e3),
                &format!("{name} of rank {rank}"),
            );
        }
    }
}

#[test]
fn attention_between_exchanges_gives_what_the_cpu_gives() {
    inside(
        "attention_between_exchanges_gives_what_the_cpu_gives",
        &[],
        || {
            on_ranks(1, |r| assert_eq!(r.gpu.properties().major, 9));
            attention_over_ranks(&shape(4, 2, 16, 8, DType::F32), 2e-5);
            attention_over_ranks(&shape(2, 2, 8, 8, DType::F64), 1e-11);
        },
    );
}

#[test]
fn devices_of_another_capability_compute_too() {
    inside(
        "devices_of_another_capability_compute_too",
        &[CAPABILITY_8],
        || {
            on_ranks(4, |r| assert_eq!(r.gpu.properties().major, 8));
            attention_over_ranks(&shape(2, 1, 16, 16, DType::Bf16), 3e-2);
        },
    );
}

// ---- what the driver promises

#[test]
fn launches_wait_for_events_and_for_nothing_else() {
    inside("launches_wait_for_events_and_for_nothing_else", &[], || {
        on_ranks(2, |r| {
            let (reader, other) = (UserStream::new(r.rank), UserStream::new(r.rank));
            let ones = |n: i64| r.values(&vec![1.0; n as usize], &[n], DType::F32, Layout::Dense);
            let x = ones(8);
            let [late, early] = [0; 2].map(|_| r.unwritten(&[8], DType::F32, Layout::Dense));
            let at = x.tensor().data() as usize;
            // SAFETY: device memory is the host's here, and nobody touches x while the gate opens.
            let write = move || unsafe { std::slice::from_raw_parts_mut(at as *mut f32, 8).fill(2.0) };
            let gate = Gate::then(&r.user, write);
            let event = Event::new(&r.gpu).unwrap();
            event.record(r.stream()).unwrap();
            event.wait(reader.stream).unwrap();
            let copy = |on: &UserStream, to: &DeviceTensor| {
                let backend = CudaBackend::new(&r.gpu, on.stream).unwrap();
                backend.cast(x.tensor(), to.tensor(), false).unwrap();
            };
            copy(&reader, &late);
            copy(&other, &early);
            other.synchronize();
            assert_eq!(early.read(), [1.0; 8]);
            assert!(!event.is_done().unwrap());
            assert!(late.read().iter().all(|x| x.is_nan()));
            gate.open();
            reader.synchronize();
            assert_eq!(late.read(), [2.0; 8]);
            assert!(event.is_done().unwrap());
        });
    });
}

#[test]
fn parameters_are_copied_when_a_kernel_is_launched() {
    inside("parameters_are_copied_when_a_kernel_is_launched", &[], || {
        on_ranks(2, |r| {
            let [a, b] = [0; 2].map(|_| r.values(&[1.0; 8], &[8], DType::F32, Layout::Dense));
            let variant = embedded::listed("elementwise").unwrap();
            let fill = kernels::load(&r.gpu, variant)
                .unwrap()
                .function("fill_zero")
                .unwrap();
            let mut walk = Walk::moving(&[&a.tensor()], 0, &[0]);
            let mut at = a.tensor().data();
            let gate = Gate::on(&r.user);
            let mut arguments = Arguments::new();
            arguments.push(&walk).push(&at);
            // SAFETY: the parameters of fill_zero, on memory that stays.
            unsafe { Launch::linear(1, 256).run(&r.gpu, fill, r.stream(), &mut arguments) }.unwrap();
            (walk.units, at) = (0, b.tensor().data());
            gate.open();
            assert_eq!(r.download(&a), [0.0; 8]);
            assert_eq!(r.download(&b), [1.0; 8]);
            assert_eq!((walk.units, at), (0, b.tensor().data()));
        });
    });
}

#[test]
fn memory_lives_as_long_as_its_stream_uses_it() {
    inside("memory_lives_as_long_as_its_stream_uses_it", &[], || {
        on_ranks(4, |r| {
            let x = r.values(&[3.0; 8], &[8], DType::F32, Layout::Dense);
            let y = r.unwritten(&[8], DType::F32, Layout::Dense);
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            let gate = Gate::on(&r.user);
            let memory = StreamMemory::new(&r.gpu, 32, r.stream()).unwrap();
            let (at, device) = (memory.as_ptr(), Device::Cuda(r.rank as i32));
            // SAFETY: 8 elements in 32 bytes, which the stream frees behind their uses.
            let between = unsafe { Tensor::dense(at, DType::F32, device, &[8]) };
            backend.cast(x.tensor(), between, false).unwrap();
            backend.cast(between, y.tensor(), false).unwrap();
            assert_eq!(pointer::device_of(at).unwrap(), Some(r.rank as i32));
            drop(memory);
            assert_eq!(pointer::device_of(at).unwrap(), None);
            gate.open();
            assert_eq!(r.download(&y), [3.0; 8]);
            // SAFETY: the driver keeps what was freed for a while.
            assert_eq!(unsafe { std::slice::from_raw_parts(at, 32) }, [0xa5; 32]);
            let fresh = DeviceMemory::new(&r.gpu, 32).unwrap();
            let mut bytes = [0; 32];
            fresh.read(0, &mut bytes).unwrap();
            assert_eq!(bytes, [0xff; 32]);
        });
    });
}

#[test]
fn streams_and_kernels_of_another_device_are_refused() {
    inside("streams_and_kernels_of_another_device_are_refused", &[], || {
        on_ranks(2, |r| {
            let theirs = UserStream::new(1 - r.rank);
            let error = CudaBackend::new(&r.gpu, theirs.stream).unwrap_err();
            assert_eq!(error.status, Status::DeviceMismatch);
            let a = r.values(&[1.0; 8], &[8], DType::F32, Layout::Dense);
            let variant = embedded::listed("elementwise").unwrap();
            let fill = kernels::load(&r.gpu, variant)
                .unwrap()
                .function("fill_zero")
                .unwrap();
            let (walk, at) = (Walk::moving(&[&a.tensor()], 0, &[0]), a.tensor().data());
            let mut arguments = Arguments::new();
            arguments.push(&walk).push(&at);
            // SAFETY: refused before anything runs.
            let refused = unsafe { Launch::linear(1, 256).run(&r.gpu, fill, theirs.stream, &mut arguments) };
            assert_eq!(refused.unwrap_err().status, Status::CudaFailed);
            let event = Event::new(&r.gpu).unwrap();
            assert_eq!(
                event.record(theirs.stream).unwrap_err().status,
                Status::CudaFailed
            );
            assert_eq!(r.download(&a), [1.0; 8]);
        });
    });
}

/// Zeros to `elements` floats where there is memory for 8.
fn zeros(r: &Rank, memory: &DeviceMemory, elements: i64) -> Tensor {
    let device = Device::Cuda(r.rank as i32);
    // SAFETY: what is behind the memory, or was freed, is kept by the driver, which is what is tested.
    unsafe { Tensor::dense(memory.as_ptr(), DType::F32, device, &[elements]) }
}

#[test]
fn writing_behind_the_end_is_seen() {
    fails_inside("writing_behind_the_end_is_seen", "behind its end", || {
        on_ranks(1, |r| {
            let memory = DeviceMemory::new(&r.gpu, 32).unwrap();
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            backend.fill_zero(zeros(r, &memory, 9)).unwrap();
            r.user.synchronize();
        });
    });
}

#[test]
fn writing_to_freed_memory_is_seen() {
    fails_inside("writing_to_freed_memory_is_seen", "after it was freed", || {
        on_ranks(1, |r| {
            let memory = DeviceMemory::new(&r.gpu, 32).unwrap();
            let tensor = zeros(r, &memory, 8);
            let backend = CudaBackend::new(&r.gpu, r.stream()).unwrap();
            drop(memory);
            backend.fill_zero(tensor).unwrap();
            r.user.synchronize();
        });
    });
}
