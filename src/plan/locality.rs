//! Chunks to ranks by area and by the keys that they share.

use super::balance::{heaviest, longest_first, repair};
use super::chunks::Chunks;
use super::order::blocks;
use super::reach::Reaches;
use super::search::Search;
use super::seed::deal;
use crate::types::{Config, Effort};

/// Steps of the search for each rank and each chunk; a step is a run of keys looked at, 5 to 10 ns.
const FAST: (u64, u64) = (1800, 12);
/// 100 ms at 64 ranks, with room for a slower machine.
const THOROUGH: (u64, u64) = (90_000, 2000);
/// Evening what ranks send may take so much less, beside them.
const EVENING: u64 = 2;
/// Contiguous blocks are tried where none has more than the mean and this part of it.
const NEARLY_EVEN: i64 = 32;

struct Near<'a> {
    reaches: &'a Reaches<'a>,
    chunks: &'a Chunks,
    world: usize,
    config: &'a Config,
    times: u64,
}

/// The rank of every chunk. Counts differ by at most one. No rank has more than the largest area of `by_area`, or than the
/// mean and the config's slack where that is more; and no more tokens move than there.
///
/// With a slack, no more tokens move either than where the longest chunk always goes to the least loaded rank; where
/// only a placement with more area on a rank can do that, no rank has more than there.
///
/// `times` multiplies the steps of the config's effort.
pub(super) fn assign_near(
    reaches: &Reaches,
    chunks: &Chunks,
    world: usize,
    by_area: Vec<u32>,
    config: &Config,
    times: u64,
) -> Vec<u32> {
    let near = Near {
        reaches,
        chunks,
        world,
        config,
        times,
    };
    let areas = &chunks.areas;
    let mean = areas.iter().sum::<i64>() / world as i64;
    // In i128: the area of 2^31 tokens times a thousand is more than an i64 holds.
    let slack = i128::from(mean) * i128::from(config.balance_slack) / 1000;
    let limit = heaviest(areas, &by_area, world).max(mean + slack as i64);
    let plain = near.start(by_area.clone(), limit);
    if plain.total() == 0 {
        return by_area;
    }
    let most = plain.total();
    let found = near.improved(near.seeded(plain), most);
    if config.balance_slack == 0 {
        return found.into_owners();
    }
    let greedy = longest_first(areas, world);
    if greedy == by_area {
        return found.into_owners();
    }
    let limit = limit.max(heaviest(areas, &greedy, world));
    let greedy = near.start(greedy, limit);
    let most = greedy.total();
    if found.total() <= most {
        return found.into_owners();
    }
    near.improved(greedy, most).into_owners()
}

impl<'a> Near<'a> {
    fn start(&self, owners: Vec<u32>, limit: i64) -> Search<'a> {
        Search::new(self.reaches, &self.chunks.areas, self.world, limit, owners)
    }

    /// Of the placement by area, chunks dealt near their keys, and contiguous blocks, the one that moves fewest tokens.
    fn seeded(&self, plain: Search<'a>) -> Search<'a> {
        let (areas, limit) = (&self.chunks.areas, plain.limit);
        let blocks = blocks(areas.len(), self.world);
        let nearly = heaviest(areas, &blocks, self.world) <= limit + limit / NEARLY_EVEN;
        let dealt = deal(self.reaches, areas, self.world, limit);
        let mut best = plain;
        for mut owners in nearly.then_some(blocks).into_iter().chain([dealt]) {
            repair(areas, self.world, limit, &mut owners);
            let seed = self.start(owners, limit);
            if seed.heaviest() <= limit && seed.total() < best.total() {
                best = seed;
            }
        }
        best
    }

    /// Searches from `seed`, which receives at most `most` tokens in all, and comes back to it when that wins nothing.
    fn improved(&self, seed: Search<'a>, most: i64) -> Search<'a> {
        let weight: i64 = self.reaches.0.iter().map(|r| r.1).sum();
        let (per_rank, per_chunk, heat) = match self.config.effort {
            Effort::Thorough => (THOROUGH.0, THOROUGH.1, 2),
            _ => (FAST.0, FAST.1, 1),
        };
        let steps = per_rank * self.world as u64 + per_chunk * self.chunks.areas.len() as u64;
        let budget = self.times * steps;
        let mut search = seed.clone();
        search.anneal(heat * self.chunks.size * weight, budget);
        if search.total() >= seed.total() {
            search = seed;
        }
        search.even_sends(budget / EVENING, most);
        search
    }
}
