//! calc_attn backward: keys and queries travel again, partial gradients travel back to their owners.

use super::attn_args::{Backward, scale};
use super::check;
use super::context::Session;
use super::forward::extents;
use super::gather::{Purpose, gather};
use super::group::ReduceOp;
use super::key::Key;
use super::reduction::Reduction;
use super::scratch::Scratch;
use super::stages::{self, Keys, Queries};
use super::travel::{Homeward, sendable};
use super::workspace::{BackwardSpace, KeyPair};
use crate::backend::BackwardArgs;
use crate::device::{Carver, Stream, fault};
use crate::types::{DType, DsinkReduce, Range, Result, Tensor};

/// Gradients for the tokens that this rank owns. Collective. Errors as the C function documents.
pub fn run(key: &Key, a: &Backward, stream: Stream) -> Result<()> {
    key.context().check_computes()?;
    check::backward(a, &extents(key), stream)?;
    if key.config().sanity_check {
        let inputs = [
            ("args.q", &a.q),
            ("args.k", &a.k),
            ("args.v", &a.v),
            ("args.out", &a.out),
            ("args.dout", &a.dout),
        ];
        check::no_nan(key.context().backend(), &inputs)?;
    }
    let mut session = key.collective(stream)?;
    fault::point("calc_attn_backward", key.context().rank())?;
    let arena = &mut session.state.arena;
    let space = BackwardSpace::carve(key.dims(), &mut Carver::over(arena.base(), arena.bytes())?)?;
    session.in_step(|| gradients(key, a, &session, &space, stream))
}

/// What follows once arguments are checked and every rank has the same plan.
fn gradients(
    key: &Key,
    a: &Backward,
    session: &Session<'_>,
    space: &BackwardSpace,
    stream: Stream,
) -> Result<()> {
    let backend = session.context().backend();
    backend.attn_delta(a.out, a.dout, space.delta)?;
    if let (Some(sink), Some(dsink)) = (&a.sink, &a.dsink) {
        sink_gradient(key, session, a, [*sink, *dsink, space.delta], stream)?;
    }
    let dq = Accumulator::new(session, a.dq, space.dq, a.accumulate_dq)?;
    let dk = Accumulator::new(session, a.dk, space.local.k, a.accumulate_dk)?;
    let dv = Accumulator::new(session, a.dv, space.local.v, a.accumulate_dv)?;
    let local = KeyPair {
        k: dk.running,
        v: dv.running,
    };

    let mut reduction = Reduction::new(session, space, local, stream);
    let keys = Keys {
        local: KeyPair { k: a.k, v: a.v },
        packed: space.packed,
        recv: &space.recv,
        gateway: &space.gateway,
    };
    let stages = &key.plan().backward.stages;
    let queries = Queries {
        local: sendable(session, stages, &[a.q, a.dout, a.lse, space.delta], &space.guests)?,
        buffers: &space.guests.buffers,
    };
    let mut homeward = Homeward::new(session, &space.guests, ReduceOp::Sum, &[dq.running], stream);
    stages::run(
        session,
        stages,
        &keys,
        &queries,
        stream,
        |stage, [k, v], guests| {
            let partial = reduction.partial(stage)?;
            let mine = BackwardArgs {
                q: a.q,
                k,
                v,
                dout: a.dout,
                lse: a.lse,
                delta: space.delta,
                slices: &stage.slices,
                shape: *key.shape(),
                softmax_scale: scale(a.softmax_scale, key.shape().head_dim),
                softcap: a.softcap,
                dq: dq.running,
                dk: [Some(local.k), partial.map(|p| p.k)],
                dv: [Some(local.v), partial.map(|p| p.v)],
            };
            backend.attn_backward(&mine)?;
            if let ([q, dout, lse, delta], [dq]) = (guests, homeward.partial(stage).as_slice()) {
                backend.fill_zero(*dq)?;
                backend.attn_backward(&BackwardArgs {
                    q: *q,
                    dout: *dout,
                    lse: *lse,
                    delta: *delta,
                    slices: &stage.guests.slices,
                    dq: *dq,
                    ..mine
                })?;
            }
            homeward.start(stage)?;
            reduction.start(stage)
        },
    )?;
    homeward.finish()?;
    reduction.finish()?;
    for accumulator in [dq, dk, dv] {
        accumulator.store(session)?;
    }
    Ok(())
}

/// Where a gradient is added up, and where it goes in the end.
struct Accumulator {
    target: Tensor,
    running: Tensor,
    add: bool,
}

impl Accumulator {
    /// Adds up in `target` itself when it has the accumulator type, else in `space`. With `add` the target's content is
    /// the first summand.
    fn new(session: &Session<'_>, target: Tensor, space: Tensor, add: bool) -> Result<Accumulator> {
        let backend = session.context().backend();
        let running = if target.dtype() == space.dtype() {
            target
        } else {
            space
        };
        if target.dtype() != space.dtype() || !add {
            backend.fill_zero(running)?;
        }
        Ok(Accumulator { target, running, add })
    }

    /// Writes the target, unless the sum was made there.
    fn store(&self, session: &Session<'_>) -> Result<()> {
        if self.target.dtype() == self.running.dtype() {
            return Ok(());
        }
        session
            .context()
            .backend()
            .cast(self.running, self.target, self.add)
    }
}

/// dsink: this rank's part, reduced over ranks as configured when all queries share the sink.
fn sink_gradient(
    key: &Key,
    session: &Session<'_>,
    a: &Backward,
    t: [Tensor; 3],
    stream: Stream,
) -> Result<()> {
    let [sink, dsink, delta] = t;
    let (context, backend) = (session.context(), session.context().backend());
    let rows = [Range::new(0, sink.tokens())];
    let mut own = Scratch::new(dsink.dtype(), sink.shape().to_vec())?;
    backend.sink_backward(sink, a.lse, delta, own.tensor())?;
    let reduce = key.config().dsink_reduce;
    if sink.shape().len() == 2 && reduce != DsinkReduce::None {
        let all = gather(session, Purpose::SinkGradient, own.bytes(), stream)?;
        let by = if reduce == DsinkReduce::Avg {
            context.size() as f64
        } else {
            1.0
        };
        sum_over_ranks(dsink.dtype(), &all, by, own.bytes_mut());
    }
    if a.accumulate_dsink {
        backend.range_reduce(own.tensor(), dsink, &rows)
    } else {
        backend.range_gather(own.tensor(), &rows, dsink)
    }
}

/// The sum of every rank's elements in rank order, divided by `by`, in the accumulator type.
fn sum_over_ranks(dtype: DType, all: &[Vec<u8>], by: f64, out: &mut [u8]) {
    let size = dtype.size();
    for (i, word) in out.chunks_exact_mut(size).enumerate() {
        let part = |b: &Vec<u8>| {
            let bytes = &b[i * size..(i + 1) * size];
            match dtype {
                DType::F64 => f64::from_ne_bytes(bytes.try_into().unwrap_or_default()),
                _ => f64::from(f32::from_ne_bytes(bytes.try_into().unwrap_or_default())),
            }
        };
        let sum = all.iter().map(part).sum::<f64>() / by;
        match dtype {
            DType::F64 => word.copy_from_slice(&sum.to_ne_bytes()),
            _ => word.copy_from_slice(&(sum as f32).to_ne_bytes()),
        }
    }
}
