//! Kernels of several devices at once, on streams, between exchanges: helpers and textbook attention of ranks on the driver for
//! ranks (tests/host_ranks) against the CPU backend. The host waits for nothing between launches.

mod common_backend;
mod common_cuda;
mod common_ranks;
mod common_reference;
mod nccl_support;
mod ranks_support;

use common_backend::*;
use common_reference::{Answer, Operands};
use magi_attn::backend::cuda::textbook::Textbook;
use magi_attn::backend::cuda::textbook_params::tile_shape;
use magi_attn::backend::cuda::tile_lists::DeviceTiles;
use magi_attn::backend::{Backend, BackwardArgs, CpuBackend, CudaBackend, ForwardArgs};
use magi_attn::comm::Communicator;
use magi_attn::plan::tiles::{StageRows, key_tiles, query_tiles};
use magi_attn::types::{AttnShape, DType, Mask, Range, StageSlice, Tensor};
use ranks_support::{CAPABILITY_8, DeviceTensor, Gate, Rank, inside, on_ranks};

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

/// The tensors of a rank; `*_in` come from the rank after it, `*_away` go there, `*_back` come from the rank before.
struct Tensors {
    q: DeviceTensor,
    k: DeviceTensor,
    v: DeviceTensor,
    k_in: DeviceTensor,
    v_in: DeviceTensor,
    dout: DeviceTensor,
    sums: DeviceTensor,
    out: DeviceTensor,
    lse: DeviceTensor,
    max: DeviceTensor,
    delta: DeviceTensor,
    dq: DeviceTensor,
    dk: DeviceTensor,
    dv: DeviceTensor,
    dk_away: DeviceTensor,
    dv_away: DeviceTensor,
    dk_back: DeviceTensor,
    dv_back: DeviceTensor,
}

impl Tensors {
    fn new(r: &Rank, s: &AttnShape, o: &Operands) -> Tensors {
        let (dtype, acc) = (s.dtype, s.dtype.accumulator());
        let queries = |width| [TOKENS, s.heads_q, width];
        let keys = |width| [TOKENS, s.heads_kv, width];
        let own = |x: &[f64], shape: [i64; 3]| {
            let n = shape.iter().product::<i64>() as usize;
            r.values(&x[..n], &shape, dtype, Layout::Dense)
        };
        let unwritten = |shape: &[i64], dtype| r.unwritten(shape, dtype, Layout::Dense);
        let gradient = |width| unwritten(&keys(width), acc);
        let (d, e) = (s.head_dim, s.head_dim_v);
        Tensors {
            q: own(&o.q, queries(d)),
            k: own(&o.k, keys(d)),
            v: own(&o.v, keys(e)),
            k_in: unwritten(&keys(d), dtype),
            v_in: unwritten(&keys(e), dtype),
            dout: own(&o.dout, queries(e)),
            sums: unwritten(&queries(e), acc),
            out: unwritten(&queries(e), dtype),
            lse: unwritten(&[TOKENS, s.heads_q], acc),
            max: unwritten(&[s.heads_q], DType::F32),
            delta: unwritten(&[TOKENS, s.heads_q], acc),
            dq: unwritten(&queries(d), acc),
            dk: gradient(d),
            dv: gradient(e),
            dk_away: gradient(d),
            dv_away: gradient(e),
            dk_back: gradient(d),
            dv_back: gradient(e),
        }
    }
}

fn pair(a: &DeviceTensor, b: &DeviceTensor) -> [Option<Tensor>; 2] {
    [Some(a.tensor()), Some(b.tensor())]
}

/// What a rank computes with.
struct Attention<'a> {
    rank: &'a Rank,
    shape: &'a AttnShape,
    operands: &'a Operands,
    stages: [Vec<StageSlice>; 2],
    lists: [[DeviceTiles; 2]; 2],
    backend: CudaBackend,
    textbook: Textbook,
}

