//! Partial gradients of fetched keys on their way back to their owners.

use super::context::Session;
use super::group::{self, ReduceOp, group_reduce};
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
    pub fn start(&mut self, stage: &'a Stage) -> Result<()> {
        // Also where this rank has nothing to do: over a mesh finishing sends, and between two ranks all that is sent has to
        // come in one order, whichever stages are idle on one of them.
        self.finish()?;
        if stage.is_idle() {
            return Ok(());
        }
        let (context, space, rows) = (self.session.context(), self.space, stage.transfer.recv_rows);
        let (partial, wire) = (self.buffer(&space.partial, rows), self.buffer(&space.wire, rows));
        for (from, to) in [(partial.k, wire.k), (partial.v, wire.v)] {
            if from.dtype() != to.dtype() {
                self.session.backend().cast(from, to, false)?;
            }
        }
        let staging = space.staging[self.turn % space.staging.len()];
        self.turn += 1;
        self.pending = Some(match &stage.two_level {
            None => {
                let (wire, staging, local) = (
                    [wire.k, wire.v],
                    [staging.k, staging.v],
                    [self.local.k, self.local.v],
                );
                let (comm, transfer) = (context.comm(), &stage.transfer);
                let sum = group_reduce(
                    comm,
                    transfer,
                    ReduceOp::Sum,
                    &wire,
                    &staging,
                    &local,
                    self.stream,
                );
                Pending::OneLevel(sum?)
            }
            Some(plan) => {
                let space = ReduceSpace {
                    gateway: space.gateway_sum,
                    gateway_wire: space.gateway_wire,
                    gateway_staging: space.gateway_staging,
                    staging,
                };
                let pairs = [partial, wire, self.local];
                Pending::TwoLevel(Box::new(two_level::reduce(
                    context.comm(),
                    plan,
                    pairs,
                    &space,
                    self.stream,
                )?))
            }
        });
        Ok(())
    }

    /// Lets the stream wait until the turn of the one on its way has come; whether there is one.
    pub fn hold(&self) -> Result<bool> {
        let (comm, stream) = (self.session.comm(), self.stream);
        match &self.pending {
            None => return Ok(false),
            Some(Pending::OneLevel(p)) => p.hold(comm, stream)?,
            Some(Pending::TwoLevel(p)) => p.hold(comm, stream)?,
        }
        Ok(true)
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
