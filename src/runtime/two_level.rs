//! Group collectives over a mesh of hosts: each token crosses to a host once and fans out inside it.

use super::group::{Lane, by_peer, staged, start};
use super::workspace::KeyPair;
use crate::backend::Backend;
use crate::comm::{Communicator, Ticket};
use crate::device::Stream;
use crate::types::{Piece, Result, Tensor, TwoLevel};

/// `tensor` once for each of k and v.
fn lanes<'a>(pair: &KeyPair, pieces: &'a [Piece]) -> [Lane<'a>; 2] {
    [pair.k, pair.v].map(|tensor| Lane { tensor, pieces })
}

/// The first rows of both.
fn first_rows(pair: &KeyPair, rows: i64) -> KeyPair {
    KeyPair {
        k: pair.k.rows(0, rows),
        v: pair.v.rows(0, rows),
    }
}

/// A fetch over the mesh whose first part is under way.
pub(super) struct PendingCast<'a> {
    plan: &'a TwoLevel,
    first: Ticket,
    gateway: KeyPair,
    received: KeyPair,
}

/// Starts fetching: rows of `local` go to ranks of this host and to gateways of others. All tensors are dense; `gateway`
/// and `received` have at least the plan's rows.
pub(super) fn cast<'a>(
    comm: &dyn Communicator,
    plan: &'a TwoLevel,
    local: &KeyPair,
    gateway: &KeyPair,
    received: &KeyPair,
    stream: Stream,
) -> Result<PendingCast<'a>> {
    let (gateway, received) = (
        first_rows(gateway, plan.gateway_rows),
        first_rows(received, plan.recv_rows),
    );
    let recvs = [lanes(&received, &plan.direct), lanes(&gateway, &plan.gateway)].concat();
    let first = start(comm, &lanes(local, &plan.sends), &recvs, stream)?;
    Ok(PendingCast {
        plan,
        first,
        gateway,
        received,
    })
}

impl PendingCast<'_> {
    /// See `Communicator::hold`.
    pub fn hold(&self, comm: &dyn Communicator, stream: Stream) -> Result<()> {
        comm.hold(&self.first, stream)
    }

    /// Waits for the first part, passes on what other ranks of this host need, and waits for what they pass on.
    pub fn finish(self, comm: &dyn Communicator, backend: &dyn Backend, stream: Stream) -> Result<()> {
        comm.finish(self.first, stream)?;
        let (sends, recvs) = (
            lanes(&self.gateway, &self.plan.forwards),
            lanes(&self.received, &self.plan.relayed),
        );
        let second = start(comm, &sends, &recvs, stream)?;
        for (from, to) in &self.plan.keeps {
            for (source, target) in [
                (self.gateway.k, self.received.k),
                (self.gateway.v, self.received.v),
            ] {
                backend.range_gather(source, &[*from], target.rows(to.start, to.end))?;
            }
        }
        comm.finish(second, stream)
    }
}

/// What a reduction over the mesh works in. Dense; at least as many rows as the plan needs.
#[derive(Clone, Copy)]
pub(super) struct ReduceSpace {
    /// Sums of this gateway's rows, in the accumulator type: `gateway_rows`.
    pub gateway: KeyPair,
    /// The same as they travel; the sums themselves when the type is the same.
    pub gateway_wire: KeyPair,
    /// What ranks of this host send for this gateway: rows of `forwards`.
    pub gateway_staging: KeyPair,
    /// What comes in for local rows: rows of `sends`.
    pub staging: KeyPair,
}

/// A reduction over the mesh whose first part is under way.
pub(super) struct PendingReduce<'a> {
    plan: &'a TwoLevel,
    rank: usize,
    first: Ticket,
    /// Partial sums of received rows: as computed, and as they travel.
    partial: KeyPair,
    wire: KeyPair,
    space: ReduceSpace,
    local: KeyPair,
}

/// Starts the transpose of `cast`: partial gradients of relayed rows go back to their gateways. `partial` is in the
/// accumulator type, `wire` the same in the type that travels; sums end in `local`.
pub(super) fn reduce<'a>(
    comm: &dyn Communicator,
    plan: &'a TwoLevel,
    [partial, wire, local]: [KeyPair; 3],
    space: &ReduceSpace,
    stream: Stream,
) -> Result<PendingReduce<'a>> {
    let into = staged(&plan.forwards);
    let first = start(
        comm,
        &lanes(&wire, &plan.relayed),
        &lanes(&space.gateway_staging, &into),
        stream,
    )?;
    Ok(PendingReduce {
        plan,
        rank: comm.rank(),
        first,
        partial,
        wire,
        space: *space,
        local,
    })
}

impl PendingReduce<'_> {
    /// See `Communicator::hold`.
    pub fn hold(&self, comm: &dyn Communicator, stream: Stream) -> Result<()> {
        comm.hold(&self.first, stream)
    }

    /// Adds up what this host's ranks computed for the rows that came through this gateway, in rank order, sends the sums
    /// to their owners, and adds what comes in for local rows, in rank order.
    pub fn finish(self, comm: &dyn Communicator, backend: &dyn Backend, stream: Stream) -> Result<()> {
        comm.finish(self.first, stream)?;
        let (plan, space) = (self.plan, &self.space);
        let rows = plan.gateway_rows;
        let pair = |p: &KeyPair| [p.k, p.v];
        let (sums, wires) = (
            first_rows(&space.gateway, rows),
            first_rows(&space.gateway_wire, rows),
        );
        for i in 0..2 {
            let [sum, wire] = [pair(&sums)[i], pair(&wires)[i]];
            sum_gateway(
                backend,
                (plan, self.rank),
                sum,
                pair(&space.gateway_staging)[i],
                pair(&self.partial)[i],
            )?;
            if wire.dtype() != sum.dtype() {
                backend.cast(sum, wire, false)?;
            }
        }
        let into = staged(&plan.sends);
        let sends = [lanes(&self.wire, &plan.direct), lanes(&wires, &plan.gateway)].concat();
        let second = start(comm, &sends, &lanes(&space.staging, &into), stream)?;
        comm.finish(second, stream)?;
        for (staging, local) in pair(&space.staging).into_iter().zip(pair(&self.local)) {
            for (from, to) in by_peer(&into, &plan.sends) {
                backend.range_reduce(staging.rows(from.start, from.end), local, &to)?;
            }
        }
        Ok(())
    }
}

/// One tensor's sums over the ranks of this host, this rank's `own` among them, by ascending rank.
fn sum_gateway(
    backend: &dyn Backend,
    (plan, rank): (&TwoLevel, usize),
    sum: Tensor,
    staging: Tensor,
    own: Tensor,
) -> Result<()> {
    backend.fill_zero(sum)?;
    let into = staged(&plan.forwards);
    let before = plan.forwards.partition_point(|p| (p.peer as usize) < rank);
    let add = |range: std::ops::Range<usize>| {
        let mut each = by_peer(&into[range.clone()], &plan.forwards[range]).into_iter();
        each.try_for_each(|(from, to)| backend.range_reduce(staging.rows(from.start, from.end), sum, &to))
    };
    add(0..before)?;
    for (to, from) in &plan.keeps {
        backend.range_reduce(own.rows(from.start, from.end), sum, &[*to])?;
    }
    add(before..into.len())
}
