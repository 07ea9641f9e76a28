//! The calls on a group plan: group_cast, and group_reduce as its transpose.

use super::context::Session;
use super::group::{Lane, ReduceOp, start};
use super::group_check;
use super::group_moves::{Moves, Relay};
use super::group_plan::{GroupPlan, Slot, dense};
use super::group_sums::Sums;
use super::group_way::Way;
use crate::backend::Backend;
use crate::device::{Carver, Stream, fault};
use crate::types::{DType, Piece, Range, Result, Tensor};

/// Sends rows of `local` and receives into `received`, as `plan` says. Collective. Errors as the C function documents.
pub fn cast(plan: &GroupPlan, local: &[Tensor], received: &[Tensor], stream: Stream) -> Result<()> {
    group_check::cast(plan, local, received, stream)?;
    let mut session = plan.collective(stream)?;
    fault::point("group_cast", plan.context().rank())?;
    let moves = plan.moves()?;
    let slots = slots(plan, moves, &mut session)?;
    let (comm, backend) = (session.context().comm(), session.backend());

    let mut sends = Vec::with_capacity(4 * local.len());
    let mut arrivals = Arrivals::default();
    let mut gateways = Vec::new();
    for ((from, to), slot) in local.iter().zip(received).zip(&slots) {
        sends.extend(leaving(backend, from, &moves.sends, slot.staging)?);
        arrivals.expect(to, &moves.receives, slot.received);
        if let Some(relay) = &moves.relay {
            sends.extend(leaving(backend, from, &relay.crossing, slot.crossing)?);
            let gateway = space(slot.gateway, from.dtype(), relay.gateway.rows(), from);
            arrivals.lanes.push(lane(gateway, &relay.gateway.messages));
            gateways.push(gateway);
        }
    }
    let ticket = start(comm, &sends, &arrivals.lanes, stream)?;
    session.in_step(|| {
        copy(backend, &moves.keeps, local, received)?;
        comm.finish(ticket, stream)?;
        let Some(relay) = &moves.relay else {
            return arrivals.spread(backend);
        };
        let (mut sends, mut relayed) = (Vec::with_capacity(2 * local.len()), Arrivals::default());
        for ((from, to), slot) in gateways.iter().zip(received).zip(&slots) {
            sends.extend(leaving(backend, from, &relay.forwards, slot.forwards)?);
            relayed.expect(to, &relay.relayed, slot.relayed);
        }
        let ticket = start(comm, &sends, &relayed.lanes, stream)?;
        arrivals.spread(backend)?;
        copy(backend, &relay.keeps, &gateways, received)?;
        comm.finish(ticket, stream)?;
        relayed.spread(backend)
    })
}

/// Sends rows of `partial`, one for every received row, back to where group_cast has them from, and adds those that come in
/// to `local`, in rank order, in the accumulator type; what `local` holds counts first with `accumulate`. Over a mesh what
/// crosses hosts is added up by gateways before. Collective. Errors as the C function documents.
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
    let moves = plan.moves()?;
    let slots = slots(plan, moves, &mut session)?;
    let (comm, backend) = (session.context().comm(), session.backend());

    let sums = sums(plan, moves, op, (partial, local), &slots);
    let through = moves
        .relay
        .as_ref()
        .map(|relay| (relay, passed_on(relay, op, partial, &slots)));
    let (mut sends, mut recvs) = (Vec::with_capacity(4 * partial.len()), Vec::new());
    for (i, (from, slot)) in partial.iter().zip(&slots).enumerate() {
        sends.extend(leaving(backend, from, &moves.receives, slot.received)?);
        recvs.push(lane(sums.staging[i], &moves.sends.messages));
        if let Some((relay, passed)) = &through {
            sends.extend(leaving(backend, from, &relay.relayed, slot.relayed)?);
            recvs.push(lane(passed.staging[i], &relay.forwards.messages));
        }
    }
    let ticket = start(comm, &sends, &recvs, stream)?;
    session.in_step(|| {
        begin(backend, &sums, accumulate, local)?;
        if let Some((_, passed)) = &through {
            passed.clear(backend)?;
        }
        comm.finish(ticket, stream)?;
        if let Some((relay, passed)) = &through {
            passed.add(backend, &relay.contributions)?;
            let sends = lanes(&passed.target, &relay.gateway.messages);
            let recvs = lanes(&sums.hosts, &relay.crossing.messages);
            let ticket = start(comm, &sends, &recvs, stream)?;
            comm.finish(ticket, stream)?;
        }
        sums.add(backend, &moves.contributions)?;
        if op == ReduceOp::Avg {
            divide(plan, backend, &sums.target, accumulate)?;
        }
        let mut each = sums.target.iter().zip(local);
        each.try_for_each(|(sum, to)| converted(backend, sum, to))
    })
}

/// What comes back for local rows.
fn sums<'a>(
    plan: &GroupPlan,
    moves: &Moves,
    op: ReduceOp,
    (partial, local): (&'a [Tensor], &[Tensor]),
    slots: &[Slot],
) -> Sums<'a> {
    let crossing = moves.relay.as_ref().map_or(0, |relay| relay.crossing.rows());
    let each = || partial.iter().zip(slots);
    let target = each().zip(local).map(|((from, slot), to)| {
        let acc = from.dtype().accumulator();
        if to.dtype() == acc {
            *to
        } else {
            space(slot.sums, acc, plan.local_rows, to)
        }
    });
    Sums {
        op,
        partial,
        staging: each()
            .map(|(t, slot)| space(slot.staging, t.dtype(), moves.sends.rows(), t))
            .collect(),
        hosts: each()
            .map(|(t, slot)| space(slot.crossing, t.dtype().accumulator(), crossing, t))
            .collect(),
        target: target.collect(),
    }
}

