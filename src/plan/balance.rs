//! Chunks to ranks: equal counts, and the largest area of a rank as small as swaps can make it.

use super::side::DivCeil;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Swapping stops when the largest area is within this part of the mean: 0.1%, far below what a stage's launch costs.
const SLACK: i64 = 1024;
/// Chunks that all swap attempts together may look at, for each chunk there is. A budget of evaluations and not
/// of time, so that every rank stops at the same place.
const EFFORT: usize = 32;

/// The rank of every chunk. Counts differ by at most one.
pub(super) fn assign(areas: &[i64], world: usize) -> Vec<u32> {
    let mut owners = longest_first(areas, world);
    if world > 1 {
        Swaps::new(areas, &owners, world).run(&mut owners);
    }
    owners
}

/// Longest chunk first, each to the least loaded rank that has room.
fn longest_first(areas: &[i64], world: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..areas.len() as u32).collect();
    order.sort_unstable_by_key(|&c| (Reverse(areas[c as usize]), c));
    let even = areas.len() / world;
    let mut extras = areas.len() % world;
    let mut owners = vec![0; areas.len()];
    let mut ranks: BinaryHeap<_> = (0..world as u32).map(|r| Reverse((0i64, r, 0usize))).collect();
    for chunk in order {
        // A rank without room never gets any again, so it leaves the heap for good.
        while let Some(mut least) = ranks.peek_mut() {
            let (load, rank, count) = least.0;
            if count == even && extras == 0 {
                std::collections::binary_heap::PeekMut::pop(least);
                continue;
            }
            owners[chunk as usize] = rank;
            if count == even {
                extras -= 1;
                std::collections::binary_heap::PeekMut::pop(least);
            } else {
                *least = Reverse((load + areas[chunk as usize], rank, count + 1));
            }
            break;
        }
    }
    owners
}

/// Pairwise exchanges that take area from the most loaded rank.
struct Swaps {
    /// (area, chunk) of each rank's chunks, ascending.
    chunks: Vec<Vec<(i64, u32)>>,
    /// (area, rank), ascending.
    loads: BTreeSet<(i64, u32)>,
    goal: i64,
    budget: usize,
}

/// What leaves the heavier rank and what it gets back: indices into both ranks' chunks.
#[derive(Clone, Copy)]
struct Exchange {
    out: usize,
    back: Option<usize>,
    gain: i64,
}

impl Swaps {
    fn new(areas: &[i64], owners: &[u32], world: usize) -> Swaps {
        let mut chunks = vec![Vec::new(); world];
        for (c, (&area, &owner)) in areas.iter().zip(owners).enumerate() {
            chunks[owner as usize].push((area, c as u32));
        }
        let mut loads = BTreeSet::new();
        for (rank, own) in chunks.iter_mut().enumerate() {
            own.sort_unstable();
            loads.insert((own.iter().map(|c| c.0).sum(), rank as u32));
        }
        let mean = areas.iter().sum::<i64>().div_ceil_by(world as i64);
        Swaps {
            chunks,
            loads,
            goal: mean + mean / SLACK,
            budget: EFFORT * areas.len(),
        }
    }

    /// Every exchange leaves both ranks below the old maximum, so the sorted loads fall and the loop ends.
    fn run(mut self, owners: &mut [u32]) {
        while let Some(&heavy) = self.loads.last() {
            if heavy.0 <= self.goal {
                return;
            }
            let Some((light, exchange)) = self.find(heavy) else {
                return;
            };
            self.apply(heavy, light, exchange, owners);
        }
    }

    /// The best exchange with the least loaded rank that offers any.
    fn find(&mut self, heavy: (i64, u32)) -> Option<((i64, u32), Exchange)> {
        for &light in &self.loads {
            let difference = heavy.0 - light.0;
            if difference < 2 {
                return None;
            }
            let (from, to) = (&self.chunks[heavy.1 as usize], &self.chunks[light.1 as usize]);
            let looked = from.len() + to.len();
            if self.budget < looked {
                return None;
            }
            self.budget -= looked;
            if let Some(exchange) = best_exchange(from, to, difference) {
                return Some((light, exchange));
            }
        }
        None
    }

    fn apply(&mut self, heavy: (i64, u32), light: (i64, u32), exchange: Exchange, owners: &mut [u32]) {
        let out = self.chunks[heavy.1 as usize].remove(exchange.out);
        let back = exchange.back.map(|i| self.chunks[light.1 as usize].remove(i));
        let moved = out.0 - back.map_or(0, |b| b.0);
        for (entry, rank) in std::iter::once((out, light.1)).chain(back.map(|b| (b, heavy.1))) {
            let own = &mut self.chunks[rank as usize];
            own.insert(own.partition_point(|c| *c < entry), entry);
            owners[entry.1 as usize] = rank;
        }
        for (old, new) in [(heavy, heavy.0 - moved), (light, light.0 + moved)] {
            self.loads.remove(&old);
            self.loads.insert((new, old.1));
        }
    }
}

/// The exchange that moves an area closest to half of `difference`, of those strictly between nothing and all of it.
fn best_exchange(from: &[(i64, u32)], to: &[(i64, u32)], difference: i64) -> Option<Exchange> {
    let mut best: Option<Exchange> = None;
    let mut offer = |out: usize, back: Option<usize>, moved: i64| {
        let gain = moved.min(difference - moved);
        if gain > best.map_or(0, |b| b.gain) {
            best = Some(Exchange { out, back, gain });
        }
    };
    let mut j = 0;
    for (i, a) in from.iter().enumerate() {
        // The first chunk that gives back at least what leaves half the difference moved, and the one before it.
        while j < to.len() && to[j].0 < a.0 - difference / 2 {
            j += 1;
        }
        for (back, b) in to.iter().enumerate().take(j + 1).skip(j.saturating_sub(1)) {
            offer(i, Some(back), a.0 - b.0);
        }
        // The longer list may give a chunk for nothing: counts still differ by at most one.
        if from.len() > to.len() {
            offer(i, None, a.0);
        }
    }
    best
}
