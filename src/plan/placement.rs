//! Which rank stores which queries and keys.

use super::balance::{assign, heaviest};
use super::chunks::Chunks;
use super::exact::exact;
use super::heap::top_heap;
use super::locality::assign_near;
use super::order::{blocks, by_document, zigzag};
use super::reach::{Owned, Reach, Reaches};
use super::side::{DivCeil, SidePlacement, check_world, share_bounds};
use crate::types::{Config, Effort, Error, Mask, PlacementKind, Result, Side};
use std::sync::Arc;

/// Tokens by weight, over all masks that are placed together: so many times the ranks, squared, still fit an i64, in
/// which the search counts what ranks send. 2,048 layers of the longest mask.
const MOST_WEIGHTED_TOKENS: i128 = 1 << 42;

/// Both sides' tokens spread over ranks. With equal totals one placement serves both sides.
///
/// Apart from masks: one placement can serve many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    q: Arc<SidePlacement>,
    k: Arc<SidePlacement>,
}

impl Placement {
    /// Places the tokens of `mask` on `world` ranks as `config` says: queries by the area of their rows and the keys
    /// that they see; keys with them when the totals are equal, else in contiguous shares that differ by at most one
    /// token.
    ///
    /// `Status::InvalidArgument` for a world size outside 1 to 1,024, for chunk settings out of range, and for
    /// `PlacementKind::Exact` with more than 16 chunks.
    pub fn new(mask: &Mask, world: usize, config: &Config) -> Result<Placement> {
        Placement::new_joint(&[(mask, 1)], world, config)
    }

    /// One placement for several masks with equal totals, say of the full and the window layers of one model: areas
    /// and received tokens count by weight, the number of layers that have the mask.
    ///
    /// Errors as `new`; also `Status::InvalidArgument` without masks, with different totals, with a weight below 1, and
    /// when the weighted areas come to more than 2^62 cells or the weights times the longer total to more than 2^42.
    pub fn new_joint(masks: &[(&Mask, i64)], world: usize, config: &Config) -> Result<Placement> {
        Placement::made(masks, world, config, 1)
    }

    /// As `new`, with the steps of the config's effort taken `times`: a yardstick of what the effort leaves. Only
    /// `PlacementKind::Balanced` searches by steps.
    ///
    /// Errors as `new`.
    pub fn new_longer(mask: &Mask, world: usize, config: &Config, times: u64) -> Result<Placement> {
        Placement::made(&[(mask, 1)], world, config, times)
    }

    fn made(masks: &[(&Mask, i64)], world: usize, config: &Config, times: u64) -> Result<Placement> {
        check_world(world)?;
        let (total_q, total_k) = check_masks(masks)?;
        let keys = if total_q == total_k {
            None
        } else {
            Some(SidePlacement::shares(total_k, world)?)
        };
        let mut chunks = chunks(masks, world, config)?;
        let owned = keys.as_ref().map_or(Owned::Chunks, Owned::Side);
        let owners = owners(masks, &mut chunks, owned, world, config, times)?;
        let q = Arc::new(SidePlacement::from_bounds(
            chunks.bounds,
            chunks.size,
            owners,
            world,
        )?);
        match keys {
            None => Ok(Placement::shared(q)),
            Some(k) => Placement::from_sides(q, Arc::new(k)),
        }
    }

    /// One placement for both sides, for masks whose totals both equal its total.
    pub fn shared(side: Arc<SidePlacement>) -> Placement {
        Placement {
            k: Arc::clone(&side),
            q: side,
        }
    }

    /// A placement for each side. `Status::InvalidArgument` when their world sizes differ, or when the totals are
    /// equal and the placements are not: equal totals share one placement.
    pub fn from_sides(q: Arc<SidePlacement>, k: Arc<SidePlacement>) -> Result<Placement> {
        if q.world() != k.world() {
            let message = format!(
                "queries are placed on {} ranks and keys on {}",
                q.world(),
                k.world()
            );
            return Err(Error::argument(message));
        }
        if q.total() != k.total() {
            return Ok(Placement { q, k });
        }
        if q == k {
            return Ok(Placement::shared(q));
        }
        let message = format!(
            "{} queries and as many keys need one placement, not two",
            q.total()
        );
        Err(Error::argument(message))
    }

    /// The placement of one side's tokens.
    pub fn side(&self, side: Side) -> &SidePlacement {
        match side {
            Side::Q => &self.q,
            Side::K => &self.k,
        }
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.q.world()
    }

    /// `Status::InvalidArgument` unless the totals are those of `mask`.
    pub(super) fn check_mask(&self, mask: &Mask) -> Result<()> {
        for (name, placed, total) in [
            ("total_q", self.q.total(), mask.total_q()),
            ("total_k", self.k.total(), mask.total_k()),
        ] {
            if placed != total {
                let message =
                    format!("the placement has {name} {placed} and the mask {total}; they must be equal");
                return Err(Error::argument(message));
            }
        }
        Ok(())
    }
}

