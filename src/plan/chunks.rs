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
    /// Visible cells of each chunk's rows.
    pub areas: Vec<i64>,
}

impl Chunks {
    /// Chunks of the caller's size, or of one that the mask can be balanced with.
    pub fn new(mask: &Mask, world: usize, config: &Config) -> Result<Chunks> {
        check(config)?;
        if config.chunk_size > 0 {
            return Chunks::of_size(mask, config.chunk_size);
        }
        let total = mask.total_q();
        let ranks = world as i64;
        // Counting chunks a rank, not tokens a chunk: every rank then gets equally many.
        let mut each = config
            .min_chunks_per_rank
            .max(total.div_ceil_by(MOST_TOKENS * ranks))
            .min(SidePlacement::MAX_CHUNKS / ranks);
        loop {
            let even = total.div_ceil_by(each * ranks);
            let chunks = Chunks::of_size(mask, even.min(total / ranks).max(1))?;
            let heaviest = chunks.areas.iter().copied().max().unwrap_or(0);
            let quarter = chunks.areas.iter().sum::<i64>() / (4 * ranks);
            let most = SidePlacement::MAX_CHUNKS.min(total.div_ceil_by(LEAST_TOKENS));
            if world == 1 || heaviest <= quarter || 2 * chunks.areas.len() as i64 > most {
                return Ok(chunks);
            }
            each *= 2;
        }
    }

    fn of_size(mask: &Mask, size: i64) -> Result<Chunks> {
        let bounds = uniform_bounds(mask.total_q(), size)?;
        let areas = areas(mask, &bounds);
        Ok(Chunks { size, bounds, areas })
    }
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
