//! Chunks to ranks by area and by the keys that they share.

use super::balance::{assign, repair};
use super::reach::Reaches;
use super::search::Search;
use super::seed::deal;
use crate::types::{Config, Effort};

/// Steps of the search for each rank and each chunk; a step is a run of keys looked at, 5 to 10 ns.
const FAST: (u64, u64) = (2000, 16);
/// 100 ms at 64 ranks, with room for a slower machine.
const THOROUGH: (u64, u64) = (90_000, 2000);

/// The rank of every chunk. Counts differ by at most one. No rank has more than the largest area of `balance::assign`,
/// or than the mean and the config's slack where that is more; and no more tokens move than there.
///
/// `chunk` is the tokens of a chunk, the unit of what one swap wins.
pub(super) fn assign_near(
    reaches: &Reaches,
    areas: &[i64],
    world: usize,
    chunk: i64,
    config: &Config,
) -> Vec<u32> {
    let by_area = assign(areas, world);
    if config.effort == Effort::Balance || world == 1 || areas.len() <= world {
        return by_area;
    }
    let plain = Search::new(reaches, areas, world, i64::MAX, by_area.clone());
    let (most, heaviest) = (plain.total(), plain.heaviest());
    if most == 0 {
        return by_area;
    }
    let mean = areas.iter().sum::<i64>() / world as i64;
    // In i128: the area of 2^31 tokens times a thousand is more than an i64 holds.
    let slack = i128::from(mean) * i128::from(config.balance_slack) / 1000;
    let limit = heaviest.max(mean + slack as i64);
    let mut seed = deal(reaches, areas, world, limit);
    repair(areas, world, limit, &mut seed);
    let mut search = Search::new(reaches, areas, world, limit, seed);
    if search.heaviest() > limit || search.total() > most {
        search = Search::new(reaches, areas, world, limit, by_area.clone());
    }
    let weight: i64 = reaches.0.iter().map(|r| r.1).sum();
    let (per_rank, per_chunk, heat) = match config.effort {
        Effort::Thorough => (THOROUGH.0, THOROUGH.1, 2),
        _ => (FAST.0, FAST.1, 1),
    };
    search.anneal(
        heat * chunk * weight,
        per_rank * world as u64 + per_chunk * areas.len() as u64,
    );
    search.even_sends();
    if search.heaviest() <= limit && search.total() <= most {
        search.into_owners()
    } else {
        by_area
    }
}