impl Attention<'_> {
    fn new<'a>(rank: &'a Rank, shape: &'a AttnShape, mask: &Mask, operands: &'a Operands) -> Attention<'a> {
        let stages = stages(mask);
        let (q, k) = (TOKENS, [TOKENS; 2]);
        let (rows, tile) = (StageRows { q, k }, tile_shape(shape.dtype));
        let lists = stages.each_ref().map(|slices| {
            [query_tiles(slices, &rows, &tile), key_tiles(slices, &rows, &tile)]
                .map(|list| DeviceTiles::upload(&rank.gpu, &list.unwrap()).unwrap())
        });
        Attention {
            rank,
            shape,
            operands,
            stages,
            lists,
            backend: CudaBackend::new(&rank.gpu, rank.stream()).unwrap(),
            textbook: Textbook::load(&rank.gpu).unwrap(),
        }
    }

    fn next(&self) -> usize {
        (self.rank.rank + 1) % WORLD
    }

    fn last(&self) -> usize {
        (self.rank.rank + WORLD - 1) % WORLD
    }

    /// Keys travel while the own ones are computed.
    fn forward(&self, t: &Tensors) {
        let (r, b) = (self.rank, &self.backend);
        let sends = [t.k.send(self.last()), t.v.send(self.last())];
        let recvs = [t.k_in.recv(self.next()), t.v_in.recv(self.next())];
        // SAFETY: everything lives until the results were downloaded.
        let ticket = unsafe { r.comm.start(&sends, &recvs, r.stream()) }.unwrap();
        let max = Some(t.max.tensor());
        b.attn_init(t.sums.tensor(), t.lse.tensor(), max, None).unwrap();
        let stage = |i: usize| {
            let args = ForwardArgs {
                q: t.q.tensor(),
                k: pair(&t.k, &t.k_in),
                v: pair(&t.v, &t.v_in),
                slices: &self.stages[i],
                shape: *self.shape,
                softmax_scale: self.operands.scale,
                softcap: self.operands.cap,
                out: t.sums.tensor(),
                lse: t.lse.tensor(),
                max_logits: max,
            };
            let [queries, _] = &self.lists[i];
            self.textbook.forward(r.stream(), queries, &args).unwrap();
        };
        stage(0);
        r.comm.finish(ticket, r.stream()).unwrap();
        stage(1);
        b.cast(t.sums.tensor(), t.out.tensor(), false).unwrap();
    }

    /// Gradients of keys that came go back to where they came from.
    fn backward(&self, t: &Tensors) {
        let (r, b) = (self.rank, &self.backend);
        b.attn_delta(t.out.tensor(), t.dout.tensor(), t.delta.tensor())
            .unwrap();
        for sums in [&t.dq, &t.dk, &t.dv, &t.dk_away, &t.dv_away] {
            b.fill_zero(sums.tensor()).unwrap();
        }
        for (slices, [queries, keys]) in self.stages.iter().zip(&self.lists) {
            let args = BackwardArgs {
                q: t.q.tensor(),
                k: pair(&t.k, &t.k_in),
                v: pair(&t.v, &t.v_in),
                dout: t.dout.tensor(),
                lse: t.lse.tensor(),
                delta: t.delta.tensor(),
                slices,
                shape: *self.shape,
                softmax_scale: self.operands.scale,
                softcap: self.operands.cap,
                dq: t.dq.tensor(),
                dk: pair(&t.dk, &t.dk_away),
                dv: pair(&t.dv, &t.dv_away),
            };
            self.textbook.backward(r.stream(), queries, keys, &args).unwrap();
        }
        r.exchange(
            &[t.dk_away.send(self.next()), t.dv_away.send(self.next())],
            &[t.dk_back.recv(self.last()), t.dv_back.recv(self.last())],
        );
        let all = [Range::new(0, TOKENS)];
        for (back, sums) in [(&t.dk_back, &t.dk), (&t.dv_back, &t.dv)] {
            b.range_reduce(back.tensor(), sums.tensor(), &all).unwrap();
        }
    }
}

/// Everything of a rank; the host waits for the first time when all is enqueued.
fn attend(r: &Rank, s: &AttnShape) -> (Answer, Gradients) {
    let (mask, o) = problem(r.rank, s);
    let tensors = Tensors::new(r, s, &o);
    let attention = Attention::new(r, s, &mask, &o);
    attention.forward(&tensors);
    attention.backward(&tensors);
    let answer = Answer {
        out: r.download(&tensors.out),
        lse: r.download(&tensors.lse),
        max_logits: r.download(&tensors.max),
        ..Answer::default()
    };
    let gradients = Gradients {
        q: r.download(&tensors.dq),
        k: r.download(&tensors.dk),
        v: r.download(&tensors.dv),
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
