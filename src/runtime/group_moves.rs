//! How the rows of a group travel: straight to their ranks, or over a mesh of hosts.

use super::group_way::Way;
use crate::types::{Mesh, Piece, Range, TwoLevel};

/// Where what a reduction adds lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In staging: what a rank sent.
    Rank,
    /// In staging: what the ranks of another host sent, summed there.
    Host,
    /// In this rank's own partial tensors.
    Own,
}

/// One source's part of a reduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contribution {
    pub source: Source,
    /// Consecutive rows of the source.
    pub from: Range,
    /// The rows that they are added to.
    pub to: Vec<Range>,
}

/// What one rank moves in a cast; a reduction moves it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moves {
    /// Local rows that go straight to other ranks: to all, or over a mesh to those of this host.
    pub sends: Way,
    /// Received rows that come from there.
    pub receives: Way,
    /// Rows that stay here: (local rows, received rows).
    pub keeps: Vec<(Range, Range)>,
    /// What goes over the mesh, where there is one.
    pub relay: Option<Relay>,
    /// What a reduction adds to local rows, by ascending source.
    pub contributions: Vec<Contribution>,
}

/// What crosses hosts: to a gateway, which passes it on to the ranks of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Relay {
    /// Local rows that go to other hosts, to each of them once.
    pub crossing: Way,
    /// Rows of the gateway buffer, which come from other hosts, one after the other.
    pub gateway: Way,
    /// Rows of the gateway buffer that go to ranks of this host.
    pub forwards: Way,
    /// Received rows that come from gateways of this host.
    pub relayed: Way,
    /// Rows of the gateway buffer that this rank needs itself: (gateway rows, received rows).
    pub keeps: Vec<(Range, Range)>,
    /// What a reduction adds to rows of the gateway buffer, by ascending rank.
    pub contributions: Vec<Contribution>,
}

impl Moves {
    /// Every row straight to its ranks.
    pub fn straight(
        rank: usize,
        sends: Vec<Piece>,
        receives: Vec<Piece>,
        keeps: Vec<(Range, Range)>,
    ) -> Moves {
        let sends = Way::new(sends);
        Moves {
            contributions: contributions(&[(Source::Rank, &sends)], rank, &keeps),
            sends,
            receives: Way::new(receives),
            keeps,
            relay: None,
        }
    }

    /// As `plan` says for `rank`; `keeps` are the rows that stay there.
    pub fn over(mesh: Mesh, rank: usize, plan: TwoLevel, keeps: Vec<(Range, Range)>) -> Moves {
        let here = |p: &Piece| mesh.host(p.peer as usize) == mesh.host(rank);
        let (inside, crossing): (Vec<_>, Vec<_>) = plan.sends.into_iter().partition(here);
        let (sends, crossing) = (Way::new(inside), Way::new(crossing));
        let forwards = Way::new(plan.forwards);
        Moves {
            contributions: contributions(&[(Source::Rank, &sends), (Source::Host, &crossing)], rank, &keeps),
            sends,
            receives: Way::new(plan.direct),
            keeps,
            relay: Some(Relay {
                contributions: contributions(&[(Source::Rank, &forwards)], rank, &plan.keeps),
                crossing,
                gateway: Way::new(plan.gateway),
                forwards,
                relayed: Way::new(plan.relayed),
                keeps: plan.keeps,
            }),
        }
    }

    /// The other ranks that it exchanges rows with, ascending.
    pub fn peers(&self) -> Vec<usize> {
        let relay = self.relay.iter();
        let ways = relay.flat_map(|r| [&r.crossing, &r.gateway, &r.forwards, &r.relayed]);
        let pieces = ways.chain([&self.sends, &self.receives]).flat_map(|w| &w.pieces);
        let mut peers: Vec<usize> = pieces.map(|p| p.peer as usize).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

/// What comes back by `ways` and what this rank has itself, by ascending source: between sources of one rank in their order.
fn contributions(ways: &[(Source, &Way)], rank: usize, keeps: &[(Range, Range)]) -> Vec<Contribution> {
    let mut all: Vec<(usize, Contribution)> = Vec::new();
    for &(source, way) in ways {
        let of_peer = |(peer, from, to)| (peer as usize, Contribution { source, from, to });
        all.extend(way.by_peer().map(of_peer));
    }
    // What lies side by side is added at once.
    for together in keeps.chunk_by(|(_, a), (_, b)| a.end == b.start) {
        let own = Contribution {
            source: Source::Own,
            from: Range::new(together[0].1.start, together[together.len() - 1].1.end),
            to: together.iter().map(|(to, _)| *to).collect(),
        };
        all.push((rank, own));
    }
    all.sort_by_key(|(source, _)| *source);
    all.into_iter().map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rank_keeps_is_added_at_once_where_it_lies_side_by_side() {
        let rows = Range::new;
        let keeps = [
            (rows(3, 5), rows(0, 2)),
            (rows(3, 4), rows(2, 3)),
            (rows(0, 1), rows(7, 8)),
        ];
        let of_peer = |peer, rows| Piece { peer, rows };
        let sends = vec![of_peer(0, rows(1, 2)), of_peer(2, rows(0, 4))];
        let moves = Moves::straight(1, sends, Vec::new(), keeps.to_vec());
        let part = |source, from, to: &[Range]| Contribution {
            source,
            from,
            to: to.to_vec(),
        };
        assert_eq!(
            moves.contributions,
            [
                part(Source::Rank, rows(0, 1), &[rows(1, 2)]),
                part(Source::Own, rows(0, 3), &[rows(3, 5), rows(3, 4)]),
                part(Source::Own, rows(7, 8), &[rows(0, 1)]),
                part(Source::Rank, rows(1, 5), &[rows(0, 4)]),
            ]
        );
    }
}
