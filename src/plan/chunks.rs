//! How long chunks are, and how much work each of them holds.

use super::side::{DivCeil, SidePlacement, uniform_bounds};
use crate::types::{Config, Error, Mask, Range, Result};

/// Chunks are never chosen longer than this: 16 query tiles, long enough for transfers to be large.
const MOST_TOKENS: i64 = 2048;
/// Nor halved below this, one query tile.
const LEAST_TOKENS: i64 = 128;

/// The query side cut into chunks.
#[derive(Clone, Debug)]
pub(super) struct Chunks {
    /// Tokens of every chunk but the last, which may be short.
    pub size: i64,
    /// Where chunks begin, and the total.
    pub bounds: Vec<i64>,
    /// Visible cells of each chunk's rows, over masks by weight.
    pub areas: Vec<i64>,
    /// Chunks of each rank, where the planner chose the size.
    each: Option<i64>,
}

impl Chunks {
    /// Chunks of the caller's size, or of one that the mask can be balanced with.
    pub fn new(masks: &[(&Mask, i64)], world: usize, config: &Config) -> Result<Chunks> {
        check(config)?;
        if config.chunk_size > 0 {
            return Chunks::of_size(masks, config.chunk_size);
        }
        let total = total_q(masks);
        let ranks = world as i64;
        // Counting chunks a rank, not tokens a chunk: every rank then gets equally many.
        let each = config
            .min_chunks_per_rank
            .max(total.div_ceil_by(MOST_TOKENS * ranks))
            .min(SidePlacement::MAX_CHUNKS / ranks);
        let mut chunks = Chunks::for_ranks(masks, ranks, each)?;
        loop {
            let heaviest = chunks.areas.iter().copied().max().unwrap_or(0);
            let quarter = chunks.areas.iter().sum::<i64>() / (4 * ranks);
            match chunks.finer(masks, world)? {
                Some(finer) if heaviest > quarter => chunks = finer,
                _ => return Ok(chunks),
            }
        }
    }

    /// Chunks of half the size; none where the caller chose it, for one rank, and where they would be too short.
    pub fn finer(&self, masks: &[(&Mask, i64)], world: usize) -> Result<Option<Chunks>> {
        let most = SidePlacement::MAX_CHUNKS.min(total_q(masks).div_ceil_by(LEAST_TOKENS));
        match self.each {
            Some(each) if world > 1 && 2 * self.areas.len() as i64 <= most => {
                Chunks::for_ranks(masks, world as i64, 2 * each).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn for_ranks(masks: &[(&Mask, i64)], ranks: i64, each: i64) -> Result<Chunks> {
        let total = total_q(masks);
        let even = total.div_ceil_by(each * ranks);
        let chunks = Chunks::of_size(masks, even.min(total / ranks).max(1))?;
        Ok(Chunks {
            each: Some(each),
            ..chunks
        })
    }

    fn of_size(masks: &[(&Mask, i64)], size: i64) -> Result<Chunks> {
        Ok(Chunks::between(
            masks,
            uniform_bounds(total_q(masks), size)?,
            size,
        ))
    }

    /// Chunks that begin and end at `bounds`, none longer than `size`.
    pub fn between(masks: &[(&Mask, i64)], bounds: Vec<i64>, size: i64) -> Chunks {
        let mut sums = vec![0; bounds.len() - 1];
        for (mask, weight) in masks {
            for (sum, area) in sums.iter_mut().zip(areas(mask, &bounds)) {
                *sum += weight * area;
            }
        }
        Chunks {
            size,
            bounds,
            areas: sums,
            each: None,
        }
    }
}

/// Masks that are placed together have equal totals.
fn total_q(masks: &[(&Mask, i64)]) -> i64 {
    masks.first().map_or(0, |m| m.0.total_q())
}

fn check(config: &Config) -> Result<()> {
    for (name, value, least) in [
        ("chunk_size", config.chunk_size, 0),
        ("min_chunks_per_rank", config.min_chunks_per_rank, 1),
    ] {
        if value < least {
            return Err(Error::argument(format!(
                "{name} is {value}; it must be at least {least}"
            )));
        }
    }
    Ok(())
}

/// Visible cells of the rows `[bounds[i], bounds[i + 1])`, for every i. O(slices log chunks + pairs that meet).
pub(super) fn areas(mask: &Mask, bounds: &[i64]) -> Vec<i64> {
    let mut areas = vec![0; bounds.len() - 1];
    for slice in mask.slices() {
        let rows = slice.visible_rows();
        if rows.is_empty() {
            continue;
        }
        let first = bounds.partition_point(|&b| b <= rows.start) - 1;
        for (i, area) in areas.iter_mut().enumerate().skip(first) {
            if bounds[i] >= rows.end {
                break;
            }
            *area += slice.cut(&Range::new(bounds[i], bounds[i + 1]), &slice.k).area();
        }
    }
    areas
}
