//! Many small runs of rows between two ranks travel as one: gathered where they are sent, spread where they arrive.

use super::group::{by_peer, staged};
use crate::plan::{Pass, Stage};
use crate::types::{Piece, Range};

/// More runs than this between two ranks are packed, if they are small.
const MANY: usize = 8;

/// Rows that a run has on average where it is large enough to travel alone. A run of its own costs NCCL about 30 us (docs/performance.md).
const LARGE: i64 = 1024;

/// The runs of one side of a transfer. Both ranks know of the same runs, so both pack the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packing {
    /// Runs that travel one by one.
    pub single: Vec<Piece>,
    /// For each peer whose runs are packed: its rows in the packed tensor.
    pub packed: Vec<Piece>,
    /// The rows of the tensor that those are, in their order.
    pub ranges: Vec<Range>,
}

impl Packing {
    /// Splits `pieces`, which are sorted by peer.
    pub fn new(pieces: &[Piece]) -> Packing {
        let mut made = Packing::default();
        let mut at = 0;
        for of_peer in pieces.chunk_by(|a, b| a.peer == b.peer) {
            let rows: i64 = of_peer.iter().map(|p| p.rows.len()).sum();
            if of_peer.len() <= MANY || rows >= LARGE * of_peer.len() as i64 {
                made.single.extend_from_slice(of_peer);
                continue;
            }
            made.packed.push(Piece {
                peer: of_peer[0].peer,
                rows: Range::new(at, at + rows),
            });
            made.ranges.extend(of_peer.iter().map(|p| p.rows));
            at += rows;
        }
        made
    }

    /// `staged` are the same runs one after the other in a staging tensor; those of packed peers as one.
    pub fn merged(&self, staged: &[Piece]) -> Vec<Piece> {
        let packed = |peer: u32| self.packed.iter().any(|p| p.peer == peer);
        let mut places: Vec<Piece> = Vec::with_capacity(staged.len());
        for run in staged {
            match places
                .last_mut()
                .filter(|last| last.peer == run.peer && packed(run.peer))
            {
                Some(last) => last.rows.end = run.rows.end,
                None => places.push(*run),
            }
        }
        places
    }

    /// Rows of the packed tensor.
    pub fn rows(&self) -> i64 {
        self.packed.last().map_or(0, |p| p.rows.end)
    }
}

/// How a stage's keys travel, and their gradients back.
#[derive(Clone, Debug, Default)]
pub(super) struct StagePacking {
    /// Local rows that go out.
    pub sends: Packing,
    /// Rows of the receive buffer that come in.
    pub recvs: Packing,
    /// Where gradients for local rows come in: rows of staging.
    pub staged: Vec<Piece>,
    /// What each peer sends back, by ascending peer: rows of staging, and the local rows that they belong to.
    pub contributions: Vec<(Range, Vec<Range>)>,
}

impl StagePacking {
    fn new(stage: &Stage) -> StagePacking {
        if stage.two_level.is_some() {
            return StagePacking::default();
        }
        let transfer = &stage.transfer;
        let sends = Packing::new(&transfer.sends);
        let runs = staged(&transfer.sends);
        let contributions = by_peer(&runs, &transfer.sends);
        StagePacking {
            staged: sends.merged(&runs),
            sends,
            recvs: Packing::new(&transfer.recvs),
            contributions,
        }
    }
}

/// The same of every stage.
#[derive(Clone, Debug)]
pub(super) struct PassPacking(pub Vec<StagePacking>);

impl PassPacking {
    /// For the stages of `pass`.
    pub fn new(pass: &Pass) -> PassPacking {
        PassPacking(pass.stages.iter().map(StagePacking::new).collect())
    }

    /// Most rows that one stage packs to send, and to receive.
    pub fn rows(&self) -> (i64, i64) {
        let most = |f: fn(&StagePacking) -> i64| self.0.iter().map(f).max().unwrap_or(0);
        (most(|s| s.sends.rows()), most(|s| s.recvs.rows()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(runs: &[(u32, i64, i64)]) -> Vec<Piece> {
        let piece = |&(peer, start, end): &(u32, i64, i64)| Piece {
            peer,
            rows: Range::new(start, end),
        };
        runs.iter().map(piece).collect()
    }

    #[test]
    fn only_many_small_runs_of_a_peer_are_packed() {
        let few: Vec<_> = (0..MANY as i64).map(|i| (0, 10 * i, 10 * i + 3)).collect();
        let many: Vec<_> = (0..MANY as i64 + 1)
            .map(|i| (1, 10 * i + 4, 10 * i + 6))
            .collect();
        let large: Vec<_> = (0..20)
            .map(|i| (2, 2 * LARGE * i, 2 * LARGE * i + LARGE))
            .collect();
        let packing = Packing::new(&pieces(&[few.clone(), many.clone(), large.clone()].concat()));
        assert_eq!(packing.single, pieces(&[few, large].concat()));
        assert_eq!(packing.packed, pieces(&[(1, 0, 18)]));
        assert_eq!(packing.rows(), 18);
        let ranges: Vec<_> = many.iter().map(|&(_, a, b)| Range::new(a, b)).collect();
        assert_eq!(packing.ranges, ranges);
    }

    #[test]
    fn packed_peers_stand_one_after_the_other() {
        let of = |peer: u32| (0..20).map(move |i| (peer, 5 * i, 5 * i + 1 + i % 2));
        let packing = Packing::new(&pieces(&of(3).chain(of(7)).collect::<Vec<_>>()));
        assert_eq!(packing.packed, pieces(&[(3, 0, 30), (7, 30, 60)]));
        assert!(packing.single.is_empty());
        assert_eq!(packing.ranges.len(), 40);
    }
}
