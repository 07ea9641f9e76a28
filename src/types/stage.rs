//! What a plan hands to communicators and backends: transfers and the slices of a stage.

use super::{Range, Slice};

/// Queries or keys. With equal totals both sides share one placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Side {
    /// Query tokens (q, out, lse, dout, dq, per-token sinks).
    Q = 0,
    /// Key tokens (k, v, dk, dv).
    K = 1,
}

/// One contiguous run of rows that goes to, or comes from, one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The other rank. Never the rank itself.
    pub peer: u32,
    /// Rows: of the local tensor in a send, of the receive buffer in a receive.
    pub rows: Range,
}

/// What one rank sends and receives in one group_cast. group_reduce is its transpose: it sends what was received
/// and receives what was sent.
///
/// Between two ranks pieces are in the same order on both sides (ascending global token), and the k-th piece sent
/// has as many rows as the k-th received. Sends are sorted by (peer, rows), receives by (peer, rows).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// Rows of the local tensor that go out. A row may go to several peers.
    pub sends: Vec<Piece>,
    /// Rows of the receive buffer that come in. Every row of the buffer comes from exactly one peer.
    pub recvs: Vec<Piece>,
    /// Rows of the receive buffer: the ascending concatenation of the global ranges fetched.
    pub recv_rows: i64,
}

impl Transfer {
    /// Rows sent, counted once for every peer they go to.
    pub fn send_rows(&self) -> i64 {
        self.sends.iter().map(|p| p.rows.len()).sum()
    }

    /// Whether this rank neither sends nor receives.
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.recvs.is_empty()
    }
}

/// A slice in local coordinates: query rows of the local tensor, key rows of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StageSlice {
    /// Local rectangle and band.
    pub slice: Slice,
    /// 0: keys are rows of the local tensor; 1: keys are rows of the stage's receive buffer.
    pub source: u8,
}
