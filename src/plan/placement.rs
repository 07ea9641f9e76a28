//! Which rank stores which queries and keys.

use super::balance::assign;
use super::chunks::Chunks;
use super::side::{SidePlacement, check_world};
use crate::types::{Config, Error, Mask, PlacementKind, Result, Side};
use std::sync::Arc;

/// Both sides' tokens spread over ranks. With equal totals one placement serves both sides.
///
/// Apart from masks: one placement can serve many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    q: Arc<SidePlacement>,
    k: Arc<SidePlacement>,
}

impl Placement {
    /// Places the tokens of `mask` on `world` ranks as `config` says: queries by the area of their rows; keys with
    /// them when the totals are equal, else in contiguous shares that differ by at most one token.
    ///
    /// `Status::InvalidArgument` for a world size outside 1 to 1,024 and for chunk settings out of range.
    pub fn new(mask: &Mask, world: usize, config: &Config) -> Result<Placement> {
        check_world(world)?;
        let q = match (config.placement, config.chunk_size) {
            (PlacementKind::Sequential, 0) => SidePlacement::shares(mask.total_q(), world)?,
            (kind, _) => {
                let chunks = Chunks::new(mask, world, config)?;
                let owners = match kind {
                    PlacementKind::Balanced => assign(&chunks.areas, world),
                    PlacementKind::Sequential => blocks(chunks.areas.len(), world),
                };
                SidePlacement::from_bounds(chunks.bounds, chunks.size, owners, world)?
            }
        };
        if mask.total_q() == mask.total_k() {
            return Ok(Placement::shared(Arc::new(q)));
        }
        let k = SidePlacement::shares(mask.total_k(), world)?;
        Placement::from_sides(Arc::new(q), Arc::new(k))
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

/// Contiguous blocks of chunks; the first ranks have one more where they do not divide evenly.
fn blocks(chunks: usize, world: usize) -> Vec<u32> {
    let (base, extra) = (chunks / world, chunks % world);
    (0..world)
        .flat_map(|r| std::iter::repeat_n(r as u32, base + usize::from(r < extra)))
        .collect()
}
