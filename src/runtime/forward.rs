//! calc_attn forward: stage by stage, the next stage's keys and queries on their way while one is computed.

use super::attn_args::{Forward, scale};
use super::check::{self, Extents};
use super::context::Session;
use super::gather::{Purpose, gather};
use super::group::ReduceOp;
use super::key::Key;
use super::scratch::Scratch;
use super::stages::{self, Keys, Queries};
use super::travel::{Homeward, sendable};
use super::workspace::{ForwardSpace, KeyPair};
use crate::backend::ForwardArgs;
use crate::device::{Carver, Stream, fault};
use crate::types::{DType, Device, Range, Result, Tensor};

/// Tokens and heads of `key`'s tensors on this rank.
pub(super) fn extents(key: &Key) -> Extents {
    let d = key.dims();
    Extents {
        tokens_q: d.tokens_q,
        tokens_k: d.tokens_k,
        shape: d.shape,
        device: Device::Cpu,
    }
}

/// Attention of this rank's queries. Collective. Errors as the C function documents.
pub fn run(key: &Key, a: &Forward, stream: Stream) -> Result<()> {
    key.context().check_computes()?;
    check::forward(a, &extents(key), stream)?;
    if key.config().sanity_check {
        check::no_nan(
            key.context().backend(),
            &[("args.q", &a.q), ("args.k", &a.k), ("args.v", &a.v)],
        )?;
    }
    let mut session = key.collective(stream)?;
    fault::point("calc_attn_forward", key.context().rank())?;
    let arena = &mut session.state.arena;
    let space = ForwardSpace::carve(key.dims(), &mut Carver::over(arena.base(), arena.bytes())?)?;
    session.in_step(|| attend(key, a, &session, &space, stream))
}

/// What follows once arguments are checked and every rank has the same plan.
fn attend(key: &Key, a: &Forward, session: &Session<'_>, space: &ForwardSpace, stream: Stream) -> Result<()> {
    let (context, backend) = (session.context(), session.context().backend());
    let acc = key.shape().dtype.accumulator();
    let out = if a.out.dtype() == acc { a.out } else { space.out };
    let lse = a.lse.unwrap_or(space.lse);
    backend.attn_init(out, lse, a.max_logits, a.sink)?;
    let keys = Keys {
        local: KeyPair { k: a.k, v: a.v },
        packed: space.packed,
        recv: &space.recv,
        gateway: &space.gateway,
    };
    let stages = &key.plan().forward.stages;
    let queries = Queries {
        local: sendable(session, stages, &[a.q], &space.guests)?,
        buffers: &space.guests.buffers,
    };
    let mut homeward = Homeward::new(session, &space.guests, ReduceOp::Lse, &[out, lse], stream);
    stages::run(
        session,
        stages,
        &keys,
        &queries,
        stream,
        |stage, [k, v], guests| {
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
            backend.attn_forward(&mine)?;
            if let ([q], [out, lse]) = (guests, homeward.partial(stage).as_slice()) {
                // Their sinks count at home.
                backend.attn_init(*out, *lse, None, None)?;
                backend.attn_forward(&ForwardArgs {
                    q: *q,
                    slices: &stage.guests.slices,
                    out: *out,
                    lse: *lse,
                    ..mine
                })?;
            }
            homeward.start(stage)
        },
    )?;
    homeward.finish()?;
    if let Some(max_logits) = &a.max_logits {
        reduce_max(session, max_logits, stream)?;
    }
    if a.out.dtype() != acc {
        context.backend().cast(out, a.out, false)?;
    }
    Ok(())
}

/// The maximum over ranks of each head.
fn reduce_max(session: &Session<'_>, max_logits: &Tensor, stream: Stream) -> Result<()> {
    let backend = session.context().backend();
    let heads = [Range::new(0, max_logits.tokens())];
    let mut mine = Scratch::new(DType::F32, max_logits.shape().to_vec())?;
    backend.range_gather(*max_logits, &heads, mine.tensor())?;
    let all = gather(session, Purpose::MaxLogits, mine.bytes(), stream)?;
    let value = |bytes: &[u8], h: usize| {
        let word: [u8; 4] = bytes[4 * h..4 * h + 4].try_into().unwrap_or_default();
        f32::from_ne_bytes(word)
    };
    for (h, word) in mine.bytes_mut().chunks_exact_mut(4).enumerate() {
        let most = all.iter().map(|b| value(b, h)).fold(f32::NEG_INFINITY, f32::max);
        word.copy_from_slice(&most.to_ne_bytes());
    }
    backend.range_gather(mine.tensor(), &heads, *max_logits)
}
