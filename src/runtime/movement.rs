//! Dispatch and undispatch, their gradients, and the sharded forms.

use super::check;
use super::context::Session;
use super::group::{self, Lane};
use super::key::Key;
use super::redistribute::{Ownership, Redistribution, everything, shares};
use super::scratch::Scratch;
use crate::backend::Backend;
use crate::device::Stream;
use crate::types::{Error, Piece, Range, Result, Side, Status, Tensor};

/// Who owns what in the plan's layout.
pub(super) fn layout(key: &Key, side: Side) -> Ownership {
    let placement = key.placement(side);
    (0..key.context().size())
        .map(|r| placement.runs(r).clone())
        .collect()
}

/// Rows of `global` that this rank owns, into `local`. No communication.
fn pick(
    key: &Key,
    side: Side,
    (gname, global): (&str, Tensor),
    (lname, local): (&str, Tensor),
    stream: Stream,
) -> Result<()> {
    check::movement(key, side, (gname, &global), (lname, &local), stream)?;
    check::written(&[(lname, &local)], &[(gname, &global)])?;
    let session = key.context().enter_on(stream)?;
    let runs = key.placement(side).runs(key.context().rank()).as_slice();
    session.backend().range_gather(global, runs, local)
}

/// `local_x[i] = x[position i]`: x `[total, ..]`, local_x `[local tokens, ..]`. No communication.
pub fn dispatch(key: &Key, side: Side, x: Tensor, local_x: Tensor, stream: Stream) -> Result<()> {
    pick(key, side, ("x", x), ("local_x", local_x), stream)
}

/// Gathers every rank's `local_x` into `x` in global order, on every rank. Collective. `names` are the parameters'.
pub fn undispatch(
    key: &Key,
    side: Side,
    local_x: Tensor,
    x: Tensor,
    names: [&str; 2],
    stream: Stream,
) -> Result<()> {
    check::movement(key, side, (names[1], &x), (names[0], &local_x), stream)?;
    check::written(&[(names[1], &x)], &[(names[0], &local_x)])?;
    let session = key.collective(stream)?;
    let world = key.context().size();
    let new = everything(key.placement(side).total(), world);
    redistribute(&session, &layout(key, side), &new, &local_x, &x, stream)
}

/// Gradient of undispatch when every rank holds the full gradient: picks this rank's tokens.
pub fn undispatch_backward_full(
    key: &Key,
    side: Side,
    dx: Tensor,
    dlocal_x: Tensor,
    stream: Stream,
) -> Result<()> {
    pick(key, side, ("dx", dx), ("dlocal_x", dlocal_x), stream)
}

/// Gradient of undispatch when each rank holds a part of it: the sum over ranks of their `dx`, for this rank's tokens,
/// added in rank order in the accumulator type. Collective.
pub fn undispatch_backward_partial(
    key: &Key,
    side: Side,
    dx: Tensor,
    dlocal_x: Tensor,
    stream: Stream,
) -> Result<()> {
    check::movement(key, side, ("dx", &dx), ("dlocal_x", &dlocal_x), stream)?;
    check::written(&[("dlocal_x", &dlocal_x)], &[("dx", &dx)])?;
    if !dx.dtype().is_attention() {
        let message = format!(
            "dx has dtype {}; partial gradients must be f64, f32, bf16 or f16",
            dx.dtype().name()
        );
        return Err(Error::new(Status::DtypeMismatch, message));
    }
    let session = key.collective(stream)?;
    let (context, own) = (session.context(), key.placement(side).runs(key.context().rank()));
    let (rank, world) = (context.rank(), context.size());
    let mine = own.tokens();

    // Every rank sends each owner its rows of dx; contributions land one rank after the other.
    let mut contributions = Scratch::rows_like(session.on(), mine * world as i64, &dx)?;
    let mut packed = Scratch::rows_like(session.on(), if dx.is_dense() { 0 } else { dx.tokens() }, &dx)?;
    let (source, staging) = (dense(&session, &dx, &mut packed)?, contributions.tensor());
    let mut sends = Vec::new();
    let mut recvs = Vec::new();
    for peer in (0..world).filter(|&p| p != rank) {
        let runs = key.placement(side).runs(peer);
        sends.extend(runs.iter().map(|&rows| Piece {
            peer: peer as u32,
            rows,
        }));
        let mut at = peer as i64 * mine;
        for run in own.iter() {
            recvs.push(Piece {
                peer: peer as u32,
                rows: Range::new(at, at + run.len()),
            });
            at += run.len();
        }
    }
    let lanes = [
        Lane {
            tensor: source,
            pieces: &sends,
        },
        Lane {
            tensor: staging,
            pieces: &recvs,
        },
    ];
    let mut shape = dlocal_x.shape().to_vec();
    shape[0] = mine;
    let mut sum = Scratch::new(session.on(), dx.dtype().accumulator(), shape)?;
    let (total, backend) = (sum.tensor(), session.backend());
    let ticket = group::start(context.comm(), &lanes[..1], &lanes[1..], stream)?;
    session.in_step(|| {
        context.comm().finish(ticket, stream)?;
        backend.range_gather(
            source,
            own.as_slice(),
            staging.rows(rank as i64 * mine, (rank as i64 + 1) * mine),
        )?;
        backend.fill_zero(total)?;
        for r in 0..world as i64 {
            backend.range_reduce(
                staging.rows(r * mine, (r + 1) * mine),
                total,
                &[Range::new(0, mine)],
            )?;
        }
        backend.cast(total, dlocal_x, false)
    })
}

