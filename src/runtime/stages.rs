//! The stages of a pass, the next one's keys on their way while one is computed.

use super::context::Session;
use super::group::group_cast;
use super::two_level::{self, PendingCast};
use super::workspace::KeyPair;
use crate::backend::Backend;
use crate::comm::{Communicator, Ticket};
use crate::device::Stream;
use crate::plan::Stage;
use crate::types::{Range, Result, Tensor};

/// Where a pass finds keys and values.
pub(super) struct Keys<'a> {
    pub local: KeyPair,
    /// Dense copy of the local ones, for sending, where they are strided.
    pub packed: KeyPair,
    /// Stages receive into these in turn.
    pub recv: &'a [KeyPair],
    /// What stages take in for other ranks of the host, likewise.
    pub gateway: &'a [KeyPair],
}

impl Keys<'_> {
    /// The local keys as a communicator can send them.
    fn sendable(&self, session: &Session<'_>, stages: &[Stage]) -> Result<KeyPair> {
        if stages.iter().all(|s| s.transfer.sends.is_empty()) {
            return Ok(self.local);
        }
        let dense = |t: &Tensor, packed: &Tensor| {
            if t.is_dense() {
                return Ok(*t);
            }
            session
                .context()
                .backend()
                .range_gather(*t, &[Range::new(0, t.tokens())], *packed)?;
            Ok(*packed)
        };
        Ok(KeyPair {
            k: dense(&self.local.k, &self.packed.k)?,
            v: dense(&self.local.v, &self.packed.v)?,
        })
    }
}

/// Operands of one stage by source: local tensor, receive buffer.
pub(super) type Sources = [Option<Tensor>; 2];

/// Buffers of one stage.
#[derive(Clone, Copy)]
struct Buffers {
    recv: KeyPair,
    gateway: KeyPair,
}

/// A fetch under way.
enum Fetch<'a> {
    OneLevel(Ticket),
    TwoLevel(Box<PendingCast<'a>>),
}

impl<'a> Fetch<'a> {
    fn start(
        comm: &dyn Communicator,
        stage: &'a Stage,
        local: &KeyPair,
        buffers: &Buffers,
        stream: Stream,
    ) -> Result<Fetch<'a>> {
        if let Some(plan) = &stage.two_level {
            let cast = two_level::cast(comm, plan, local, &buffers.gateway, &buffers.recv, stream)?;
            return Ok(Fetch::TwoLevel(Box::new(cast)));
        }
        let received = [buffers.recv.k, buffers.recv.v];
        group_cast(comm, &stage.transfer, &[local.k, local.v], &received, stream).map(Fetch::OneLevel)
    }

    fn finish(self, comm: &dyn Communicator, backend: &dyn Backend, stream: Stream) -> Result<()> {
        match self {
            Fetch::OneLevel(ticket) => comm.finish(ticket, stream),
            Fetch::TwoLevel(cast) => cast.finish(comm, backend, stream),
        }
    }
}

/// The buffers of every stage: two that take turns, over the stages that move anything.
fn buffers(stages: &[Stage], keys: &Keys<'_>) -> Vec<Option<Buffers>> {
    let mut turn = 0;
    let of = |stage: &Stage| {
        if stage.is_idle() {
            return None;
        }
        let i = turn % keys.recv.len();
        turn += 1;
        let (b, rows) = (&keys.recv[i], stage.transfer.recv_rows);
        let recv = KeyPair {
            k: b.k.rows(0, rows),
            v: b.v.rows(0, rows),
        };
        Some(Buffers {
            recv,
            gateway: keys.gateway[i],
        })
    };
    stages.iter().map(of).collect()
}

/// Runs `compute` for every stage in turn, with the next stage's keys being fetched meanwhile.
pub(super) fn run<'a>(
    session: &Session<'_>,
    stages: &'a [Stage],
    keys: &Keys<'_>,
    stream: Stream,
    mut compute: impl FnMut(&'a Stage, Sources, Sources) -> Result<()>,
) -> Result<()> {
    let (comm, backend) = (session.context().comm(), session.context().backend());
    let local = keys.sendable(session, stages)?;
    let buffers = buffers(stages, keys);
    let fetch = |i: usize| match (stages.get(i), buffers.get(i)) {
        (Some(stage), Some(Some(b))) => Fetch::start(comm, stage, &local, b, stream).map(Some),
        _ => Ok(None),
    };
    let mut pending = fetch(0)?;
    for (i, stage) in stages.iter().enumerate() {
        let next = fetch(i + 1)?;
        if let Some(fetch) = pending {
            fetch.finish(comm, backend, stream)?;
        }
        pending = next;
        let (k, v) = (buffers[i].map(|b| b.recv.k), buffers[i].map(|b| b.recv.v));
        compute(stage, [Some(keys.local.k), k], [Some(keys.local.v), v])?;
    }
    Ok(())
}
