//! Runs attention over local ranks through the runtime: dispatch, forward, backward, undispatch.
#![allow(dead_code)] // Every test program includes all of it and uses its own part.

use std::sync::{Arc, Mutex};

use crate::common_backend::{Buffer, Layout, Random, operands, random_sink};
use crate::common_reference::{Answer, Operands, Sink};
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key, attn_args, backward, forward, movement};
use magi_attn::types::{AttnShape, Config, DType, DsinkReduce, HostStage, Mask, Result, Side, Tensor};

/// One problem on so many ranks.
#[derive(Clone, Debug)]
pub struct Job {
    pub mask: Arc<Mask>,
    pub shape: AttnShape,
    pub world: usize,
    pub config: Config,
    /// How local q, k, v and dout lie in memory.
    pub layout: Layout,
    /// (hosts, ranks of a host), with `config.hierarchical_comm`.
    pub mesh: Option<(usize, usize)>,
    /// Outputs in the input dtype instead of the accumulator type.
    pub round_outputs: bool,
    /// The largest logits are asked for.
    pub max_logits: bool,
    /// dsink is added to zeros, instead of written.
    pub add_dsink: bool,
}

impl Job {
    /// `mask` on `world` ranks, one degree for both passes, the host stage first in both, shared sinks summed over ranks.
    pub fn new(mask: &Mask, shape: AttnShape, world: usize, degree: i32, chunk_size: i64) -> Job {
        let config = Config {
            chunk_size,
            degree_forward: degree,
            degree_backward: degree,
            bwd_hide_tail_reduce: HostStage::First,
            dsink_reduce: DsinkReduce::Sum,
            sanity_check: true,
            ..Config::default()
        };
        let mask = Arc::new(mask.clone());
        Job {
            mask,
            shape,
            world,
            config,
            layout: Layout::Dense,
            mesh: None,
            round_outputs: false,
            max_logits: true,
            add_dsink: false,
        }
    }
}

/// Where the ranks of a job have their tensors.
pub trait Place {
    /// A tensor there.
    type Held;

    /// One with these values.
    fn values(&self, values: &[f64], shape: &[i64], dtype: DType, layout: Layout) -> Self::Held;

    /// One that nobody has written.
    fn poisoned(&self, shape: &[i64], dtype: DType, layout: Layout) -> Self::Held;

    fn tensor(&self, held: &mut Self::Held) -> Tensor;

    /// Its values, once everything on the stream is done.
    fn read(&self, held: &mut Self::Held) -> Vec<f64>;

    fn stream(&self) -> Stream;
}

/// Host memory.
pub struct Host;

impl Place for Host {
    type Held = Buffer;

    fn values(&self, values: &[f64], shape: &[i64], dtype: DType, layout: Layout) -> Buffer {
        Buffer::new(values, shape, dtype, layout)
    }

    fn poisoned(&self, shape: &[i64], dtype: DType, layout: Layout) -> Buffer {
        Buffer::poisoned(shape, dtype, layout)
    }

    fn tensor(&self, held: &mut Buffer) -> Tensor {
        held.tensor()
    }

    fn read(&self, held: &mut Buffer) -> Vec<f64> {
        held.values()
    }

    fn stream(&self) -> Stream {
        Stream::NULL
    }
}

/// A tensor on one rank, filled by dispatching `values` (global) when there are any, else poisoned.
pub fn local_on<P: Place>(
    place: &P,
    key: &Key,
    side: Side,
    values: Option<&[f64]>,
    row: &[i64],
    (dtype, layout): (DType, Layout),
) -> Result<P::Held> {
    let with_rows = |rows: i64| [&[rows], row].concat();
    let mut held = place.poisoned(&with_rows(key.local_tokens(side)?), dtype, layout);
    if let Some(values) = values {
        let total = key.placement(side).total();
        let mut global = place.values(values, &with_rows(total), dtype, Layout::Dense);
        let (from, to) = (place.tensor(&mut global), place.tensor(&mut held));
        movement::dispatch(key, side, from, to, place.stream())?;
        // It is read in the order of the stream, and goes before that is done.
        place.read(&mut global);
    }
    Ok(held)
}

/// As `local_on`, in host memory.
pub fn local(
    key: &Key,
    side: Side,
    values: Option<&[f64]>,
    row: &[i64],
    dtype: DType,
    layout: Layout,
) -> Result<Buffer> {
    local_on(&Host, key, side, values, row, (dtype, layout))
}

