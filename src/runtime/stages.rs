//! The stages of a pass, the next one's keys and queries on their way while one is computed.

use super::context::Session;
use super::group::{Lane, start};
use super::packing::{PassPacking, StagePacking};
use super::two_level::{self, PendingCast};
use super::workspace::{GuestBuffers, KeyPair, Packs};
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
    /// How they travel, by stage, and where those that are packed do.
    pub packing: &'a PassPacking,
    pub packs: &'a [Packs],
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

/// Where a pass finds what travels of queries; no tensors unless queries travel.
pub(super) struct Queries<'a> {
    /// Dense tensors of this rank's queries.
    pub local: Vec<Tensor>,
    /// Stages receive into these in turn.
    pub buffers: &'a [GuestBuffers],
}

/// Lets the stream wait until an exchange's turn has come.
pub(super) type Hold<'a> = Box<dyn Fn() -> Result<()> + 'a>;

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
    /// Lets the stream wait until the turn of the first exchange under way has come: of those that started before
    /// (`Some` says how to wait for it), or of the next stage's fetch. Gives their number.
    pub fn hold(&self, session: &Session<'_>, before: &[Option<Hold<'_>>]) -> Result<usize> {
        let next = self.next.map(|fetch| -> Hold<'_> {
            Box::new(move || match fetch {
                Fetch::OneLevel(ticket, _) => self.comm.hold(ticket, self.stream),
                Fetch::TwoLevel(cast) => cast.hold(self.comm, self.stream),
            })
        });
        let under_way: Vec<&Hold<'_>> = before.iter().chain([&next]).flatten().collect();
        if let Some(first) = under_way.first() {
            first()?;
            // Its turn has come, and a moment later it has its multiprocessors.
            session.backend().stand_by()?;
        }
        Ok(under_way.len())
    }
}

/// Operands of one stage by source: local tensor, receive buffer.
pub(super) type Sources = [Option<Tensor>; 2];

/// Buffers of one stage; none for what does not move in it.
#[derive(Clone)]
struct Buffers {
    /// What keys move in, where any do.
    keys: Option<KeyBuffers>,
    guests: Vec<Tensor>,
}

/// Where a stage's keys move.
#[derive(Clone, Copy)]
struct KeyBuffers {
    recv: KeyPair,
    /// Taken in for other ranks of the host.
    gateway: KeyPair,
    packs: Packs,
}

/// A fetch under way.
enum Fetch<'a> {
    OneLevel(Ticket, Unpack<'a>),
    TwoLevel(Box<PendingCast<'a>>),
}

/// Keys that arrive packed, and where they belong.
struct Unpack<'a> {
    pairs: Vec<(Tensor, Tensor)>,
    ranges: &'a [Range],
}

impl<'a> Fetch<'a> {
    fn start(
        session: &Session<'_>,
        (stage, packing): (&'a Stage, &'a StagePacking),
        (local, queries): (&KeyPair, &[Tensor]),
        buffers: &Buffers,
        stream: Stream,
    ) -> Result<Option<Fetch<'a>>> {
        let Buffers { keys, guests } = buffers;
        if keys.is_none() && guests.is_empty() {
            return Ok(None);
        }
        let comm = session.comm();
        if let (Some(plan), Some(b)) = (&stage.two_level, keys) {
            let cast = two_level::cast(comm, plan, local, &b.gateway, &b.recv, stream)?;
            return Ok(Some(Fetch::TwoLevel(Box::new(cast))));
        }
        let (mut sends, mut recvs, mut unpack) = (Vec::new(), Vec::new(), Vec::new());
        let (out, come) = (&packing.sends, &packing.recvs);
        if let Some(b) = keys {
            let tensors = [
                (local.k, b.packs.sends.k, b.recv.k, b.packs.recvs.k),
                (local.v, b.packs.sends.v, b.recv.v, b.packs.recvs.v),
            ];
            for (local, packed, recv, arriving) in tensors {
                let packed = packed.rows(0, out.rows());
                if !out.ranges.is_empty() {
                    session.backend().range_gather(local, &out.ranges, packed)?;
                }
                sends.extend([lane(local, &out.single), lane(packed, &out.packed)]);
                let arriving = arriving.rows(0, come.rows());
                recvs.extend([lane(recv, &come.single), lane(arriving, &come.packed)]);
                unpack.push((arriving, recv));
            }
        }
        // Keys and queries in one exchange.
        if !guests.is_empty() {
            let of_queries = &stage.guests.transfer;
            sends.extend(queries.iter().map(|t| lane(*t, &of_queries.sends)));
            recvs.extend(guests.iter().map(|t| lane(*t, &of_queries.recvs)));
        }
        let unpack = Unpack {
            pairs: unpack,
            ranges: &come.ranges,
        };
        start(comm, &sends, &recvs, stream).map(|ticket| Some(Fetch::OneLevel(ticket, unpack)))
    }

    fn finish(self, comm: &dyn Communicator, backend: &dyn Backend, stream: Stream) -> Result<()> {
        match self {
            Fetch::OneLevel(ticket, unpack) => {
                comm.finish(ticket, stream)?;
                if unpack.ranges.is_empty() {
                    return Ok(());
                }
                let mut each = unpack.pairs.iter();
                each.try_for_each(|(from, to)| backend.range_scatter(*from, *to, unpack.ranges))
            }
            Fetch::TwoLevel(cast) => cast.finish(comm, backend, stream),
        }
    }
}

fn lane(tensor: Tensor, pieces: &[Piece]) -> Lane<'_> {
    Lane { tensor, pieces }
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
            made.keys = Some(KeyBuffers {
                recv,
                gateway: keys.gateway[i],
                packs: keys.packs[i],
            });
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
/// stage, k and v by source, and what came of the stage's guests. `begin` comes before all of them, and behind the start of the
/// first fetch.
pub(super) fn run<'a>(
    session: &Session<'_>,
    stages: &'a [Stage],
    (keys, queries): (&Keys<'a>, &Queries<'_>),
    stream: Stream,
    begin: impl FnOnce() -> Result<()>,
    mut compute: impl FnMut(At<'a, '_>, [Sources; 2], &[Tensor]) -> Result<()>,
) -> Result<()> {
    let (comm, backend) = (session.comm(), session.backend());
    let local = keys.sendable(session, stages)?;
    let buffers = buffers(stages, keys, queries);
    let packing = &keys.packing.0;
    let fetch = |i: usize| match (stages.get(i), buffers.get(i)) {
        (Some(stage), Some(b)) => {
            session.fetches(i);
            let stage = (stage, &packing[i]);
            Fetch::start(session, stage, (&local, &queries.local), b, stream)
        }
        _ => Ok(None),
    };
    let mut pending = fetch(0)?;
    let mut next = fetch(1)?;
    begin()?;
    for (number, stage) in stages.iter().enumerate() {
        session.turn(number);
        if let Some(fetch) = pending {
            fetch.finish(comm, backend, stream)?;
        }
        pending = next;
        let recv = buffers[number].keys.map(|b| b.recv);
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
        next = fetch(number + 2)?;
    }
    Ok(())
}