/// The chunks that a kind of placement deals: its own blocks where the caller names no size and it needs no others.
fn chunks(masks: &[(&Mask, i64)], world: usize, config: &Config) -> Result<Chunks> {
    let blocks = match config.placement {
        PlacementKind::Sequential => 1,
        PlacementKind::Zigzag => 2,
        _ => 0,
    };
    if blocks == 0 || config.chunk_size > 0 {
        return Chunks::new(masks, world, config);
    }
    let total = masks.first().map_or(0, |m| m.0.total_q());
    let pieces = blocks * world as i64;
    let bounds = share_bounds(total, pieces);
    Ok(Chunks::between(masks, bounds, total.div_ceil_by(pieces).max(1)))
}

/// By area alone, on chunks that this comes within a hundredth of even with where the planner may choose them; then near
/// the keys.
fn balanced(
    masks: &[(&Mask, i64)],
    chunks: &mut Chunks,
    owned: Owned,
    world: usize,
    config: &Config,
    times: u64,
) -> Result<Vec<u32>> {
    let mut by_area = assign(&chunks.areas, world);
    while uneven(&chunks.areas, &by_area, world) {
        let Some(finer) = chunks.finer(masks, world)? else {
            break;
        };
        *chunks = finer;
        by_area = assign(&chunks.areas, world);
    }
    if config.effort == Effort::Balance || chunks.areas.len() <= world || world == 1 {
        return Ok(by_area);
    }
    let reaches = reaches(masks, chunks, owned);
    Ok(assign_near(&reaches, chunks, world, by_area, config, times))
}

/// Whether a rank has more than a hundredth above the mean.
fn uneven(areas: &[i64], owners: &[u32], world: usize) -> bool {
    let mean = areas.iter().sum::<i64>() / world as i64;
    heaviest(areas, owners, world) > mean + mean / 100
}

fn reaches<'a>(masks: &[(&Mask, i64)], chunks: &'a Chunks, owned: Owned<'a>) -> Reaches<'a> {
    let of = |&(mask, weight): &(&Mask, i64)| (Reach::new(mask, &chunks.bounds, owned), weight);
    Reaches(masks.iter().map(of).collect())
}

fn owners(
    masks: &[(&Mask, i64)],
    chunks: &mut Chunks,
    owned: Owned,
    world: usize,
    config: &Config,
    times: u64,
) -> Result<Vec<u32>> {
    let count = chunks.areas.len();
    let reaches = || reaches(masks, chunks, owned);
    Ok(match config.placement {
        PlacementKind::Balanced => return balanced(masks, chunks, owned, world, config, times),
        PlacementKind::Sequential => blocks(count, world),
        PlacementKind::Zigzag => zigzag(count, world),
        PlacementKind::ByDocument => by_document(&reaches(), &chunks.areas, world),
        PlacementKind::TopHeap => top_heap(&reaches(), &chunks.areas, world, config.top_percent),
        PlacementKind::Exact => {
            let alike = matches!(owned, Owned::Chunks);
            exact(&reaches(), &chunks.areas, world, alike)?
        }
    })
}

/// The totals that all masks have.
fn check_masks(masks: &[(&Mask, i64)]) -> Result<(i64, i64)> {
    let Some((first, _)) = masks.first() else {
        return Err(Error::argument("masks is empty; a placement needs at least one"));
    };
    let totals = (first.total_q(), first.total_k());
    let (mut area, mut sum) = (0i128, 0i128);
    for (i, (mask, weight)) in masks.iter().enumerate() {
        if (mask.total_q(), mask.total_k()) != totals {
            let message = format!(
                "masks[{i}] has totals {} and {}; they must be those of masks[0], {} and {}",
                mask.total_q(),
                mask.total_k(),
                totals.0,
                totals.1
            );
            return Err(Error::argument(message));
        }
        if *weight < 1 {
            return Err(Error::argument(format!(
                "the weight of masks[{i}] is {weight}; it must be at least 1"
            )));
        }
        area += i128::from(mask.area()) * i128::from(*weight);
        sum += i128::from(*weight);
    }
    if area > 1 << 62 {
        return Err(Error::argument(format!(
            "the weighted areas come to {area} cells; there can be at most 2^62, which the longest mask has"
        )));
    }
    let longer = totals.0.max(totals.1);
    if sum * i128::from(longer) > MOST_WEIGHTED_TOKENS {
        return Err(Error::argument(format!(
            "the weights come to {sum}, which times {longer} tokens is more than 2^42"
        )));
    }
    Ok(totals)
}
