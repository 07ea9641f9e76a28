//! The calls on a group plan: group_cast, and group_reduce as its transpose.

use super::context::Session;
use super::group::{Lane, ReduceOp, start};
use super::group_check;
use super::group_lists::{Contribution, rows_of};
use super::group_plan::{GroupPlan, Slot, dense};
use crate::backend::Backend;
use crate::device::{Carver, Stream, fault};
use crate::types::{Piece, Range, Result, Tensor};

/// Sends rows of `local` and receives into `received`, as `plan` says. Collective. Errors as the C function documents.
pub fn cast(plan: &GroupPlan, local: &[Tensor], received: &[Tensor], stream: Stream) -> Result<()> {
    group_check::cast(plan, local, received, stream)?;
    let mut session = plan.collective(stream)?;
    fault::point("group_cast", plan.context().rank())?;
    let slots = slots(plan, &mut session)?;
    let comm = session.context().comm();
    let backend = session.backend();
    let lists = &plan.lists;

    let mut sends = Vec::with_capacity(local.len());
    let mut targets = Vec::with_capacity(local.len());
    for ((from, to), slot) in local.iter().zip(received).zip(&slots) {
        sends.push(sendable(
            backend,
            from,
            (&lists.sends, &lists.staged_sends),
            slot.staging,
        )?);
        targets.push(if to.is_dense() {
            (*to, &lists.receives)
        } else {
            let staged = &lists.staged_receives;
            let rows = lists.receive_rows();
            (dense(slot.received, to.dtype(), rows, to, comm.device()), staged)
        });
    }
    let recvs: Vec<Lane> = targets.iter().map(|&(t, pieces)| lane(t, pieces)).collect();
    let ticket = start(comm, &sends, &recvs, stream)?;
    session.in_step(|| {
        for (from, to) in local.iter().zip(received) {
            for (old, new) in &lists.keeps {
                backend.range_gather(*from, &[*old], to.rows(new.start, new.end))?;
            }
        }
        comm.finish(ticket, stream)?;
        for (to, (target, _)) in received.iter().zip(&targets).filter(|(to, _)| !to.is_dense()) {
            backend.range_scatter(*target, *to, &rows_of(&lists.receives))?;
        }
        Ok(())
    })
}

/// Sends rows of `partial`, one for every received row, back to where group_cast has them from, and adds those that come in
/// to `local`, in rank order, in the accumulator type; what `local` holds counts first with `accumulate`. Collective. Errors
/// as the C function documents.
pub fn reduce(
    plan: &GroupPlan,
    op: ReduceOp,
    partial: &[Tensor],
    accumulate: bool,
    local: &[Tensor],
    stream: Stream,
) -> Result<()> {
    group_check::reduce(plan, op, partial, local, stream)?;
    let mut session = plan.collective(stream)?;
    fault::point("group_reduce", plan.context().rank())?;
    let slots = slots(plan, &mut session)?;
    let comm = session.context().comm();
    let backend = session.backend();
    let lists = &plan.lists;

    let mut sends = Vec::with_capacity(partial.len());
    let mut sums = Sums {
        op,
        accumulate,
        partial,
        staging: Vec::with_capacity(partial.len()),
        target: Vec::with_capacity(partial.len()),
    };
    for ((from, to), slot) in partial.iter().zip(local).zip(&slots) {
        let pieces = (lists.receives.as_slice(), lists.staged_receives.as_slice());
        sends.push(sendable(backend, from, pieces, slot.received)?);
        let rows = lists.send_rows();
        sums.staging
            .push(dense(slot.staging, from.dtype(), rows, from, comm.device()));
        let acc = from.dtype().accumulator();
        sums.target.push(if to.dtype() == acc {
            *to
        } else {
            dense(slot.sums, acc, plan.local_rows, to, comm.device())
        });
    }
    let recvs: Vec<Lane> = sums
        .staging
        .iter()
        .map(|&t| lane(t, &lists.staged_sends))
        .collect();
    let ticket = start(comm, &sends, &recvs, stream)?;
    session.in_step(|| {
        sums.begin(backend, local)?;
        comm.finish(ticket, stream)?;
        sums.add(plan, backend)?;
        for (sum, to) in sums.target.iter().zip(local) {
            if sum.dtype() != to.dtype() {
                backend.cast(*sum, *to, false)?;
            }
        }
        Ok(())
    })
}

