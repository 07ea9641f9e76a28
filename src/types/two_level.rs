//! A transfer over hosts: every token crosses to a host once, and fans out inside it.

use super::{Piece, Range};

/// Ranks in rows: rank `r` is number `r % intra` on host `r / intra`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mesh {
    /// Hosts.
    pub inter: usize,
    /// Ranks of a host.
    pub intra: usize,
}

impl Mesh {
    /// The host of a rank.
    pub const fn host(&self, rank: usize) -> usize {
        rank / self.intra
    }

    /// The rank of `host` through which tokens of `owner`, which is on another host, come in.
    pub const fn gateway(&self, owner: usize, host: usize) -> usize {
        host * self.intra + owner % self.intra
    }
}

/// What one rank does in one group_cast over a mesh; group_reduce is its transpose, second part first.
///
/// First part: owners send to ranks of their own host, and to one gateway on every other host that needs the row. Second
/// part: gateways pass on to the ranks of their host. Between two ranks, and within a part, the k-th piece sent has as many
/// rows as the k-th received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TwoLevel {
    /// First part: rows of the local tensor that go to ranks of this host or to gateways.
    pub sends: Vec<Piece>,
    /// First part: rows of the receive buffer that come from ranks of this host.
    pub direct: Vec<Piece>,
    /// First part: rows of the gateway buffer that come from other hosts.
    pub gateway: Vec<Piece>,
    /// Rows of the gateway buffer: the ascending concatenation of what this rank takes in for its host.
    pub gateway_rows: i64,
    /// Second part: rows of the gateway buffer that go to ranks of this host.
    pub forwards: Vec<Piece>,
    /// Second part: rows of the receive buffer that come from gateways.
    pub relayed: Vec<Piece>,
    /// Rows of the gateway buffer that this rank needs itself, with their rows of the receive buffer.
    pub keeps: Vec<(Range, Range)>,
    /// Rows of the receive buffer.
    pub recv_rows: i64,
}

/// Rows of a list of pieces.
pub fn piece_rows(pieces: &[Piece]) -> i64 {
    pieces.iter().map(|p| p.rows.len()).sum()
}

impl TwoLevel {
    /// Whether this rank has no part in it.
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.direct.is_empty() && self.gateway.is_empty() && self.relayed.is_empty()
    }
}
