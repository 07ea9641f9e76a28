//! The calls on a group plan: group_cast, and group_reduce as its transpose.

use super::context::Session;
use super::group::{Lane, ReduceOp, start};
use super::group_check;
use super::group_lists::{Contribution, GroupLists, rows_of};
use super::group_plan::{GroupPlan, Slot, dense};
use super::packing::Packing;
use crate::backend::Backend;
use crate::device::{Carver, Stream, fault};
use crate::types::{Error, Piece, Range, Result, Tensor};

/// Sends rows of `local` and receives into `received`, as `plan` says. Collective. Errors as the C function documents.
pub fn cast(plan: &GroupPlan, local: &[Tensor], received: &[Tensor], stream: Stream) -> Result<()> {
    group_check::cast(plan, local, received, stream)?;
    let mut session = plan.collective(stream)?;
    fault::point("group_cast", plan.context().rank())?;
    let slots = slots(plan, &mut session)?;
    let comm = session.context().comm();
    let backend = session.backend();
    let lists = &plan.lists;

    let rows_received = rows_of(&lists.receives);
    let mut sends = Vec::with_capacity(2 * local.len());
    let mut recvs = Vec::with_capacity(2 * local.len());
    // What arrives in workspace, and the rows where it belongs.
    let mut arriving: Vec<(Tensor, &[Range])> = Vec::with_capacity(local.len());
    for ((from, to), slot) in local.iter().zip(received).zip(&slots) {
        sends.extend(sendable(backend, from, &Way::sends(lists), slot.staging)?);
        let space = |rows| dense(slot.received, to.dtype(), rows, to, comm.device());
        if to.is_dense() {
            let packing = &lists.receive_packing;
            let packed = space(packing.rows());
            recvs.extend([lane(*to, &packing.single), lane(packed, &packing.packed)]);
            arriving.push((packed, &packing.ranges));
        } else {
            let staged = space(lists.receive_rows());
            recvs.push(lane(staged, &lists.receive_messages));
            arriving.push((staged, &rows_received));
        }
    }
    let ticket = start(comm, &sends, &recvs, stream)?;
    session.in_step(|| {
        for (from, to) in local.iter().zip(received) {
            for (old, new) in &lists.keeps {
                backend.range_gather(*from, &[*old], to.rows(new.start, new.end))?;
            }
        }
        comm.finish(ticket, stream)?;
        let mut each = received
            .iter()
            .zip(&arriving)
            .filter(|(_, (_, rows))| !rows.is_empty());
        each.try_for_each(|(to, (from, rows))| backend.range_scatter(*from, *to, rows))
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
        sends.extend(sendable(backend, from, &Way::receives(lists), slot.received)?);
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
        .map(|&t| lane(t, &lists.send_messages))
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

/// How one side of a group leaves a rank.
struct Way<'a> {
    pieces: &'a [Piece],
    /// From dense tensors.
    packing: &'a Packing,
    /// From staging, which has as many rows.
    messages: &'a [Piece],
    rows: i64,
}

impl<'a> Way<'a> {
    fn sends(lists: &'a GroupLists) -> Way<'a> {
        Way {
            pieces: &lists.sends,
            packing: &lists.send_packing,
            messages: &lists.send_messages,
            rows: lists.send_rows(),
        }
    }

    /// Back to where group_cast has them from.
    fn receives(lists: &'a GroupLists) -> Way<'a> {
        Way {
            pieces: &lists.receives,
            packing: &lists.receive_packing,
            messages: &lists.receive_messages,
            rows: lists.receive_rows(),
        }
    }
}

/// The pieces of `t` as a communicator can send them: where they are, or gathered in `space`.
fn sendable<'a>(backend: &dyn Backend, t: &Tensor, way: &Way<'a>, space: *mut u8) -> Result<Vec<Lane<'a>>> {
    let gather = |ranges: &[Range], rows: i64| {
        let packed = dense(space, t.dtype(), rows, t, t.device());
        if !ranges.is_empty() {
            backend.range_gather(*t, ranges, packed)?;
        }
        Ok::<_, Error>(packed)
    };
    if !t.is_dense() {
        let staged = gather(&rows_of(way.pieces), way.rows)?;
        return Ok(vec![lane(staged, way.messages)]);
    }
    let packed = gather(&way.packing.ranges, way.packing.rows())?;
    Ok(vec![
        lane(*t, &way.packing.single),
        lane(packed, &way.packing.packed),
    ])
}

fn slots(plan: &GroupPlan, session: &mut Session<'_>) -> Result<Vec<Slot>> {
    let arena = &mut session.state.arena;
    plan.carve(&mut Carver::over(arena.base(), arena.bytes())?)
}
