//! Who passes on what when a group's rows go over a mesh of hosts.

use crate::types::{Mesh, Piece, Range, Ranges, TwoLevel};

/// What one rank knows of a group once the ranks have told each other what leaves their hosts.
pub(super) struct Routes<'a> {
    pub mesh: Mesh,
    pub rank: usize,
    /// Local rows that go to other ranks, and received rows that come from them, by ascending peer.
    pub sends: &'a [Piece],
    pub receives: &'a [Piece],
    /// Rows of the received tensors.
    pub received_rows: i64,
    /// Of every rank, the sends that leave its host.
    pub leaving: &'a [Vec<Piece>],
}

/// The pieces of `sends`, those of `rank`, that go to other hosts.
pub(super) fn leaving(mesh: Mesh, rank: usize, sends: &[Piece]) -> Vec<Piece> {
    let away = |p: &&Piece| mesh.host(p.peer as usize) != mesh.host(rank);
    sends.iter().filter(away).copied().collect()
}

fn piece(peer: usize, rows: Range) -> Piece {
    Piece {
        peer: peer as u32,
        rows,
    }
}

impl Routes<'_> {
    fn host(&self) -> usize {
        self.mesh.host(self.rank)
    }

    /// What `owner`, which is on another host, sends to ranks of `host`.
    fn pieces(&self, owner: usize, host: usize) -> impl Iterator<Item = &Piece> {
        let there = move |p: &&Piece| self.mesh.host(p.peer as usize) == host;
        self.leaving[owner].iter().filter(there)
    }

    /// The rows of `owner` that cross to `host`, each once.
    fn crossing(&self, owner: usize, host: usize) -> Ranges {
        self.pieces(owner, host).map(|p| p.rows).collect()
    }

    /// The owners on other hosts whose rows come to this host through this rank, ascending.
    fn owners(&self) -> impl Iterator<Item = usize> {
        let Mesh { inter, intra } = self.mesh;
        let (here, number) = (self.host(), self.rank % intra);
        (0..inter)
            .filter(move |&h| h != here)
            .map(move |h| h * intra + number)
    }

    /// Rows that this rank takes in for its host, counted once for every time that a rank of it receives them.
    pub fn passed_rows(&self) -> i128 {
        let here = self.host();
        let pieces = self.owners().flat_map(|owner| self.pieces(owner, here));
        pieces.map(|p| i128::from(p.rows.len())).sum()
    }

    /// What the rank does. Fits what the others do, whose pieces were compared.
    pub fn plan(&self) -> TwoLevel {
        let (mesh, here) = (self.mesh, self.host());
        let inside = |p: &&Piece| mesh.host(p.peer as usize) == here;
        let mut sends: Vec<Piece> = self.sends.iter().filter(inside).copied().collect();
        for other in (0..mesh.inter).filter(|&h| h != here) {
            let gateway = mesh.gateway(self.rank, other);
            sends.extend(
                self.crossing(self.rank, other)
                    .iter()
                    .map(|&rows| piece(gateway, rows)),
            );
        }
        // Stable, here and below: between two ranks the caller's order decides which piece is which.
        sends.sort_by_key(|p| p.peer);

        let (gateway, mut passed) = self.gateway();
        passed.sort_by_key(|p| p.peer);
        let (direct, far): (Vec<Piece>, Vec<Piece>) = self
            .receives
            .iter()
            .partition(|p| mesh.host(p.peer as usize) == here);
        let relay = |p: &Piece| piece(mesh.gateway(p.peer as usize, here), p.rows);
        let mut relayed: Vec<Piece> = far.iter().map(relay).collect();
        relayed.sort_by_key(|p| p.peer);

        let own = |p: &Piece| p.peer as usize == self.rank;
        let (mine, forwards): (Vec<Piece>, Vec<Piece>) = passed.into_iter().partition(own);
        let (kept, relayed): (Vec<Piece>, Vec<Piece>) = relayed.into_iter().partition(own);
        TwoLevel {
            sends,
            direct,
            gateway_rows: gateway.last().map_or(0, |p| p.rows.end),
            gateway,
            forwards,
            relayed,
            keeps: mine
                .iter()
                .zip(&kept)
                .map(|(from, to)| (from.rows, to.rows))
                .collect(),
            recv_rows: self.received_rows,
        }
    }

    /// This rank's gateway buffer: what comes in from each owner, one after the other, and what every rank of the host takes
    /// from it, by ascending owner.
    fn gateway(&self) -> (Vec<Piece>, Vec<Piece>) {
        let here = self.host();
        let (mut gateway, mut passed) = (Vec::new(), Vec::new());
        let mut at = 0;
        for owner in self.owners() {
            let crossing = self.crossing(owner, here);
            let first = gateway.len();
            for run in crossing.iter() {
                gateway.push(piece(owner, Range::new(at, at + run.len())));
                at += run.len();
            }
            for p in self.pieces(owner, here) {
                // A piece lies inside one run: runs are where pieces touch or meet.
                let i = crossing.first_run_after(p.rows.start);
                let shift = gateway[first + i].rows.start - crossing.as_slice()[i].start;
                passed.push(piece(p.peer as usize, p.rows.shift(shift)));
            }
        }
        (gateway, passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_crosses_once_and_is_passed_on_as_often_as_it_is_wanted() {
        let mesh = Mesh { inter: 2, intra: 2 };
        let of = |list: &[(usize, i64, i64)]| -> Vec<Piece> {
            list.iter()
                .map(|&(peer, a, b)| piece(peer, Range::new(a, b)))
                .collect()
        };
        // Rank 1: a piece for its own host, and on the other host [2, 7) and [9, 10) for both ranks in several pieces.
        let sends = of(&[(0, 0, 3), (2, 4, 7), (2, 9, 10), (3, 2, 5), (3, 4, 5)]);
        let all = vec![Vec::new(), leaving(mesh, 1, &sends), Vec::new(), Vec::new()];
        assert_eq!(all[1], sends[1..]);
        let routes = |rank, sends, receives| Routes {
            mesh,
            rank,
            sends,
            receives,
            received_rows: 8,
            leaving: &all,
        };
        let owner = routes(1, &sends, &[]).plan();
        assert_eq!(owner.sends, of(&[(0, 0, 3), (3, 2, 7), (3, 9, 10)]));
        let receives = of(&[(1, 4, 7), (1, 0, 1)]);
        let gateway = routes(3, &[], &receives);
        assert_eq!(gateway.passed_rows(), 8);
        let gateway = gateway.plan();
        assert_eq!(
            (gateway.gateway, gateway.gateway_rows),
            (of(&[(1, 0, 5), (1, 5, 6)]), 6)
        );
        assert_eq!(gateway.forwards, of(&[(2, 2, 5), (2, 5, 6)]));
        let rows = Range::new;
        assert_eq!(
            gateway.keeps,
            [(rows(0, 3), rows(4, 7)), (rows(2, 3), rows(0, 1))]
        );
        assert!(gateway.direct.is_empty() && gateway.relayed.is_empty());
        let receives = of(&[(1, 3, 6), (1, 7, 8)]);
        let other = routes(2, &[], &receives).plan();
        assert_eq!(other.relayed, of(&[(3, 3, 6), (3, 7, 8)]));
        assert_eq!((other.gateway_rows, other.recv_rows), (0, 8));
        assert!(other.forwards.is_empty() && other.keeps.is_empty() && other.sends.is_empty());
    }
}
