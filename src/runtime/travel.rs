//! Queries that travel to keys, and what is computed for them on its way home.

use super::context::Session;
use super::group::{PendingReduce, ReduceOp, group_reduce};
use super::stages::Hold;
use super::workspace::GuestSpace;
use crate::device::Stream;
use crate::plan::Stage;
use crate::types::{Range, Result, Tensor};

/// Query-side tensors of this rank as a communicator can send them: the dense ones themselves, of others the copies in
/// `space`. Nothing is copied when no stage sends queries.
pub(super) fn sendable(
    session: &Session<'_>,
    stages: &[Stage],
    local: &[Tensor],
    space: &GuestSpace,
) -> Result<Vec<Tensor>> {
    if stages.iter().all(|s| s.guests.transfer.sends.is_empty()) {
        return Ok(local.to_vec());
    }
    let backend = session.backend();
    let dense = |(t, packed): (&Tensor, &Tensor)| {
        if t.is_dense() {
            return Ok(*t);
        }
        backend.range_gather(*t, &[Range::new(0, t.tokens())], *packed)?;
        Ok(*packed)
    };
    local.iter().zip(&space.packed).map(dense).collect()
}

/// The ways home of what is computed for guests, one of them under way while the next stage is computed.
pub(super) struct Homeward<'a> {
    session: &'a Session<'a>,
    space: &'a GuestSpace,
    op: ReduceOp,
    /// Where results of this rank's own queries end.
    local: Vec<Tensor>,
    stream: Stream,
    /// Number of stages so far in which queries travelled; buffers take turns over them.
    turn: usize,
    pending: Option<PendingReduce>,
}

impl<'a> Homeward<'a> {
    /// None under way; results end in `local`, one tensor for each result of `space`.
    pub fn new(
        session: &'a Session<'a>,
        space: &'a GuestSpace,
        op: ReduceOp,
        local: &[Tensor],
        stream: Stream,
    ) -> Self {
        Homeward {
            session,
            space,
            op,
            local: local.to_vec(),
            stream,
            turn: 0,
            pending: None,
        }
    }

    /// Tensors, in the accumulator type, for what the stage computes for its guests; none when there are none.
    pub fn partial(&self, stage: &Stage) -> Vec<Tensor> {
        let rows = stage.guests.transfer.recv_rows;
        if rows == 0 {
            return Vec::new();
        }
        let buffers = &self.space.buffers[self.turn % self.space.buffers.len()];
        buffers.partial.iter().map(|t| t.rows(0, rows)).collect()
    }

    /// Sends the stage's results home, after those of the stage before have been added.
    pub fn start(&mut self, stage: &Stage) -> Result<()> {
        let transfer = &stage.guests.transfer;
        if transfer.is_empty() {
            return Ok(());
        }
        self.finish()?;
        let buffers = &self.space.buffers[self.turn % self.space.buffers.len()];
        self.turn += 1;
        self.session.reduces();
        let first = |t: &Tensor| t.rows(0, transfer.recv_rows);
        let wire: Vec<Tensor> = buffers.wire.iter().map(first).collect();
        for (from, to) in buffers.partial.iter().map(first).zip(&wire) {
            if from.dtype() != to.dtype() {
                self.session.backend().cast(from, *to, false)?;
            }
        }
        self.pending = Some(group_reduce(
            self.session.comm(),
            transfer,
            self.op,
            &wire,
            &buffers.staging,
            &self.local,
            self.stream,
        )?);
        Ok(())
    }

    /// How to let the stream wait for the turn of what is on its way, if something is.
    pub fn hold(&self) -> Option<Hold<'_>> {
        let pending = self.pending.as_ref()?;
        Some(Box::new(|| pending.hold(self.session.comm(), self.stream)))
    }

    /// Merges or adds what came home, by ascending rank, if anything is on its way.
    pub fn finish(&mut self) -> Result<()> {
        match self.pending.take() {
            None => Ok(()),
            Some(pending) => pending.finish(self.session.comm(), self.session.backend(), self.stream),
        }
    }
}