/// The global tensor of which every rank holds a part.
pub fn gather_on<P: Place>(place: &P, key: &Key, side: Side, part: &mut P::Held) -> Result<Vec<f64>> {
    let part = place.tensor(part);
    let mut shape = part.shape().to_vec();
    shape[0] = key.placement(side).total();
    let mut global = place.poisoned(&shape, part.dtype(), Layout::Dense);
    let whole = place.tensor(&mut global);
    movement::undispatch(key, side, part, whole, ["local_x", "x"], place.stream())?;
    Ok(place.read(&mut global))
}

/// As `gather_on`, in host memory.
pub fn gather(key: &Key, side: Side, part: &mut Buffer) -> Result<Vec<f64>> {
    gather_on(&Host, key, side, part)
}

/// The sink and its gradient on one rank.
fn sinks<P: Place>(place: &P, key: &Key, sink: &Sink, job: &Job) -> Result<[P::Held; 2]> {
    let (row, dense) = ([sink.count as i64, job.shape.heads_q], Layout::Dense);
    let acc = job.shape.dtype.accumulator();
    let zeros = vec![0.0; sink.logits.len()];
    let zeros = job.add_dsink.then_some(&zeros[..]);
    if sink.per_token {
        let on = |values, dtype| local_on(place, key, Side::Q, values, &row, (dtype, dense));
        return Ok([on(Some(&sink.logits), DType::F32)?, on(zeros, acc)?]);
    }
    let made = place.values(&sink.logits, &row, DType::F32, dense);
    let gradient = match zeros {
        Some(zeros) => place.values(zeros, &row, acc, dense),
        None => place.poisoned(&row, acc, dense),
    };
    Ok([made, gradient])
}

/// What of a rank's pass is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    Dispatch,
    Forward,
    Backward,
}

/// One rank's whole pass; the answer is global, and the same on every rank.
pub fn rank_on<P: Place>(place: &P, job: &Job, o: &Operands, key: &Key) -> Result<Answer> {
    rank_watched(place, job, o, key, |_| ())
}

/// As `rank_on`; `watch` is called on the way.
pub fn rank_watched<P: Place>(
    place: &P,
    job: &Job,
    o: &Operands,
    key: &Key,
    mut watch: impl FnMut(Done),
) -> Result<Answer> {
    let (s, acc) = (job.shape, job.shape.dtype.accumulator());
    let result = if job.round_outputs { s.dtype } else { acc };
    let (q_row, k_row) = ([s.heads_q, s.head_dim], [s.heads_kv, s.head_dim]);
    let (o_row, v_row) = ([s.heads_q, s.head_dim_v], [s.heads_kv, s.head_dim_v]);
    let input = |side, values: &[f64], row: &[i64]| {
        local_on(place, key, side, Some(values), row, (s.dtype, job.layout))
    };
    let output = |side, row: &[i64]| local_on(place, key, side, None, row, (result, job.layout));
    let (mut q, mut k) = (input(Side::Q, &o.q, &q_row)?, input(Side::K, &o.k, &k_row)?);
    let (mut v, mut dout) = (input(Side::K, &o.v, &v_row)?, input(Side::Q, &o.dout, &o_row)?);
    let (mut out, mut dq) = (output(Side::Q, &o_row)?, output(Side::Q, &q_row)?);
    let (mut dk, mut dv) = (output(Side::K, &k_row)?, output(Side::K, &v_row)?);
    let mut lse = local_on(place, key, Side::Q, None, &[s.heads_q], (acc, Layout::Dense))?;
    let mut max_logits = place.poisoned(&[s.heads_q], DType::F32, Layout::Dense);
    let mut sink = o.sink.as_ref().map(|z| sinks(place, key, z, job)).transpose()?;
    let [sink_tensor, dsink_tensor] = match &mut sink {
        Some([z, dz]) => [Some(place.tensor(z)), Some(place.tensor(dz))],
        None => [None, None],
    };
    let mut tensor = |held: &mut P::Held| place.tensor(held);
    let [q, k, v, dout] = [&mut q, &mut k, &mut v, &mut dout].map(&mut tensor);
    watch(Done::Dispatch);
    forward::run(
        key,
        &attn_args::Forward {
            q,
            k,
            v,
            sink: sink_tensor,
            softmax_scale: o.scale,
            softcap: o.cap,
            out: tensor(&mut out),
            lse: Some(tensor(&mut lse)),
            max_logits: job.max_logits.then(|| tensor(&mut max_logits)),
        },
        place.stream(),
    )?;
    watch(Done::Forward);
    backward::run(
        key,
        &attn_args::Backward {
            q,
            k,
            v,
            sink: sink_tensor,
            out: tensor(&mut out),
            lse: tensor(&mut lse),
            dout,
            softmax_scale: o.scale,
            softcap: o.cap,
            dq: tensor(&mut dq),
            dk: tensor(&mut dk),
            dv: tensor(&mut dv),
            dsink: dsink_tensor,
            accumulate_dq: false,
            accumulate_dk: false,
            accumulate_dv: false,
            accumulate_dsink: job.add_dsink && o.sink.is_some(),
        },
        place.stream(),
    )?;
    watch(Done::Backward);
    let dsink = match (&o.sink, &mut sink) {
        (Some(z), Some([_, dz])) if z.per_token => gather_on(place, key, Side::Q, dz)?,
        (Some(_), Some([_, dz])) => place.read(dz),
        _ => Vec::new(),
    };
    Ok(Answer {
        out: gather_on(place, key, Side::Q, &mut out)?,
        lse: gather_on(place, key, Side::Q, &mut lse)?,
        max_logits: if job.max_logits {
            place.read(&mut max_logits)
        } else {
            Vec::new()
        },
        dq: gather_on(place, key, Side::Q, &mut dq)?,
        dk: gather_on(place, key, Side::K, &mut dk)?,
        dv: gather_on(place, key, Side::K, &mut dv)?,
        dsink,
    })
}

