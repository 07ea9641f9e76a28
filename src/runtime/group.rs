//! Group collectives: group_cast fetches rows from their owners, group_reduce brings what was computed for them back.

use crate::backend::Backend;
use crate::comm::{Communicator, RecvOp, SendOp, Ticket};
use crate::device::Stream;
use crate::types::{Piece, Range, Result, Tensor, Transfer};

/// A dense tensor and the runs of its rows that travel.
#[derive(Clone, Copy)]
pub struct Lane<'a> {
    /// Dense: a run of rows is a run of bytes.
    pub tensor: Tensor,
    /// Sorted by peer; between two ranks in the same order on both sides.
    pub pieces: &'a [Piece],
}

impl Lane<'_> {
    /// (peer, address, bytes) of every piece.
    fn ops(&self) -> impl Iterator<Item = (usize, *mut u8, usize)> + '_ {
        let row = self.tensor.row_elements() as usize * self.tensor.dtype().size();
        self.pieces.iter().map(move |p| {
            let rows = self.tensor.rows(p.rows.start, p.rows.end);
            (p.peer as usize, rows.data(), p.rows.len() as usize * row)
        })
    }
}

/// The same pieces, one after the other in a staging tensor.
pub(super) fn staged(pieces: &[Piece]) -> Vec<Piece> {
    let mut at = 0;
    let place = |p: &Piece| {
        at += p.rows.len();
        Piece {
            peer: p.peer,
            rows: Range::new(at - p.rows.len(), at),
        }
    };
    pieces.iter().map(place).collect()
}

/// What each peer contributes, by ascending peer: its rows in staging, and the rows that they belong to. `staged` are those of
/// `pieces`, which are sorted by peer.
pub(super) fn by_peer(staged: &[Piece], pieces: &[Piece]) -> Vec<(Range, Vec<Range>)> {
    let mut all: Vec<(u32, Range, Vec<Range>)> = Vec::new();
    for (from, to) in staged.iter().zip(pieces) {
        match all.last_mut().filter(|(peer, _, _)| *peer == to.peer) {
            Some((_, rows, targets)) => {
                rows.end = from.rows.end;
                targets.push(to.rows);
            }
            None => all.push((to.peer, from.rows, vec![to.rows])),
        }
    }
    all.into_iter()
        .map(|(_, rows, targets)| (rows, targets))
        .collect()
}

/// Starts one grouped exchange of several tensors at once, such as k and v.
pub(super) fn start(
    comm: &dyn Communicator,
    sends: &[Lane<'_>],
    recvs: &[Lane<'_>],
    stream: Stream,
) -> Result<Ticket> {
    let send = |(peer, data, bytes): (usize, *mut u8, usize)| SendOp {
        peer,
        data: data.cast_const(),
        bytes,
    };
    let recv = |(peer, data, bytes)| RecvOp { peer, data, bytes };
    let sends: Vec<SendOp> = sends.iter().flat_map(Lane::ops).map(send).collect();
    let recvs: Vec<RecvOp> = recvs.iter().flat_map(Lane::ops).map(recv).collect();
    // SAFETY: `Tensor::rows` checked that every piece lies inside its tensor, whose promise covers its memory for as
    // long as the call that made it runs; callers finish or drop the ticket before they return.
    unsafe { comm.start(&sends, &recvs, stream) }
}

/// Starts fetching: rows of `local` go out and rows of `received` come in, as `transfer` says. The i-th tensor of one
/// belongs to the i-th of the other. All tensors are dense.
pub fn group_cast(
    comm: &dyn Communicator,
    transfer: &Transfer,
    local: &[Tensor],
    received: &[Tensor],
    stream: Stream,
) -> Result<Ticket> {
    let sends: Vec<Lane> = local
        .iter()
        .map(|&tensor| Lane {
            tensor,
            pieces: &transfer.sends,
        })
        .collect();
    let recvs: Vec<Lane> = received
        .iter()
        .map(|&tensor| Lane {
            tensor,
            pieces: &transfer.recvs,
        })
        .collect();
    start(comm, &sends, &recvs, stream)
}

/// How group_reduce adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum over what is there and every contribution.
    Sum,
    /// The sum divided by the number of contributions, what is there included.
    Avg,
    /// (out, lse) pairs merged by weight; tensors come in twos.
    Lse,
}

/// A reduction under way.
pub struct PendingReduce {
    ticket: Ticket,
    /// See `by_peer`.
    contributions: Vec<(Range, Vec<Range>)>,
    local: Vec<Tensor>,
    staging: Vec<Tensor>,
    op: ReduceOp,
}

/// Starts the transpose of a group_cast: rows of `partial` (one per received row, in the type that travels) go back to
/// their owners; those of this rank's rows come into `staging` (as many rows as `transfer` sends) and are added to
/// `local` (accumulator type) by `PendingReduce::finish`, in ascending source rank. Partial and staging are dense.
pub fn group_reduce(
    comm: &dyn Communicator,
    transfer: &Transfer,
    op: ReduceOp,
    partial: &[Tensor],
    staging: &[Tensor],
    local: &[Tensor],
    stream: Stream,
) -> Result<PendingReduce> {
    let staged = staged(&transfer.sends);
    let sends: Vec<Lane> = partial
        .iter()
        .map(|&tensor| Lane {
            tensor,
            pieces: &transfer.recvs,
        })
        .collect();
    let home = Home {
        staged: &staged,
        contributions: by_peer(&staged, &transfer.sends),
        staging,
        local,
    };
    reduce_lanes(comm, &sends, home, op, stream)
}

/// Where contributions come in and where they end.
pub(super) struct Home<'a> {
    /// Rows of staging that come in, sorted by peer.
    pub staged: &'a [Piece],
    /// See `by_peer`.
    pub contributions: Vec<(Range, Vec<Range>)>,
    pub staging: &'a [Tensor],
    pub local: &'a [Tensor],
}

