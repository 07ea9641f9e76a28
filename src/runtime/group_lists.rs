//! What one rank sends and receives in a group collective of its caller's own, checked and ordered.

use super::group::contributions;
use super::group_moves::Moves;
use crate::plan::Hasher;
use crate::types::{DType, Error, Piece, Range, Result, Status};

/// Most tensors of one group.
pub const MAX_TENSORS: usize = 64;

/// What the rows of one tensor of a group look like while they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupTensor {
    /// Elements of a row: the product of all dimensions but the first.
    pub row_elements: i64,
    /// Element type.
    pub dtype: DType,
}

impl GroupTensor {
    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_elements as usize * self.dtype.size()
    }
}

/// A group as its caller describes it on one rank. Unlike elsewhere, the peer of a piece may be the rank itself.
#[derive(Clone, Debug, Default)]
pub struct GroupRequest {
    /// Rows of the tensors that group_cast sends from.
    pub local_rows: i64,
    /// Rows of the tensors that it receives into.
    pub received_rows: i64,
    /// Local rows that go out. They may meet.
    pub sends: Vec<Piece>,
    /// Received rows that come in. No two may meet.
    pub receives: Vec<Piece>,
    /// The tensors that travel together.
    pub tensors: Vec<GroupTensor>,
    /// Whether group_reduce will be called.
    pub reduce: bool,
    /// Whether tensors may be strided that bytes are sent from or received into.
    pub strided: bool,
    /// Whether rows go over the communicator's mesh of hosts.
    pub two_level: bool,
}

/// The lists of one rank, by ascending peer; between two ranks in the caller's order.
pub(super) struct GroupLists {
    /// Local rows that go to other ranks.
    pub sends: Vec<Piece>,
    /// Received rows that come from other ranks.
    pub receives: Vec<Piece>,
    /// Rows that stay here: (local rows, received rows).
    pub keeps: Vec<(Range, Range)>,
    /// Runs of local rows with the number of their contributions, where there are any.
    pub counts: Vec<(Range, i64)>,
    /// For each rank what goes to it and what comes from it, as ranks compare it.
    pub pairs: Vec<[Traffic; 2]>,
}

/// What goes from one rank to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub pieces: i64,
    pub rows: i64,
    /// Of the pieces' lengths, in order.
    pub hash: u64,
}

impl GroupLists {
    /// Checks `request`, whose errors name fields of `args`, and orders it for `rank` of `world`.
    pub fn new(request: &GroupRequest, rank: usize, world: usize) -> Result<GroupLists> {
        check(request, world)?;
        let ordered = |pieces: &[Piece]| {
            let mut kept: Vec<Piece> = pieces.iter().copied().filter(|p| !p.rows.is_empty()).collect();
            // Stable: between two ranks the caller's order decides which piece is which.
            kept.sort_by_key(|p| p.peer);
            kept
        };
        let (sends, receives) = (ordered(&request.sends), ordered(&request.receives));
        let pairs = (0..world)
            .map(|peer| [&sends, &receives].map(|list| Traffic::new(list, peer)))
            .collect();
        let own = |p: &&Piece| p.peer as usize == rank;
        let keeps = sends
            .iter()
            .filter(own)
            .zip(receives.iter().filter(own))
            .map(|(s, r)| (s.rows, r.rows))
            .collect();
        let counts = contributions(sends.iter().map(|p| p.rows));
        let others = |list: Vec<Piece>| list.into_iter().filter(|p| !own(&p)).collect();
        Ok(GroupLists {
            sends: others(sends),
            receives: others(receives),
            keeps,
            counts,
            pairs,
        })
    }

    /// Every row straight to its ranks.
    pub fn straight(&self, rank: usize) -> Moves {
        Moves::straight(
            rank,
            self.sends.clone(),
            self.receives.clone(),
            self.keeps.clone(),
        )
    }
}

impl Traffic {
    fn new(pieces: &[Piece], peer: usize) -> Traffic {
        let mut traffic = Traffic::default();
        let mut hasher = Hasher::new();
        for piece in pieces.iter().filter(|p| p.peer as usize == peer) {
            traffic.pieces += 1;
            traffic.rows += piece.rows.len();
            hasher.word(piece.rows.len());
        }
        traffic.hash = hasher.finish();
        traffic
    }
}