/// From contiguous shares to the plan's layout. Collective.
pub fn dispatch_sharded(key: &Key, side: Side, share: Tensor, local_x: Tensor, stream: Stream) -> Result<()> {
    let shares = shares_of(key, side);
    check::sharded(
        key,
        side,
        shares[key.context().rank()].tokens(),
        &share,
        &local_x,
        stream,
    )?;
    check::written(&[("local_x", &local_x)], &[("share", &share)])?;
    let session = key.collective(stream)?;
    redistribute(&session, &shares, &layout(key, side), &share, &local_x, stream)
}

/// From the plan's layout to contiguous shares. Collective.
pub fn undispatch_sharded(
    key: &Key,
    side: Side,
    local_x: Tensor,
    share: Tensor,
    stream: Stream,
) -> Result<()> {
    let shares = shares_of(key, side);
    check::sharded(
        key,
        side,
        shares[key.context().rank()].tokens(),
        &share,
        &local_x,
        stream,
    )?;
    check::written(&[("share", &share)], &[("local_x", &local_x)])?;
    let session = key.collective(stream)?;
    redistribute(&session, &layout(key, side), &shares, &local_x, &share, stream)
}

fn shares_of(key: &Key, side: Side) -> Ownership {
    shares(key.placement(side).total(), key.context().size())
}

/// `t` itself when it is dense, else a dense copy in `scratch`.
fn dense(session: &Session<'_>, t: &Tensor, scratch: &mut Scratch) -> Result<Tensor> {
    if t.is_dense() {
        return Ok(*t);
    }
    let copy = scratch.tensor();
    session
        .backend()
        .range_gather(*t, &[Range::new(0, t.tokens())], copy)?;
    Ok(copy)
}

/// Moves rows of `from`, held as `old` says, into `to`, held as `new` says.
fn redistribute(
    session: &Session<'_>,
    old: &Ownership,
    new: &Ownership,
    from: &Tensor,
    to: &Tensor,
    stream: Stream,
) -> Result<()> {
    let plan = Redistribution::new(session.context().rank(), old, new);
    carry_out(session, &plan, from, to, stream)
}

/// Moves rows of `from` into `to` as `plan` says.
pub(super) fn carry_out(
    session: &Session<'_>,
    plan: &Redistribution,
    from: &Tensor,
    to: &Tensor,
    stream: Stream,
) -> Result<()> {
    let backend = session.backend();
    let mut packed = Scratch::rows_like(
        session.on(),
        if from.is_dense() { 0 } else { from.tokens() },
        from,
    )?;
    let mut unpacked = Scratch::rows_like(session.on(), if to.is_dense() { 0 } else { to.tokens() }, to)?;
    let source = dense(session, from, &mut packed)?;
    let target = if to.is_dense() { *to } else { unpacked.tensor() };
    let lanes = [
        Lane {
            tensor: source,
            pieces: &plan.sends,
        },
        Lane {
            tensor: target,
            pieces: &plan.recvs,
        },
    ];
    let ticket = group::start(session.comm(), &lanes[..1], &lanes[1..], stream)?;
    session.in_step(|| {
        keep(backend, &plan.keeps, source, target)?;
        session.comm().finish(ticket, stream)?;
        if !to.is_dense() {
            backend.range_gather(target, &[Range::new(0, to.tokens())], *to)?;
        }
        Ok(())
    })
}

/// Copies rows that stay on this rank, (old, new), in one go where either side's lie side by side.
fn keep(backend: &dyn Backend, keeps: &[(Range, Range)], from: Tensor, to: Tensor) -> Result<()> {
    let (old, new): (Vec<Range>, Vec<Range>) = keeps.iter().copied().unzip();
    let span = |runs: &[Range]| match (runs.first(), runs.last()) {
        (Some(first), Some(last)) if runs.windows(2).all(|w| w[0].end == w[1].start) => {
            Some(Range::new(first.start, last.end))
        }
        _ => None,
    };
    if let Some(rows) = span(&old) {
        return backend.range_scatter(from.rows(rows.start, rows.end), to, &new);
    }
    if let Some(rows) = span(&new) {
        return backend.range_gather(from, &old, to.rows(rows.start, rows.end));
    }
    let mut each = keeps.iter();
    each.try_for_each(|(old, new)| backend.range_gather(from, &[*old], to.rows(new.start, new.end)))
}
