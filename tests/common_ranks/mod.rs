//! Runs attention over local ranks through the runtime: dispatch, forward, backward, undispatch.
#![allow(dead_code)] // Every test program includes all of it and uses its own part.

use std::sync::{Arc, Mutex};

use crate::common_backend::{Buffer, Layout};
use crate::common_reference::{Answer, Operands, Sink};
use magi_attn::comm::local;
use magi_attn::device::Stream;
use magi_attn::runtime::{Context, Key, attn_args, backward, forward, movement};
use magi_attn::types::{AttnShape, Config, DType, DsinkReduce, Mask, Result, Side};

/// One problem on so many ranks.
#[derive(Clone)]
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
}

impl Job {
    /// `mask` on `world` ranks, one degree for both passes, shared sinks summed over ranks.
    pub fn new(mask: &Mask, shape: AttnShape, world: usize, degree: i32, chunk_size: i64) -> Job {
        let config = Config {
            chunk_size,
            degree_forward: degree,
            degree_backward: degree,
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
        }
    }
}

/// A tensor on one rank, filled by dispatching `values` (global) when there are any, else poisoned.
pub fn local(
    key: &Key,
    side: Side,
    values: Option<&[f64]>,
    row: &[i64],
    dtype: DType,
    layout: Layout,
) -> Result<Buffer> {
    let with_rows = |rows: i64| [&[rows], row].concat();
    let mut buffer = Buffer::poisoned(&with_rows(key.local_tokens(side)?), dtype, layout);
    if let Some(values) = values {
        let mut global = Buffer::new(
            values,
            &with_rows(key.placement(side).total()),
            dtype,
            Layout::Dense,
        );
        movement::dispatch(key, side, global.tensor(), buffer.tensor(), Stream::NULL)?;
    }
    Ok(buffer)
}

/// The global tensor of which every rank holds a part.
pub fn gather(key: &Key, side: Side, part: &mut Buffer) -> Result<Vec<f64>> {
    let mut shape = part.shape.clone();
    shape[0] = key.placement(side).total();
    let mut global = Buffer::poisoned(&shape, part.dtype, Layout::Dense);
    movement::undispatch(
        key,
        side,
        part.tensor(),
        global.tensor(),
        ["local_x", "x"],
        Stream::NULL,
    )?;
    Ok(global.values())
}

/// The sink and its gradient on one rank.
fn sinks(key: &Key, sink: &Sink, heads: i64, acc: DType) -> Result<[Buffer; 2]> {
    let row = [sink.count as i64, heads];
    if sink.per_token {
        let sink = local(key, Side::Q, Some(&sink.logits), &row, DType::F32, Layout::Dense)?;
        return Ok([sink, local(key, Side::Q, None, &row, acc, Layout::Dense)?]);
    }
    let made = Buffer::new(&sink.logits, &row, DType::F32, Layout::Dense);
    Ok([made, Buffer::poisoned(&row, acc, Layout::Dense)])
}

/// One rank's whole pass; the answer is global, and the same on every rank.
fn rank(job: &Job, o: &Operands, key: &Key) -> Result<Answer> {
    let (s, acc) = (job.shape, job.shape.dtype.accumulator());
    let result = if job.round_outputs { s.dtype } else { acc };
    let (q_row, k_row) = ([s.heads_q, s.head_dim], [s.heads_kv, s.head_dim]);
    let (o_row, v_row) = ([s.heads_q, s.head_dim_v], [s.heads_kv, s.head_dim_v]);
    let input = |side, values: &[f64], row: &[i64]| local(key, side, Some(values), row, s.dtype, job.layout);
    let output = |side, row: &[i64]| local(key, side, None, row, result, job.layout);
    let (mut q, mut k) = (input(Side::Q, &o.q, &q_row)?, input(Side::K, &o.k, &k_row)?);
    let (mut v, mut dout) = (input(Side::K, &o.v, &v_row)?, input(Side::Q, &o.dout, &o_row)?);
    let (mut out, mut dq) = (output(Side::Q, &o_row)?, output(Side::Q, &q_row)?);
    let (mut dk, mut dv) = (output(Side::K, &k_row)?, output(Side::K, &v_row)?);
    let mut lse = local(key, Side::Q, None, &[s.heads_q], acc, Layout::Dense)?;
    let mut max_logits = Buffer::poisoned(&[s.heads_q], DType::F32, Layout::Dense);
    let mut sink = o
        .sink
        .as_ref()
        .map(|z| sinks(key, z, s.heads_q, acc))
        .transpose()?;
    let [sink_tensor, dsink_tensor] = match &mut sink {
        Some([z, dz]) => [Some(z.tensor()), Some(dz.tensor())],
        None => [None, None],
    };
    forward::run(
        key,
        &attn_args::Forward {
            q: q.tensor(),
            k: k.tensor(),
            v: v.tensor(),
            sink: sink_tensor,
            softmax_scale: o.scale,
            softcap: o.cap,
            out: out.tensor(),
            lse: Some(lse.tensor()),
            max_logits: Some(max_logits.tensor()),
        },
        Stream::NULL,
    )?;
    backward::run(
        key,
        &attn_args::Backward {
            q: q.tensor(),
            k: k.tensor(),
            v: v.tensor(),
            sink: sink_tensor,
            out: out.tensor(),
            lse: lse.tensor(),
            dout: dout.tensor(),
            softmax_scale: o.scale,
            softcap: o.cap,
            dq: dq.tensor(),
            dk: dk.tensor(),
            dv: dv.tensor(),
            dsink: dsink_tensor,
            accumulate_dq: false,
            accumulate_dk: false,
            accumulate_dv: false,
            accumulate_dsink: false,
        },
        Stream::NULL,
    )?;
    let dsink = match (&o.sink, &mut sink) {
        (Some(z), Some([_, dz])) if z.per_token => gather(key, Side::Q, dz)?,
        (Some(_), Some([_, dz])) => dz.values(),
        _ => Vec::new(),
    };
    Ok(Answer {
        out: gather(key, Side::Q, &mut out)?,
        lse: gather(key, Side::Q, &mut lse)?,
        max_logits: max_logits.values(),
        dq: gather(key, Side::Q, &mut dq)?,
        dk: gather(key, Side::K, &mut dk)?,
        dv: gather(key, Side::K, &mut dv)?,
        dsink,
    })
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
        let answer = rank(job, o, &key)?;
        answers.lock().unwrap().push(answer);
        Ok(())
    })
    .unwrap();
    let mut answers = answers.into_inner().unwrap();
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