fn check(r: &GroupRequest, world: usize) -> Result<()> {
    for (name, rows) in [("local_rows", r.local_rows), ("received_rows", r.received_rows)] {
        if rows < 0 {
            return Err(Error::argument(format!(
                "args.{name} is {rows}; it must be 0 or more"
            )));
        }
    }
    pieces("sends", &r.sends, r.local_rows, world)?;
    pieces("receives", &r.receives, r.received_rows, world)?;
    apart(&r.receives)?;
    if !(1..=MAX_TENSORS).contains(&r.tensors.len()) {
        let count = r.tensors.len();
        return Err(Error::argument(format!(
            "args.n_tensors is {count}; it must be 1 to {MAX_TENSORS}"
        )));
    }
    let sent: i128 = r.sends.iter().map(|p| i128::from(p.rows.len())).sum();
    let most = sent.max(r.local_rows.into()).max(r.received_rows.into());
    for (i, t) in r.tensors.iter().enumerate() {
        if t.row_elements < 1 {
            return Err(Error::argument(format!(
                "args.tensors[{i}].row_elements is {}; it must be 1 or more",
                t.row_elements
            )));
        }
        // Elements of 8 bytes, the largest, whatever the sums are made in.
        let bytes = most.max(1).saturating_mul(8 * i128::from(t.row_elements));
        if bytes > isize::MAX as i128 {
            return Err(Error::argument(format!(
                "args.tensors[{i}].row_elements is {}, which for {most} rows is more than memory can hold",
                t.row_elements
            )));
        }
    }
    Ok(())
}

fn pieces(name: &str, pieces: &[Piece], rows: i64, world: usize) -> Result<()> {
    for (i, p) in pieces.iter().enumerate() {
        if p.peer as usize >= world {
            return Err(Error::argument(format!(
                "args.{name}[{i}].peer is {}; it must be 0 to {}",
                p.peer,
                world - 1
            )));
        }
        let r = p.rows;
        if r.start < 0 || r.end < r.start || r.end > rows {
            return Err(Error::range(format!(
                "args.{name}[{i}].rows is {r}; it must be in order and lie in [0, {rows})"
            )));
        }
    }
    Ok(())
}

/// Two pieces that are received may not meet: it would be left to chance which one stays.
fn apart(receives: &[Piece]) -> Result<()> {
    let mut order: Vec<usize> = (0..receives.len())
        .filter(|&i| !receives[i].rows.is_empty())
        .collect();
    order.sort_unstable_by_key(|&i| receives[i].rows);
    for pair in order.windows(2) {
        let (a, b) = (receives[pair[0]].rows, receives[pair[1]].rows);
        if b.start < a.end {
            let message = format!(
                "args.receives[{}].rows is {a} and args.receives[{}].rows is {b}; both would write row {}",
                pair[0], pair[1], b.start
            );
            return Err(Error::new(Status::InvalidRange, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::group_moves::{Contribution, Source};
    use super::*;

    fn piece(peer: u32, start: i64, end: i64) -> Piece {
        Piece {
            peer,
            rows: Range::new(start, end),
        }
    }

    #[test]
    fn lists_are_ordered_by_peer_and_own_rows_are_kept() {
        let request = GroupRequest {
            local_rows: 10,
            received_rows: 4,
            sends: vec![
                piece(2, 6, 8),
                piece(1, 0, 3),
                piece(0, 2, 4),
                piece(2, 0, 1),
                piece(0, 9, 9),
            ],
            receives: vec![piece(1, 2, 4), piece(0, 0, 1)],
            tensors: vec![GroupTensor {
                row_elements: 1,
                dtype: DType::F32,
            }],
            ..GroupRequest::default()
        };
        let lists = GroupLists::new(&request, 1, 3).unwrap();
        assert_eq!(lists.sends, [piece(0, 2, 4), piece(2, 6, 8), piece(2, 0, 1)]);
        let moves = lists.straight(1);
        assert_eq!(
            moves.sends.messages,
            [piece(0, 0, 2), piece(2, 2, 4), piece(2, 4, 5)]
        );
        assert_eq!((moves.sends.rows(), moves.receives.rows()), (5, 1));
        assert_eq!(moves.peers(), [0, 2]);
        assert_eq!(lists.keeps, [(Range::new(0, 3), Range::new(2, 4))]);
        assert_eq!(
            lists.counts,
            [
                (Range::new(0, 1), 2),
                (Range::new(1, 2), 1),
                (Range::new(2, 3), 2),
                (Range::new(3, 4), 1),
                (Range::new(6, 8), 1)
            ]
        );
        let part = |source, from, to: &[Range]| Contribution {
            source,
            from,
            to: to.to_vec(),
        };
        assert_eq!(
            moves.contributions,
            [
                part(Source::Rank, Range::new(0, 2), &[Range::new(2, 4)]),
                part(Source::Own, Range::new(2, 4), &[Range::new(0, 3)]),
                part(
                    Source::Rank,
                    Range::new(2, 5),
                    &[Range::new(6, 8), Range::new(0, 1)]
                ),
            ]
        );
        assert_eq!((lists.pairs[2][0].pieces, lists.pairs[2][0].rows), (2, 3));
        assert_eq!(lists.pairs[2][1].pieces, 0);
    }
}