/// What this rank, as a gateway, adds up of its host.
fn passed_on<'a>(relay: &Relay, op: ReduceOp, partial: &'a [Tensor], slots: &[Slot]) -> Sums<'a> {
    let each = || partial.iter().zip(slots);
    Sums {
        op,
        partial,
        staging: each()
            .map(|(t, slot)| space(slot.forwards, t.dtype(), relay.forwards.rows(), t))
            .collect(),
        hosts: Vec::new(),
        target: each()
            .map(|(t, slot)| space(slot.gateway, t.dtype().accumulator(), relay.gateway.rows(), t))
            .collect(),
    }
}

/// What is there before the first contribution.
fn begin(backend: &dyn Backend, sums: &Sums<'_>, accumulate: bool, local: &[Tensor]) -> Result<()> {
    if !accumulate {
        return sums.clear(backend);
    }
    let mut each = sums.target.iter().zip(local);
    each.try_for_each(|(sum, held)| converted(backend, held, sum))
}

/// `from` in the type of `to`; nothing where it is the same, and so is the tensor.
fn converted(backend: &dyn Backend, from: &Tensor, to: &Tensor) -> Result<()> {
    if from.dtype() == to.dtype() {
        return Ok(());
    }
    backend.cast(*from, *to, false)
}

/// Sums become means. What was there counts too.
fn divide(plan: &GroupPlan, backend: &dyn Backend, sums: &[Tensor], accumulate: bool) -> Result<()> {
    for (rows, count) in &plan.lists.counts {
        let count = count + i64::from(accumulate);
        for sum in sums.iter().filter(|_| count > 1) {
            backend.divide(sum.rows(rows.start, rows.end), count)?;
        }
    }
    Ok(())
}

/// Rows that stay on this rank, of each tensor. What ends side by side is gathered at once.
fn copy(backend: &dyn Backend, keeps: &[(Range, Range)], from: &[Tensor], to: &[Tensor]) -> Result<()> {
    for together in keeps.chunk_by(|(_, a), (_, b)| a.end == b.start) {
        let old: Vec<Range> = together.iter().map(|(old, _)| *old).collect();
        let (first, last) = (together[0].1.start, together[together.len() - 1].1.end);
        for (from, to) in from.iter().zip(to) {
            backend.range_gather(*from, &old, to.rows(first, last))?;
        }
    }
    Ok(())
}

fn lane(tensor: Tensor, pieces: &[Piece]) -> Lane<'_> {
    Lane { tensor, pieces }
}

fn lanes<'a>(tensors: &[Tensor], pieces: &'a [Piece]) -> Vec<Lane<'a>> {
    tensors.iter().map(|&t| lane(t, pieces)).collect()
}

/// A dense tensor in workspace: rows like those of `like`, on its device.
fn space(data: *mut u8, dtype: DType, rows: i64, like: &Tensor) -> Tensor {
    dense(data, dtype, rows, like, like.device())
}

/// The pieces of `t` as a communicator can send them: where they are, or gathered in workspace at `data`.
fn leaving<'a>(backend: &dyn Backend, t: &Tensor, way: &'a Way, data: *mut u8) -> Result<Vec<Lane<'a>>> {
    let gather = |ranges: &[Range], rows: i64| {
        let packed = space(data, t.dtype(), rows, t);
        if !ranges.is_empty() {
            backend.range_gather(*t, ranges, packed)?;
        }
        Result::Ok(packed)
    };
    if !t.is_dense() {
        let staged = gather(&way.ranges, way.rows())?;
        return Ok(vec![lane(staged, &way.messages)]);
    }
    let packed = gather(&way.packing.ranges, way.packing.rows())?;
    Ok(vec![
        lane(*t, &way.packing.single),
        lane(packed, &way.packing.packed),
    ])
}

/// Rows that come into tensors of the caller's.
#[derive(Default)]
struct Arrivals<'a> {
    lanes: Vec<Lane<'a>>,
    /// What arrives in workspace, the tensor that it is for, and the rows where it belongs.
    spread: Vec<(Tensor, Tensor, &'a [Range])>,
}

impl<'a> Arrivals<'a> {
    /// The pieces of `to`, where they belong or in workspace at `data`.
    fn expect(&mut self, to: &Tensor, way: &'a Way, data: *mut u8) {
        let space = |rows| space(data, to.dtype(), rows, to);
        let (from, ranges) = if to.is_dense() {
            let packed = space(way.packing.rows());
            let lanes = [lane(*to, &way.packing.single), lane(packed, &way.packing.packed)];
            self.lanes.extend(lanes);
            (packed, &way.packing.ranges)
        } else {
            let staged = space(way.rows());
            self.lanes.push(lane(staged, &way.messages));
            (staged, &way.ranges)
        };
        if !ranges.is_empty() {
            self.spread.push((from, *to, ranges));
        }
    }

    /// When they are there: to the rows where they belong.
    fn spread(&self, backend: &dyn Backend) -> Result<()> {
        let mut each = self.spread.iter();
        each.try_for_each(|(from, to, rows)| backend.range_scatter(*from, *to, rows))
    }
}

fn slots(plan: &GroupPlan, moves: &Moves, session: &mut Session<'_>) -> Result<Vec<Slot>> {
    let arena = &mut session.state.arena;
    plan.carve(moves, &mut Carver::over(arena.base(), arena.bytes())?)
}
