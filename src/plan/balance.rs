//! Chunks to ranks: equal counts, and the largest area of a rank as small as swaps can make it.

use super::side::DivCeil;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

/// Swapping stops when the largest area is within this part of the mean: 0.1%, far below what a stage's launch costs.
const SLACK: i64 = 1024;
/// Chunks that all swap attempts together may look at, for each chunk there is. A budget of evaluations and not
/// of time, so that every rank stops at the same place.
const EFFORT: usize = 32;
/// Pairs of chunks are exchanged only where ranks have few: with many, single ones come close enough.
const MOST_FOR_PAIRS: usize = 16;

/// Exchanges from `owners` until no rank has more than `goal`, or none helps.
pub(super) fn repair(areas: &[i64], world: usize, goal: i64, owners: &mut [u32]) {
    let mut swaps = Swaps::new(areas, owners, world);
    swaps.goal = goal;
    swaps.run(owners);
}

/// The rank of every chunk. Counts differ by at most one.
pub(super) fn assign(areas: &[i64], world: usize) -> Vec<u32> {
    let mut owners = longest_first(areas, world);
    if world > 1 {
        Swaps::new(areas, &owners, world).run(&mut owners);
    }
    owners
}

/// Longest chunk first, each to the least loaded rank that has room.
pub(super) fn longest_first(areas: &[i64], world: usize) -> Vec<u32> {
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

/// The largest area of a rank.
pub(super) fn heaviest(areas: &[i64], owners: &[u32], world: usize) -> i64 {
    let mut load = vec![0; world];
    for (&area, &owner) in areas.iter().zip(owners) {
        load[owner as usize] += area;
    }
    load.into_iter().max().unwrap_or(0)
}

/// What the largest area is at least: the mean; or, of the `j` chunks that some rank must have of the `(j - 1) * world + 1`
/// heaviest, the lightest, with the lightest of all beside them, counts being equal.
pub(super) fn bound(areas: &[i64], world: usize) -> i64 {
    let mut areas = areas.to_vec();
    areas.sort_unstable();
    let count = areas.len();
    let sums: Vec<i64> = std::iter::once(0)
        .chain(areas.iter().scan(0, |sum, &a| {
            *sum += a;
            Some(*sum)
        }))
        .collect();
    let mean = sums[count].div_ceil_by(world as i64);
    let places = count / world;
    let with = (1..=count.div_ceil(world)).map(|j| {
        let first = count - ((j - 1) * world + 1);
        sums[first + j] - sums[first] + sums[places.saturating_sub(j).min(first)]
    });
    with.fold(mean, i64::max)
}

/// Exchanges that take area from the most loaded rank.
struct Swaps {
    /// (area, chunk) of each rank's chunks, ascending.
    chunks: Vec<Vec<(i64, u32)>>,
    /// (area, rank), ascending.
    loads: BTreeSet<(i64, u32)>,
    goal: i64,
    budget: usize,
}

/// One or two chunks of a rank, or none: their area and their places in the rank's list, ascending.
#[derive(Clone, Copy)]
struct Bundle {
    area: i64,
    places: [usize; 2],
    count: usize,
}

/// What leaves the heavier rank and what it gets back.
#[derive(Clone, Copy)]
struct Exchange {
    out: Bundle,
    back: Bundle,
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
        let goal = bound(areas, world);
        Swaps {
            chunks,
            loads,
            goal: goal + goal / SLACK,
            budget: EFFORT * areas.len().max(128),
        }
    }

    /// Every exchange leaves both ranks below the old maximum, so the sorted loads fall and the loop ends.
    fn run(mut self, owners: &mut [u32]) {
        while let Some(&heavy) = self.loads.last() {
            if heavy.0 <= self.goal {
                return;
            }
            let Some((light, exchange)) = self.find(heavy, 1).or_else(|| self.find(heavy, 2)) else {
                return;
            };
            self.apply(heavy, light, exchange, owners);
        }
    }

    /// The best exchange of up to `most` chunks with the least loaded rank that offers any.
    fn find(&mut self, heavy: (i64, u32), most: usize) -> Option<((i64, u32), Exchange)> {
        let from = &self.chunks[heavy.1 as usize];
        if most > 1 && from.len() > MOST_FOR_PAIRS {
            return None;
        }
        let out = bundles(from, most);
        for &light in &self.loads {
            let difference = heavy.0 - light.0;
            if difference < 2 {
                return None;
            }
            let back = bundles(&self.chunks[light.1 as usize], most);
            let looked = out.len() + back.len();
            if self.budget < looked {
                return None;
            }
            self.budget -= looked;
            let spare = from.len() as i64 - self.chunks[light.1 as usize].len() as i64;
            if let Some(exchange) = best_exchange(&out, &back, difference, spare) {
                return Some((light, exchange));
            }
        }
        None
    }

    fn apply(&mut self, heavy: (i64, u32), light: (i64, u32), exchange: Exchange, owners: &mut [u32]) {
        let mut moves = Vec::new();
        for (bundle, from, to) in [
            (exchange.out, heavy.1, light.1),
            (exchange.back, light.1, heavy.1),
        ] {
            for &place in bundle.places[..bundle.count].iter().rev() {
                moves.push((self.chunks[from as usize].remove(place), to));
            }
        }
        for (chunk, to) in moves {
            let own = &mut self.chunks[to as usize];
            own.insert(own.partition_point(|c| *c < chunk), chunk);
            owners[chunk.1 as usize] = to;
        }
        let moved = exchange.out.area - exchange.back.area;
        for (old, new) in [(heavy, heavy.0 - moved), (light, light.0 + moved)] {
            self.loads.remove(&old);
            self.loads.insert((new, old.1));
        }
    }
}

