//! The stages of a pass, the next one's keys and queries on their way while one is computed.

use super::context::Session;
use super::group::{Lane, group_cast, start};
use super::two_level::{self, PendingCast};
use super::workspace::{GuestBuffers, KeyPair};
use crate::backend::Backend;
use crate::comm::{Communicator, Ticket};
use crate::device::Stream;
use crate::plan::Stage;
use crate::types::{Piece, Range, Result, Tensor};

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
            session.backend()
                .range_gather(*t, &[Range::new(0, t.tokens())], *packed)?;
            Ok(*packed)
        };
        Ok(KeyPair {
            k: dense(&self.local.k, &self.packed.k)?,
            v: dense(&self.local.v, &self.packed.v)?,
        })
    }
}

/// Where a pass finds what travels of queries; no tensors unless queries travel.
pub(super) struct Queries<'a> {
    /// Dense tensors of this rank's queries.
    pub local: Vec<Tensor>,
    /// Stages receive into these in turn.
    pub buffers: &'a [GuestBuffers],
}

/// A stage whose turn it is.
pub(super) struct At<'a, 'b> {
    pub number: usize,
    pub stage: &'a Stage,
    /// What the next stage needs, where it is on its way meanwhile.
    next: Option<&'b Fetch<'a>>,
    comm: &'b dyn Communicator,
    stream: Stream,
}

impl At<'_, '_> {
    /// Lets the stream wait until the turn of the next stage's fetch has come; whether there is one.
    pub fn hold(&self) -> Result<bool> {
        match self.next {
            None => return Ok(false),
            Some(Fetch::OneLevel(ticket)) => self.comm.hold(ticket, self.stream)?,
            Some(Fetch::TwoLevel(cast)) => cast.hold(self.comm, self.stream)?,
        }
        Ok(true)
    }
}

/// Operands of one stage by source: local tensor, receive buffer.
pub(super) type Sources = [Option<Tensor>; 2];

/// Buffers of one stage; none for what does not move in it.
#[derive(Clone)]
struct Buffers {
    /// Received keys, and those taken in for other ranks of the host.
    keys: Option<(KeyPair, KeyPair)>,
    guests: Vec<Tensor>,
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
        (local, queries): (&KeyPair, &[Tensor]),
        buffers: &Buffers,
        stream: Stream,
    ) -> Result<Option<Fetch<'a>>> {
        let Buffers { keys, guests } = buffers;
        if let (Some(plan), Some((recv, gateway))) = (&stage.two_level, keys) {
            let cast = two_level::cast(comm, plan, local, gateway, recv, stream)?;
            return Ok(Some(Fetch::TwoLevel(Box::new(cast))));
        }
        let pair = [local.k, local.v];
        let received: Vec<Tensor> = keys.iter().flat_map(|(recv, _)| [recv.k, recv.v]).collect();
        if guests.is_empty() {
            if keys.is_none() {
                return Ok(None);
            }
            let ticket = group_cast(comm, &stage.transfer, &pair, &received, stream)?;
            return Ok(Some(Fetch::OneLevel(ticket)));
        }
        // Keys and queries in one exchange.
        let (of_keys, of_queries) = (&stage.transfer, &stage.guests.transfer);
        let mut sends = lanes(&pair, &of_keys.sends);
        sends.extend(lanes(queries, &of_queries.sends));
        let mut recvs = lanes(&received, &of_keys.recvs);
        recvs.extend(lanes(guests, &of_queries.recvs));
        start(comm, &sends, &recvs, stream).map(|ticket| Some(Fetch::OneLevel(ticket)))
    }

    fn finish(self, comm: &dyn Communicator, backend: &dyn Backend, stream: Stream) -> Result<()> {
        match self {
            Fetch::OneLevel(ticket) => comm.finish(ticket, stream),
            Fetch::TwoLevel(cast) => cast.finish(comm, backend, stream),
        }
    }
}

fn lanes<'a>(tensors: &[Tensor], pieces: &'a [Piece]) -> Vec<Lane<'a>> {
    let lane = |&tensor: &Tensor| Lane { tensor, pieces };
    tensors.iter().map(lane).collect()
}

/// The buffers of every stage: two that take turns, over the stages that move any keys, and two over those that move any
/// queries.
fn buffers(stages: &[Stage], keys: &Keys<'_>, queries: &Queries<'_>) -> Vec<Buffers> {
    let (mut turn, mut guest_turn) = (0, 0);
    let of = |stage: &Stage| {
        let mut made = Buffers {
            keys: None,
            guests: Vec::new(),
        };
        if !stage.is_idle() {
            let i = turn % keys.recv.len();
            turn += 1;
            let (b, rows) = (&keys.recv[i], stage.transfer.recv_rows);
            let recv = KeyPair {
                k: b.k.rows(0, rows),
                v: b.v.rows(0, rows),
            };
            made.keys = Some((recv, keys.gateway[i]));
        }
        if !stage.guests.transfer.is_empty() {
            let b = &queries.buffers[guest_turn % queries.buffers.len()];
            guest_turn += 1;
            let rows = stage.guests.transfer.recv_rows;
            made.guests = b.recv.iter().map(|t| t.rows(0, rows)).collect();
        }
        made
    };
    stages.iter().map(of).collect()
}

/// Runs `compute` for every stage in turn, with the next stage's keys and queries being fetched meanwhile. It is given the
/// stage, k and v by source, and what came of the stage's guests.
pub(super) fn run<'a>(
    session: &Session<'_>,
    stages: &'a [Stage],
    keys: &Keys<'_>,
    queries: &Queries<'_>,
    stream: Stream,
    mut compute: impl FnMut(At<'a, '_>, [Sources; 2], &[Tensor]) -> Result<()>,
) -> Result<()> {
    let (comm, backend) = (session.context().comm(), session.backend());
    let local = keys.sendable(session, stages)?;
    let buffers = buffers(stages, keys, queries);
    let fetch = |i: usize| match (stages.get(i), buffers.get(i)) {
        (Some(stage), Some(b)) => Fetch::start(comm, stage, (&local, &queries.local), b, stream),
        _ => Ok(None),
    };
    let mut pending = fetch(0)?;
    for (number, stage) in stages.iter().enumerate() {
        let next = fetch(number + 1)?;
        if let Some(fetch) = pending {
            fetch.finish(comm, backend, stream)?;
        }
        pending = next;
        let recv = buffers[number].keys.map(|(recv, _)| recv);
        let k = [Some(keys.local.k), recv.map(|r| r.k)];
        let v = [Some(keys.local.v), recv.map(|r| r.v)];
        let at = At {
            number,
            stage,
            next: pending.as_ref(),
            comm,
            stream,
        };
        compute(at, [k, v], &buffers[number].guests)?;
    }
    Ok(())
}