/// A reduction of all tensors of a group.
struct Sums<'a> {
    op: ReduceOp,
    accumulate: bool,
    partial: &'a [Tensor],
    /// What comes from other ranks.
    staging: Vec<Tensor>,
    /// In the accumulator type: the caller's tensors, or workspace.
    target: Vec<Tensor>,
}

impl Sums<'_> {
    /// What is there before the first contribution.
    fn begin(&self, backend: &dyn Backend, local: &[Tensor]) -> Result<()> {
        if self.accumulate {
            for (sum, held) in self.target.iter().zip(local) {
                if sum.dtype() != held.dtype() {
                    backend.cast(*held, *sum, false)?;
                }
            }
            return Ok(());
        }
        if self.op == ReduceOp::Lse {
            return self
                .target
                .chunks_exact(2)
                .try_for_each(|pair| backend.attn_init(pair[0], pair[1], None, None));
        }
        self.target.iter().try_for_each(|sum| backend.fill_zero(*sum))
    }

    /// Adds every contribution, by ascending source.
    fn add(&self, plan: &GroupPlan, backend: &dyn Backend) -> Result<()> {
        let lists = &plan.lists;
        for contribution in &lists.contributions {
            match contribution {
                Contribution::Peer(from, to) => self.merge(backend, &self.staging, *from, to)?,
                Contribution::Own => {
                    for (to, from) in &lists.keeps {
                        self.merge(backend, self.partial, *from, &[*to])?;
                    }
                }
            }
        }
        if self.op != ReduceOp::Avg {
            return Ok(());
        }
        for (rows, count) in &lists.counts {
            let count = count + i64::from(self.accumulate);
            for sum in self.target.iter().filter(|_| count > 1) {
                backend.divide(sum.rows(rows.start, rows.end), count)?;
            }
        }
        Ok(())
    }

    /// Adds rows `from` of `sources` to rows `to`.
    fn merge(&self, backend: &dyn Backend, sources: &[Tensor], from: Range, to: &[Range]) -> Result<()> {
        let part = |t: &Tensor| t.rows(from.start, from.end);
        if self.op == ReduceOp::Lse {
            return sources
                .chunks_exact(2)
                .zip(self.target.chunks_exact(2))
                .try_for_each(|(new, sum)| {
                    backend.lse_reduce(part(&new[0]), part(&new[1]), sum[0], sum[1], to)
                });
        }
        sources
            .iter()
            .zip(&self.target)
            .try_for_each(|(new, sum)| backend.range_reduce(part(new), *sum, to))
    }
}

fn lane(tensor: Tensor, pieces: &[Piece]) -> Lane<'_> {
    Lane { tensor, pieces }
}

/// The pieces of `t` as a communicator can send them: where they are, or packed one after the other.
fn sendable<'a>(
    backend: &dyn Backend,
    t: &Tensor,
    (pieces, staged): (&'a [Piece], &'a [Piece]),
    space: *mut u8,
) -> Result<Lane<'a>> {
    if t.is_dense() {
        return Ok(lane(*t, pieces));
    }
    let rows = staged.last().map_or(0, |p| p.rows.end);
    let packed = dense(space, t.dtype(), rows, t, t.device());
    backend.range_gather(*t, &rows_of(pieces), packed)?;
    Ok(lane(packed, staged))
}

fn slots(plan: &GroupPlan, session: &mut Session<'_>) -> Result<Vec<Slot>> {
    let arena = &mut session.state.arena;
    plan.carve(&mut Carver::over(arena.base(), arena.bytes())?)
}