/// All bundles of up to `most` chunks, by count, then by area.
fn bundles(chunks: &[(i64, u32)], most: usize) -> Vec<Bundle> {
    let none = Bundle {
        area: 0,
        places: [0; 2],
        count: 0,
    };
    let mut all = vec![none];
    all.extend(chunks.iter().enumerate().map(|(i, c)| Bundle {
        area: c.0,
        places: [i, 0],
        count: 1,
    }));
    if most > 1 {
        let first = all.len();
        for (j, b) in chunks.iter().enumerate() {
            all.extend(chunks[..j].iter().enumerate().map(|(i, a)| Bundle {
                area: a.0 + b.0,
                places: [i, j],
                count: 2,
            }));
        }
        all[first..].sort_unstable_by_key(|b| (b.area, b.places));
    }
    all
}

/// The exchange that moves an area closest to half of `difference`, of those strictly between nothing and all of it.
/// Counts stay within one of each other: only a rank with `spare` 1 may give one chunk more than it gets.
fn best_exchange(out: &[Bundle], back: &[Bundle], difference: i64, spare: i64) -> Option<Exchange> {
    let mut best: Option<Exchange> = None;
    let with = |list: &[Bundle], count: usize| {
        let from = list.partition_point(|b| b.count < count);
        from..list.partition_point(|b| b.count <= count)
    };
    for given in 0..=2 {
        let even = given as i64;
        for taken in [even, even - spare.signum()] {
            if !(0..=2).contains(&taken) || (taken == even && given == 0) {
                continue;
            }
            let back = &back[with(back, taken as usize)];
            let mut j = 0;
            for &a in &out[with(out, given)] {
                // The first bundle that leaves at most half the difference moved, and the one before it.
                while j < back.len() && back[j].area < a.area - difference / 2 {
                    j += 1;
                }
                for &b in &back[j.saturating_sub(1)..(j + 1).min(back.len())] {
                    let moved = a.area - b.area;
                    let gain = moved.min(difference - moved);
                    if gain > best.map_or(0, |best| best.gain) {
                        let (out, back) = (a, b);
                        best = Some(Exchange { out, back, gain });
                    }
                }
            }
            if spare == 0 {
                break;
            }
        }
    }
    best
}
