//! A first placement that keeps together what sees the same keys.

use super::reach::{Held, Reaches};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// A rank is urgent when its free places need, on average, more than this part of the chunk being dealt: chunks are
/// dealt longest first, so later ones would leave it too light.
const URGENT: (i64, i64) = (15, 16);
/// Of several urgent ranks this many are compared.
const COMPARED: usize = 3;

/// Whether free places that should take `wanted` cells each make a rank urgent for a chunk of `area`. In i128: half the
/// cells of 2^31 tokens times 16 are more than an i64 holds.
fn urgent_for(wanted: i64, area: i64) -> bool {
    i128::from(wanted) * i128::from(URGENT.1) >= i128::from(area) * i128::from(URGENT.0)
}

struct Deal<'a> {
    reaches: &'a Reaches<'a>,
    areas: &'a [i64],
    /// What no rank should exceed, and what each should come to.
    limit: i64,
    mean: i64,
    places: usize,
    /// Ranks that may still take the last of their places.
    extras: usize,
    /// Sums of the lightest areas: what filling so many places takes at least.
    lightest: Vec<i64>,
    owners: Vec<u32>,
    held: Vec<Held>,
    count: Vec<usize>,
    load: Vec<i64>,
    /// (area that each free place should take, rank), for ranks with free places.
    wants: BTreeSet<(i64, Reverse<u32>)>,
}

/// Chunks longest first. Each goes where a neighbour went, while that rank has room for its area and no other rank
/// would be left too light; else to the ranks that want area most, of those where it adds fewest received tokens.
pub(super) fn deal(reaches: &Reaches, areas: &[i64], world: usize, limit: i64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..areas.len() as u32).collect();
    order.sort_unstable_by_key(|&c| (Reverse(areas[c as usize]), c));
    let places = areas.len().div_ceil(world);
    let mut lightest = vec![0];
    for &c in order.iter().rev().take(places) {
        lightest.push(lightest[lightest.len() - 1] + areas[c as usize]);
    }
    let mean = areas.iter().sum::<i64>() / world as i64;
    let mut deal = Deal {
        reaches,
        areas,
        limit,
        mean,
        places,
        extras: world - (places * world - areas.len()),
        lightest,
        owners: vec![u32::MAX; areas.len()],
        held: (0..world).map(|r| Held::new(reaches, r)).collect(),
        count: vec![0; world],
        load: vec![0; world],
        wants: (0..world as u32)
            .map(|r| (mean / places as i64, Reverse(r)))
            .collect(),
    };
    for c in order {
        let rank = deal.choose(c);
        deal.place(c, rank);
    }
    deal.owners
}

impl Deal<'_> {
    fn free(&self, rank: u32) -> usize {
        let places = if self.extras > 0 {
            self.places
        } else {
            self.places - 1
        };
        places.saturating_sub(self.count[rank as usize])
    }

    fn choose(&self, c: u32) -> u32 {
        let area = self.areas[c as usize];
        let neighbours = self.neighbours(c);
        let urgent: Vec<u32> = self
            .wants
            .iter()
            .rev()
            .take(COMPARED)
            .take_while(|w| urgent_for(w.0, area))
            .map(|w| w.1.0)
            .collect();
        if !urgent.is_empty() {
            let beside = neighbours
                .into_iter()
                .flatten()
                .filter(|&r| self.free(r) > 0 && urgent_for(self.want(r), area));
            let candidates: Vec<u32> = beside.chain(urgent.iter().copied()).collect();
            return self.cheapest(c, &candidates);
        }
        let beside = neighbours.into_iter().flatten().filter(|&r| {
            let free = self.free(r);
            free > 0 && self.load[r as usize] + area + self.lightest[free - 1] <= self.limit
        });
        let neediest = self.wants.last().map_or(0, |w| w.1.0);
        let candidates: Vec<u32> = beside.chain([neediest]).collect();
        self.cheapest(c, &candidates)
    }

    /// Owners of the nearest chunks on both sides, where these are placed.
    fn neighbours(&self, c: u32) -> [Option<u32>; 2] {
        let at = |i: Option<usize>| {
            i.and_then(|i| self.owners.get(i))
                .copied()
                .filter(|&o| o != u32::MAX)
        };
        let c = c as usize;
        [at(c.checked_add(1)), at(c.checked_sub(1))]
    }

    /// The candidate where the chunk adds fewest received tokens; the first of equals.
    fn cheapest(&self, c: u32, candidates: &[u32]) -> u32 {
        if let [only] = candidates {
            return *only;
        }
        let mut best = (i64::MAX, candidates[0]);
        for &rank in candidates {
            let added = self.held[rank as usize].added(self.reaches, c);
            if added < best.0 {
                best = (added, rank);
            }
        }
        best.1
    }

    /// The area that each free place of a rank should take.
    fn want(&self, rank: u32) -> i64 {
        match self.free(rank) {
            0 => i64::MIN,
            free => (self.mean - self.load[rank as usize]).max(0) / free as i64,
        }
    }

    fn place(&mut self, c: u32, rank: u32) {
        self.wants.remove(&(self.want(rank), Reverse(rank)));
        let r = rank as usize;
        self.held[r].add(self.reaches, c);
        self.count[r] += 1;
        self.load[r] += self.areas[c as usize];
        self.owners[c as usize] = rank;
        if self.count[r] == self.places {
            self.extras -= 1;
            if self.extras == 0 {
                self.rebuild();
            }
        } else if self.free(rank) > 0 {
            self.wants.insert((self.want(rank), Reverse(rank)));
        }
    }

    /// No rank may take its last place any more, so all have one fewer.
    fn rebuild(&mut self) {
        let ranks = 0..self.load.len() as u32;
        self.wants = ranks
            .filter(|&r| self.free(r) > 0)
            .map(|r| (self.want(r), Reverse(r)))
            .collect();
    }
}
