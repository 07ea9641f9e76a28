//! Partial gradients of fetched keys on their way back to their owners.

use super::context::Session;
use super::group::{self, Home, Lane, ReduceOp, reduce_lanes};
use super::packing::StagePacking;
use super::stages::Hold;
use super::two_level::{self, ReduceSpace};
use super::workspace::{BackwardSpace, KeyPair};
use crate::device::Stream;
use crate::plan::Stage;
use crate::types::Result;

/// A reduction under way.
enum Pending<'a> {
    OneLevel(group::PendingReduce),
    TwoLevel(Box<two_level::PendingReduce<'a>>),
}

/// The reductions of partial dk and dv, one of them on its way while the next stage is computed.
pub(super) struct Reduction<'a> {
    session: &'a Session<'a>,
    space: &'a BackwardSpace,
    /// Gradients of this rank's own keys.
    local: KeyPair,
    stream: Stream,
    /// Number of stages so far that moved anything; buffers take turns over them.
    turn: usize,
    pending: Option<Pending<'a>>,
}

impl<'a> Reduction<'a> {
    /// None under way; sums end in `local`.
    pub fn new(session: &'a Session<'a>, space: &'a BackwardSpace, local: KeyPair, stream: Stream) -> Self {
        Reduction {
            session,
            space,
            local,
            stream,
            turn: 0,
            pending: None,
        }
    }

    /// The stage's buffer among those that take turns.
    fn buffer(&self, of: &[KeyPair], rows: i64) -> KeyPair {
        let b = &of[self.turn % of.len()];
        KeyPair {
            k: b.k.rows(0, rows),
            v: b.v.rows(0, rows),
        }
    }

    /// Zeroed partial gradients for the keys that `stage` received; `None` when it moves nothing.
    pub fn partial(&self, stage: &Stage) -> Result<Option<KeyPair>> {
        if stage.is_idle() {
            return Ok(None);
        }
        let partial = self.buffer(&self.space.partial, stage.transfer.recv_rows);
        for t in [partial.k, partial.v] {
            self.session.backend().fill_zero(t)?;
        }
        Ok(Some(partial))
    }

    /// Sends the stage's partial gradients to their owners, after the reduction before it has been added.
    pub fn start(&mut self, stage: &'a Stage, packing: &StagePacking) -> Result<()> {
        // Also where this rank has nothing to do: over a mesh finishing sends, and between two ranks all that is sent has to
        // come in one order, whichever stages are idle on one of them.
        self.finish()?;
        if stage.is_idle() {
            return Ok(());
        }
        self.session.reduces();
        let (space, rows) = (self.space, stage.transfer.recv_rows);
        let (partial, wire) = (self.buffer(&space.partial, rows), self.buffer(&space.wire, rows));
        for (from, to) in [(partial.k, wire.k), (partial.v, wire.v)] {
            if from.dtype() != to.dtype() {
                self.session.backend().cast(from, to, false)?;
            }
        }
        let staging = space.staging[self.turn % space.staging.len()];
        let packed = space.packed_wire[self.turn % space.packed_wire.len()];
        self.turn += 1;
        self.pending = Some(match &stage.two_level {
            None => Pending::OneLevel(self.start_one_level(packing, wire, packed, staging)?),
            Some(plan) => {
                let space = ReduceSpace {
                    gateway: space.gateway_sum,
                    gateway_wire: space.gateway_wire,
                    gateway_staging: space.gateway_staging,
                    staging,
                };
                let pairs = [partial, wire, self.local];
                Pending::TwoLevel(Box::new(two_level::reduce(
                    self.session.comm(),
                    plan,
                    pairs,
                    &space,
                    self.stream,
                )?))
            }
        });
        Ok(())
    }

    /// `packed`: room for runs that travel as one.
    fn start_one_level(
        &self,
        packing: &StagePacking,
        wire: KeyPair,
        packed: KeyPair,
        staging: KeyPair,
    ) -> Result<group::PendingReduce> {
        let out = &packing.recvs;
        let mut sends = Vec::with_capacity(4);
        for (wire, packed) in [(wire.k, packed.k), (wire.v, packed.v)] {
            let packed = packed.rows(0, out.rows());
            if !out.ranges.is_empty() {
                self.session.backend().range_gather(wire, &out.ranges, packed)?;
            }
            let lane = |tensor, pieces| Lane { tensor, pieces };
            sends.extend([lane(wire, &out.single), lane(packed, &out.packed)]);
        }
        let home = Home {
            staged: &packing.staged,
            contributions: packing.contributions.clone(),
            staging: &[staging.k, staging.v],
            local: &[self.local.k, self.local.v],
        };
        reduce_lanes(self.session.comm(), &sends, home, ReduceOp::Sum, self.stream)
    }

    /// How to let the stream wait for the turn of the one on its way, if there is one.
    pub fn hold(&self) -> Option<Hold<'_>> {
        let pending = self.pending.as_ref()?;
        let (comm, stream) = (self.session.comm(), self.stream);
        Some(Box::new(move || match pending {
            Pending::OneLevel(p) => p.hold(comm, stream),
            Pending::TwoLevel(p) => p.hold(comm, stream),
        }))
    }

    /// Adds what has been sent to this rank, if a reduction is on its way.
    pub fn finish(&mut self) -> Result<()> {
        let (comm, backend) = (self.session.comm(), self.session.backend());
        match self.pending.take() {
            None => Ok(()),
            Some(Pending::OneLevel(p)) => p.finish(comm, backend, self.stream),
            Some(Pending::TwoLevel(p)) => p.finish(comm, backend, self.stream),
        }
    }
}