/// As `group_reduce`, of any lanes that the peers receive as their own `Home` says.
pub(super) fn reduce_lanes(
    comm: &dyn Communicator,
    sends: &[Lane<'_>],
    home: Home<'_>,
    op: ReduceOp,
    stream: Stream,
) -> Result<PendingReduce> {
    let recvs: Vec<Lane> = home
        .staging
        .iter()
        .map(|&tensor| Lane {
            tensor,
            pieces: home.staged,
        })
        .collect();
    Ok(PendingReduce {
        ticket: start(comm, sends, &recvs, stream)?,
        contributions: home.contributions,
        local: home.local.to_vec(),
        staging: home.staging.to_vec(),
        op,
    })
}

impl PendingReduce {
    /// See `Communicator::hold`.
    pub fn hold(&self, comm: &dyn Communicator, stream: Stream) -> Result<()> {
        comm.hold(&self.ticket, stream)
    }

    /// Waits for the contributions and adds them.
    pub fn finish(self, comm: &dyn Communicator, backend: &dyn Backend, stream: Stream) -> Result<()> {
        let counts = if self.op == ReduceOp::Avg {
            contributions(self.contributions.iter().flat_map(|(_, to)| to.iter().copied()))
        } else {
            Vec::new()
        };
        comm.finish(self.ticket, stream)?;
        if self.op == ReduceOp::Lse {
            for (local, staging) in self.local.chunks_exact(2).zip(self.staging.chunks_exact(2)) {
                for (from, to) in &self.contributions {
                    let part = |t: &Tensor| t.rows(from.start, from.end);
                    backend.lse_reduce(part(&staging[0]), part(&staging[1]), local[0], local[1], to)?;
                }
            }
            return Ok(());
        }
        for (local, staging) in self.local.iter().zip(&self.staging) {
            for (from, to) in &self.contributions {
                backend.range_reduce(staging.rows(from.start, from.end), *local, to)?;
            }
        }
        for (rows, count) in counts {
            for local in &self.local {
                // What was there counts too.
                backend.divide(local.rows(rows.start, rows.end), count + 1)?;
            }
        }
        Ok(())
    }
}

/// Runs of rows that the ranges cover, with how many of them cover each.
pub(super) fn contributions(ranges: impl Iterator<Item = Range>) -> Vec<(Range, i64)> {
    let mut edges: Vec<(i64, i64)> = ranges.flat_map(|r| [(r.start, 1), (r.end, -1)]).collect();
    edges.sort_unstable();
    let (mut runs, mut count, mut at) = (Vec::new(), 0, 0);
    for (row, change) in edges {
        if count > 0 && row > at {
            runs.push((Range::new(at, row), count));
        }
        at = row;
        count += change;
    }
    runs
}
