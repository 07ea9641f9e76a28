//! calc_attn backward: keys and queries travel again, partial gradients travel back to their owners.

use super::attn_args::{Backward, scale};
use super::check;
use super::context::Session;
use super::forward::extents;
use super::group::ReduceOp;
use super::key::Key;
use super::reduction::Reduction;
use super::stage_backward::{self, StageBackward};
use super::stage_tiles::Part;
use super::stages::{self, Keys, Queries};
use super::travel::{Homeward, sendable};
use super::workspace::{BackwardSpace, KeyPair};
use super::{across_ranks, key_device};
use crate::backend::BackwardArgs;
use crate::device::{Carver, Stream, fault};
use crate::types::{DsinkReduce, Error, Range, Result, Tensor};

/// Gradients for the tokens that this rank owns. Collective. Errors as the C function documents.
pub fn run(key: &Key, a: &Backward, stream: Stream) -> Result<()> {
    key.context().check_open()?;
    check::backward(a, &extents(key), stream)?;
    if key.config().sanity_check {
        let inputs = [
            ("args.q", &a.q),
            ("args.k", &a.k),
            ("args.v", &a.v),
            ("args.out", &a.out),
            ("args.dout", &a.dout),
        ];
        check::no_nan(key.context().on(stream)?.backend(), &inputs)?;
    }
    let fast = stage_backward::choose_for(key, a)?;
    let mut session = key.collective(stream)?;
    fault::point("calc_attn_backward", key.context().rank())?;
    let (arena, kernels) = (
        &session.state.arena,
        key_device::before_backward(key, fast, stream)?,
    );
    let mut carver = Carver::over(arena.base(), arena.bytes())?;
    let space = BackwardSpace::carve(key.dims(), kernels, &mut carver)?;
    session.record(key.tape(1), stream)?;
    let compute = StageBackward {
        key,
        session: &session,
        fast,
        workspace: space.kernels,
        stream,
    };
    session.in_step(|| gradients(a, &compute, &space))?;
    session.recorded()
}

/// What follows once arguments are checked and every rank has the same plan.
fn gradients(a: &Backward, compute: &StageBackward<'_>, space: &BackwardSpace) -> Result<()> {
    let (key, session, stream) = (compute.key, compute.session, compute.stream);
    let backend = session.backend();
    let dq = Accumulator::new(a.dq, space.dq, a.accumulate_dq);
    let dk = Accumulator::new(a.dk, space.local.k, a.accumulate_dk);
    let dv = Accumulator::new(a.dv, space.local.v, a.accumulate_dv);
    let begin = || {
        backend.attn_delta(a.out, a.dout, space.delta)?;
        if let (Some(sink), Some(dsink)) = (&a.sink, &a.dsink) {
            sink_gradient(compute, a, [*sink, *dsink], space)?;
        }
        [&dq, &dk, &dv].into_iter().try_for_each(|sum| sum.begin(session))
    };
    let local = KeyPair {
        k: dk.running,
        v: dv.running,
    };

    let packing = &key.data().backward_packing;
    let mut reduction = Reduction::new(session, space, local, stream);
    let keys = Keys {
        local: KeyPair { k: a.k, v: a.v },
        packed: space.packed,
        recv: &space.recv,
        gateway: &space.gateway,
        packing: &key.data().backward_packing,
        packs: &space.packs,
    };
    let stages = &key.plan().backward.stages;
    // Behind the start of the first fetch, unless that takes delta along, or all ranks add up gradients of sinks: exchanges
    // have one order on all of them.
    let is_early = a.sink.is_some() || stages.iter().any(|s| !s.guests.transfer.sends.is_empty());
    if is_early {
        begin()?;
    }
    let queries = Queries {
        local: sendable(session, stages, &[a.q, a.dout, a.lse, space.delta], &space.guests)?,
        buffers: &space.guests.buffers,
    };
    let mut homeward = Homeward::new(session, &space.guests, ReduceOp::Sum, &[dq.running], stream);
    let begun = || if is_early { Ok(()) } else { begin() };
    let held = (&keys, &queries);
    stages::run(session, stages, held, stream, begun, |at, [k, v], guests| {
        let stage = at.stage;
        let exchanges = at.hold(session, &[homeward.hold(), reduction.hold()])?;
        let computing = session.computing()?;
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
        compute.run((at.number, stage), Part::Own, &mine, exchanges)?;
        if let ([q, dout, lse, delta], [dq]) = (guests, homeward.partial(stage).as_slice()) {
            backend.fill_zero(*dq)?;
            let theirs = BackwardArgs {
                q: *q,
                dout: *dout,
                lse: *lse,
                delta: *delta,
                slices: &stage.guests.slices,
                dq: *dq,
                ..mine
            };
            compute.run((at.number, stage), Part::Guests, &theirs, exchanges)?;
        }
        computing.end()?;
        homeward.start(stage)?;
        reduction.start(stage, &packing.0[at.number])
    })?;
    homeward.finish()?;
    // While the last gradients of keys are on their way.
    dq.store(session)?;
    reduction.finish()?;
    dk.store(session)?;
    dv.store(session)
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
    fn new(target: Tensor, space: Tensor, add: bool) -> Accumulator {
        let running = if target.dtype() == space.dtype() {
            target
        } else {
            space
        };
        Accumulator { target, running, add }
    }

    /// Before anything is added.
    fn begin(&self, session: &Session<'_>) -> Result<()> {
        if self.target.dtype() == self.running.dtype() && self.add {
            return Ok(());
        }
        session.backend().fill_zero(self.running)
    }

    /// Writes the target, unless the sum was made there.
    fn store(&self, session: &Session<'_>) -> Result<()> {
        if self.target.dtype() == self.running.dtype() {
            return Ok(());
        }
        session.backend().cast(self.running, self.target, self.add)
    }
}

/// dsink: this rank's part, reduced over ranks as configured when all queries share the sink.
fn sink_gradient(
    compute: &StageBackward<'_>,
    a: &Backward,
    [sink, dsink]: [Tensor; 2],
    space: &BackwardSpace,
) -> Result<()> {
    let (session, stream, reduce) = (compute.session, compute.stream, compute.key.config().dsink_reduce);
    let backend = session.backend();
    let is_reduced = sink.shape().len() == 2 && reduce != DsinkReduce::None;
    if !is_reduced && !a.accumulate_dsink {
        return backend.sink_backward(sink, a.lse, space.delta, dsink);
    }
    // Nothing of dq is in its space yet, and a query has no more sinks than a head of it has elements.
    let shared = sink.shape().len() == 2;
    let room = if shared { space.sinks } else { space.dq };
    if room.elements() < sink.elements() {
        return Err(Error::internal(
            "gradients of sinks are larger than their workspace",
        ));
    }
    // SAFETY: the space has the dtype of dsink and room for as many elements, for this call alone.
    let own = unsafe { Tensor::dense(room.data(), dsink.dtype(), dsink.device(), sink.shape()) };
    backend.sink_backward(sink, a.lse, space.delta, own)?;
    if is_reduced {
        let of_all = space.sinks.rows(1, space.sinks.tokens());
        across_ranks::sum(session, own, reduce == DsinkReduce::Avg, of_all, stream)?;
    }
    let rows = [Range::new(0, sink.tokens())];
    if a.accumulate_dsink {
        backend.range_reduce(own, dsink, &rows)
    } else {
        backend.range_gather(own, &rows, dsink)
    }
}
