//! How rows of one tensor go to other ranks, or come from them.

use super::group::staged;
use super::packing::Packing;
use crate::types::{Piece, Range};

/// Rows of a tensor that travel, and how they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// By ascending peer; between two ranks in the same order on both sides.
    pub pieces: Vec<Piece>,
    /// The rows of the pieces, in their order.
    pub ranges: Vec<Range>,
    /// How they travel where the tensor is dense.
    pub packing: Packing,
    /// Where they lie in staging, one piece after the other; those of a packed peer as one.
    pub messages: Vec<Piece>,
}

impl Way {
    /// Of `pieces`, which are sorted by peer.
    pub fn new(pieces: Vec<Piece>) -> Way {
        let packing = Packing::new(&pieces);
        Way {
            messages: packing.merged(&staged(&pieces)),
            ranges: pieces.iter().map(|p| p.rows).collect(),
            packing,
            pieces,
        }
    }

    /// Rows of staging: those of all pieces.
    pub fn rows(&self) -> i64 {
        self.messages.last().map_or(0, |p| p.rows.end)
    }

    /// What each peer has of it, by ascending peer: its rows in staging, and the tensor's rows that they belong to.
    pub fn by_peer(&self) -> impl Iterator<Item = (u32, Range, Vec<Range>)> + '_ {
        let mut at = 0;
        self.pieces.chunk_by(|a, b| a.peer == b.peer).map(move |of_peer| {
            let rows: Vec<Range> = of_peer.iter().map(|p| p.rows).collect();
            let start = at;
            at += rows.iter().map(Range::len).sum::<i64>();
            (of_peer[0].peer, Range::new(start, at), rows)
        })
    }
}