/// Fails unless every rank has the same bits; gives the answer.
pub fn agreed(mut answers: Vec<Answer>) -> Answer {
    let first = answers.pop().unwrap();
    for other in &answers {
        for ((name, a), (_, b)) in parts(&first).into_iter().zip(parts(other)) {
            assert!(
                a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()),
                "ranks disagree on {name}"
            );
        }
    }
    first
}

/// Runs the job; checks that every rank ends up with the same bits, and returns them.
pub fn over_ranks(job: &Job, o: &Operands) -> Answer {
    let answers = Mutex::new(Vec::new());
    local::run(job.world, |_, comm| {
        let context = Context::new(comm);
        if let Some((inter, intra)) = job.mesh {
            context.set_mesh(inter, intra)?;
        }
        let key = Key::create(&context, &job.mask, job.shape, job.config)?;
        let answer = rank_on(&Host, job, o, &key)?;
        answers.lock().unwrap().push(answer);
        Ok(())
    })
    .unwrap();
    agreed(answers.into_inner().unwrap())
}

/// Operands for a mask: with a number of sinks, each query's own for odd seeds, and with a softcap for every third seed.
pub fn problem(mask: &Mask, s: &AttnShape, seed: u64, sinks: usize) -> Operands {
    let mut random = Random(seed);
    let mut o = operands(&mut random, mask, s);
    if sinks > 0 {
        let per_token = seed % 2 == 1;
        o.sink = Some(random_sink(
            &mut random,
            mask.total_q(),
            s.heads_q,
            sinks,
            per_token,
        ));
    }
    o.cap = if seed % 3 == 2 { 2.0 } else { 0.0 };
    o
}

/// The results by name.
pub fn parts(a: &Answer) -> [(&'static str, &[f64]); 7] {
    [
        ("out", &a.out),
        ("lse", &a.lse),
        ("max_logits", &a.max_logits),
        ("dq", &a.dq),
        ("dk", &a.dk),
        ("dv", &a.dv),
        ("dsink", &a.dsink),
    ]
}

/// Asserts that every f64 result equals the reference to `bound`, relative to the largest element of its kind; infinities
/// must be the same, and max_logits equal as f32. Where the exact result is nothing but cancellation (dq with one visible
/// key a row is 0) the bound is relative to a thousandth of the operands' size, which is 1.
pub fn assert_close(context: &str, have: &Answer, want: &Answer, bound: f64) {
    for ((name, have), (_, want)) in parts(have).into_iter().zip(parts(want)) {
        assert_eq!(have.len(), want.len(), "{context}: length of {name}");
        let bound = if name == "max_logits" {
            f64::from(f32::EPSILON)
        } else {
            bound
        };
        let finite = want.iter().filter(|x| x.is_finite());
        let largest = finite.fold(0.0f64, |m, x| m.max(x.abs()));
        for (i, (&h, &w)) in have.iter().zip(want).enumerate() {
            let near = (h - w).abs() <= bound * largest.max(1e-3);
            assert!(
                near || h == w,
                "{context}: {name}[{i}] is {h:e}, must be {w:e}; largest {largest:e}"
            );
        }
    }
}
