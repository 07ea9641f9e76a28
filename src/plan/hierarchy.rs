//! Transfers over a mesh of hosts and ranks.

use super::side::{PlacedRun, SidePlacement, concatenate};
use crate::types::{Mesh, Piece, Range, Ranges, TwoLevel};

/// Where two sets of ranges meet: rows of `a` (the concatenation of its ranges) and of `b`. Ascending.
fn common(a: &Ranges, b: &Ranges) -> Vec<(Range, Range)> {
    let (a, b) = (concatenate(a.as_slice()), concatenate(b.as_slice()));
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        let meet = a[i].tokens.intersect(&b[j].tokens);
        if !meet.is_empty() {
            let rows = |run: &PlacedRun| meet.shift(run.row - run.tokens.start);
            out.push((rows(&a[i]), rows(&b[j])));
        }
        if a[i].tokens.end <= b[j].tokens.end {
            i += 1
        } else {
            j += 1
        }
    }
    out
}

/// Who sends what over `mesh` in one stage. `fetched(rank)` is what that rank fetches in the stage.
pub(super) struct Routes<'a, F: Fn(usize) -> &'a Ranges> {
    keys: &'a SidePlacement,
    mesh: Mesh,
    fetched: F,
}

impl<'a, F: Fn(usize) -> &'a Ranges> Routes<'a, F> {
    pub fn new(keys: &'a SidePlacement, mesh: Mesh, fetched: F) -> Self {
        Routes { keys, mesh, fetched }
    }

    /// Ranks of a host.
    fn of_host(&self, host: usize) -> std::ops::Range<usize> {
        host * self.mesh.intra..(host + 1) * self.mesh.intra
    }

    /// What the ranks of `host` fetch, together.
    fn wanted(&self, host: usize) -> Ranges {
        self.of_host(host)
            .flat_map(|r| (self.fetched)(r).iter().copied())
            .collect()
    }

    /// The owners on other hosts whose tokens come to the host of `gateway` through it, ascending.
    fn owners_behind(&self, gateway: usize) -> impl Iterator<Item = usize> + '_ {
        let Mesh { inter, intra } = self.mesh;
        let host = self.mesh.host(gateway);
        (0..inter)
            .filter(move |&h| h != host)
            .map(move |h| h * intra + gateway % intra)
    }

    /// The tokens that `gateway` takes in for its host, which wants `wanted`.
    fn gateway_tokens(&self, gateway: usize, wanted: &Ranges) -> Ranges {
        self.owners_behind(gateway)
            .flat_map(|o| self.keys.runs(o).intersect(wanted).as_slice().to_vec())
            .collect()
    }

    /// What `rank` does.
    pub fn of(&self, rank: usize) -> TwoLevel {
        let host = self.mesh.host(rank);
        let (own, mine) = (self.keys.runs(rank), (self.fetched)(rank));
        let wanted = self.wanted(host);
        let buffer = self.gateway_tokens(rank, &wanted);
        let piece = |peer: usize, rows| Piece {
            peer: peer as u32,
            rows,
        };
        let mut plan = TwoLevel {
            gateway_rows: buffer.tokens(),
            recv_rows: mine.tokens(),
            ..TwoLevel::default()
        };

        // First part: to my own host directly, to every other host once.
        for peer in self.of_host(host).filter(|&p| p != rank) {
            plan.sends.extend(
                common(own, (self.fetched)(peer))
                    .into_iter()
                    .map(|(rows, _)| piece(peer, rows)),
            );
            let direct = common(self.keys.runs(peer), mine);
            plan.direct
                .extend(direct.into_iter().map(|(_, rows)| piece(peer, rows)));
        }
        for other in (0..self.mesh.inter).filter(|&h| h != host) {
            let gateway = self.mesh.gateway(rank, other);
            let crossing = common(own, &self.wanted(other));
            plan.sends
                .extend(crossing.into_iter().map(|(rows, _)| piece(gateway, rows)));
        }
        plan.sends.sort_unstable_by_key(|p| (p.peer, p.rows));
        for owner in self.owners_behind(rank) {
            let crossing = self.keys.runs(owner).intersect(&wanted);
            plan.gateway.extend(
                common(&crossing, &buffer)
                    .into_iter()
                    .map(|(_, rows)| piece(owner, rows)),
            );
        }

        // Second part: from the gateways of my host.
        for peer in self.of_host(host) {
            if peer == rank {
                plan.keeps = common(&buffer, mine);
                continue;
            }
            let theirs = (self.fetched)(peer);
            plan.forwards.extend(
                common(&buffer, theirs)
                    .into_iter()
                    .map(|(rows, _)| piece(peer, rows)),
            );
            let relayed = common(&self.gateway_tokens(peer, &wanted), mine);
            plan.relayed
                .extend(relayed.into_iter().map(|(_, rows)| piece(peer, rows)));
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::piece_rows;
    use proptest::prelude::*;

    fn tokens(runs: &Ranges) -> Vec<i64> {
        runs.iter().flat_map(|r| r.start..r.end).collect()
    }

    /// Moves token ids from every rank's `from` rows, as `sends` say, to `to` rows, as `recvs` say.
    fn exchange(from: &[Vec<i64>], sends: &[&[Piece]], recvs: &[&[Piece]], to: &mut [Vec<i64>]) {
        for (r, (recvs, to)) in recvs.iter().zip(to.iter_mut()).enumerate() {
            for (p, peer) in sends.iter().enumerate() {
                let sent: Vec<_> = peer.iter().filter(|s| s.peer as usize == r).collect();
                let received: Vec<_> = recvs.iter().filter(|s| s.peer as usize == p).collect();
                assert_eq!(sent.len(), received.len(), "pieces from {p} to {r}");
                for (s, d) in sent.iter().zip(&received) {
                    assert_eq!(s.rows.len(), d.rows.len());
                    for i in 0..s.rows.len() {
                        to[(d.rows.start + i) as usize] = from[p][(s.rows.start + i) as usize];
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_rank_gets_what_it_fetches_and_tokens_cross_once(
            inter in 1..4usize, intra in 1..4usize, chunk in 1..4i64,
            owners in prop::collection::vec(0..64u32, 1..24),
            wants in prop::collection::vec(any::<u64>(), 12),
        ) {
            let (mesh, world) = (Mesh { inter, intra }, inter * intra);
            let owners: Vec<u32> = owners.iter().map(|o| o % world as u32).collect();
            let total = owners.len() as i64 * chunk;
            let keys = SidePlacement::from_owners(total, chunk, &owners, world).unwrap();
            let fetched: Vec<Ranges> = (0..world).map(|r| {
                let bits = wants[r];
                let all: Ranges =
                    (0..total).filter(|t| bits >> (t % 61) & 1 == 1).map(|t| Range::new(t, t + 1)).collect();
                all.subtract(keys.runs(r))
            }).collect();
            let routes = Routes::new(&keys, mesh, |r| &fetched[r]);
            let plans: Vec<TwoLevel> = (0..world).map(|r| routes.of(r)).collect();
            let own: Vec<Vec<i64>> = (0..world).map(|r| tokens(keys.runs(r))).collect();
            let blank = |rows: fn(&TwoLevel) -> i64| -> Vec<Vec<i64>> {
                plans.iter().map(|p| vec![-1; rows(p) as usize]).collect()
            };
            let (mut received, mut gateways) = (blank(|p| p.recv_rows), blank(|p| p.gateway_rows));
            let side = |f: fn(&TwoLevel) -> &[Piece]| -> Vec<&[Piece]> { plans.iter().map(f).collect() };
            let of_host = |same: bool| -> Vec<Vec<Piece>> {
                plans.iter().enumerate().map(|(r, p)| {
                    let here = |s: &&Piece| (mesh.host(s.peer as usize) == mesh.host(r)) == same;
                    p.sends.iter().filter(here).copied().collect()
                }).collect()
            };
            let (inside, outside) = (of_host(true), of_host(false));
            let inside: Vec<&[Piece]> = inside.iter().map(Vec::as_slice).collect();
            let outside: Vec<&[Piece]> = outside.iter().map(Vec::as_slice).collect();
            exchange(&own, &inside, &side(|p| &p.direct), &mut received);
            exchange(&own, &outside, &side(|p| &p.gateway), &mut gateways);
            exchange(&gateways, &side(|p| &p.forwards), &side(|p| &p.relayed), &mut received);
            for (r, plan) in plans.iter().enumerate() {
                for (from, to) in &plan.keeps {
                    for i in 0..from.len() {
                        received[r][(to.start + i) as usize] = gateways[r][(from.start + i) as usize];
                    }
                }
                prop_assert_eq!(&received[r], &tokens(&fetched[r]), "rank {}", r);
                // A token crosses to a host at most once, and only when somebody there wants it.
                let crossing = piece_rows(outside[r]);
                let wanted: i64 = (0..inter).filter(|&h| h != mesh.host(r)).map(|h| {
                    keys.runs(r).intersect(&routes.wanted(h)).tokens()
                }).sum();
                prop_assert_eq!(crossing, wanted);
            }
        }
    }
}
