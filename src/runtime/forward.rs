//! calc_attn forward: stage by stage, the next stage's keys and queries on their way while one is computed.

use super::attn_args::{Forward, scale};
use super::check::{self, Extents};
use super::group::ReduceOp;
use super::key::Key;
use super::stage_forward::{self, StageForward};
use super::stage_tiles::Part;
use super::stages::{self, Keys, Queries};
use super::travel::{Homeward, sendable};
use super::workspace::{ForwardSpace, KeyPair};
use super::{across_ranks, key_device};
use crate::backend::ForwardArgs;
use crate::device::{Carver, Stream, fault};
use crate::types::Result;

/// Tokens and heads of `key`'s tensors on this rank.
pub(super) fn extents(key: &Key) -> Extents {
    let d = key.dims();
    Extents {
        tokens_q: d.tokens_q,
        tokens_k: d.tokens_k,
        shape: d.shape,
        device: key.context().device(),
    }
}

/// Attention of this rank's queries. Collective. Errors as the C function documents.
pub fn run(key: &Key, a: &Forward, stream: Stream) -> Result<()> {
    key.context().check_open()?;
    check::forward(a, &extents(key), stream)?;
    if key.config().sanity_check {
        check::no_nan(
            key.context().on(stream)?.backend(),
            &[("args.q", &a.q), ("args.k", &a.k), ("args.v", &a.v)],
        )?;
    }
    let fast = stage_forward::choose_for(key, a)?;
    let mut session = key.collective(stream)?;
    fault::point("calc_attn_forward", key.context().rank())?;
    let (arena, kernels) = (
        &session.state.arena,
        key_device::before_forward(key, fast, stream)?,
    );
    let mut carver = Carver::over(arena.base(), arena.bytes())?;
    let space = ForwardSpace::carve(key.dims(), kernels, &mut carver)?;
    session.record(key.tape(0), stream)?;
    let compute = StageForward {
        key,
        session: &session,
        args: a,
        fast,
        workspace: space.kernels,
        stream,
    };
    session.in_step(|| attend(&compute, &space))?;
    session.recorded()
}

/// What follows once arguments are checked and every rank has the same plan.
fn attend(compute: &StageForward<'_>, space: &ForwardSpace) -> Result<()> {
    let (key, session, a, stream) = (compute.key, compute.session, compute.args, compute.stream);
    let acc = key.shape().dtype.accumulator();
    let direct = a.out.dtype() == acc || compute.is_direct();
    let out = if direct { a.out } else { space.out };
    let lse = a.lse.unwrap_or(space.lse);
    compute.begin(out, lse)?;
    let keys = Keys {
        local: KeyPair { k: a.k, v: a.v },
        packed: space.packed,
        recv: &space.recv,
        gateway: &space.gateway,
        packing: &key.data().forward_packing,
        packs: &space.packs,
    };
    let stages = &key.plan().forward.stages;
    let queries = Queries {
        local: sendable(session, stages, &[a.q], &space.guests)?,
        buffers: &space.guests.buffers,
    };
    let mut homeward = Homeward::new(session, &space.guests, ReduceOp::Lse, &[out, lse], stream);
    let begun = || Ok(());
    let held = (&keys, &queries);
    stages::run(session, stages, held, stream, begun, |at, [k, v], guests| {
        let stage = at.stage;
        let exchanges = at.hold(session, &[homeward.hold()])?;
        let computing = session.computing()?;
        let mine = ForwardArgs {
            q: a.q,
            k,
            v,
            slices: &stage.slices,
            shape: *key.shape(),
            softmax_scale: scale(a.softmax_scale, key.shape().head_dim),
            softcap: a.softcap,
            out,
            lse,
            max_logits: a.max_logits,
        };
        compute.run((at.number, stage), Part::Own, &mine, exchanges)?;
        if let ([q], [out, lse]) = (guests, homeward.partial(stage).as_slice()) {
            // Their sinks count at home.
            session.backend().attn_init(*out, *lse, None, None)?;
            let theirs = ForwardArgs {
                q: *q,
                slices: &stage.guests.slices,
                out: *out,
                lse: *lse,
                ..mine
            };
            compute.run((at.number, stage), Part::Guests, &theirs, exchanges)?;
        }
        computing.end()?;
        homeward.start(stage)
    })?;
    homeward.finish()?;
    if let Some(max_logits) = &a.max_logits {
        across_ranks::maximum(session, max_logits, space.maxima, stream)?;
    }
    if !direct && !compute.finishes() {
        session.backend().cast(out, a.out, false)?;
    }
    Ok(())
}
