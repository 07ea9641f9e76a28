//! From a mask to what every rank stores, fetches and computes.
//!
//! Pure functions of the mask, the attention shape, the world size and the config: no collective, no clock, no
//! randomness, integer costs. Every rank derives the needs of all ranks from the placement, so the two ends of every
//! transfer agree without a message, and equal hashes mean equal plans.

mod balance;
mod cells;
mod chunks;
mod cost;
mod dice;
mod draw;
mod exact;
mod explain;
mod hash;
mod heap;
mod hierarchy;
mod hosts;
mod locality;
mod needs;
mod order;
mod pieces;
mod placement;
mod reach;
mod search;
mod seed;
mod side;
mod slices;
mod stage;
mod staging;
mod stats;
pub mod tiles;
mod timeline;
mod traffic;
mod transfer;
mod verify;

pub use draw::draw_key;
pub use explain::{Explanation, Origin, explain};
pub use hosts::HostVolume;
pub use placement::Placement;
pub use side::{OwnedRun, SidePlacement};
pub use stage::{Pass, Stage};
pub use stats::Stats;
pub use timeline::{StageStats, StageTimes, Timeline};
pub use verify::verify;

use crate::types::{AttnShape, Config, Error, Mask, Result, Side};
use hash::Hasher;
use needs::Needs;
use staging::Staging;
use std::sync::Arc;

/// What one rank does for one mask. Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The rank it is for.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Who stores which tokens.
    pub placement: Arc<Placement>,
    /// Stages of the forward pass.
    pub forward: Arc<Pass>,
    /// Stages of the backward pass; the same object when both passes have the same degree.
    pub backward: Arc<Pass>,
    /// Equal on two ranks when mask, shape, world, placement and the config fields that shape the plan and its
    /// messages are equal; on any machine.
    pub hash: u64,
}

impl Plan {
    /// Places the mask's tokens and plans for `rank`.
    ///
    /// Errors: those of `Placement::new` and `Plan::with_placement`.
    pub fn new(mask: &Mask, shape: &AttnShape, world: usize, rank: usize, config: &Config) -> Result<Plan> {
        let placement = Placement::new(mask, world, config)?;
        Plan::with_placement(mask, shape, Arc::new(placement), rank, config)
    }

    /// Plans for `rank` on a placement that may have been made for another mask with the same totals.
    ///
    /// `Status::InvalidArgument` when totals differ, `rank` is not below the placement's world size, a degree is
    /// outside -1 to 8, or the shape is not valid; with `config.sanity_check`, `Status::Internal` when the plan does
    /// not cover the mask.
    pub fn with_placement(
        mask: &Mask,
        shape: &AttnShape,
        placement: Arc<Placement>,
        rank: usize,
        config: &Config,
    ) -> Result<Plan> {
        shape.validate()?;
        placement.check_mask(mask)?;
        let world = placement.world();
        if rank >= world {
            return Err(Error::argument(format!(
                "rank is {rank}; it must be below the world size {world}"
            )));
        }
        let needs = Needs::new(mask, &placement, Some(rank));
        let stagings = Staging::both(mask, &placement, &needs.remote, shape, config)?;
        let [first, second] = &stagings;
        let forward = Arc::new(Pass::new(&placement, rank, &needs, first, config.mesh));
        let backward = if second.groups == first.groups && second.degree == first.degree {
            Arc::clone(&forward)
        } else {
            Arc::new(Pass::new(&placement, rank, &needs, second, config.mesh))
        };
        let plan = Plan {
            rank,
            world,
            hash: plan_hash(mask, shape, &placement, config, [first.degree, second.degree]),
            placement,
            forward,
            backward,
        };
        if config.sanity_check {
            verify(&plan, mask)?;
        }
        Ok(plan)
    }
}

fn plan_hash(
    mask: &Mask,
    shape: &AttnShape,
    placement: &Placement,
    config: &Config,
    degrees: [i32; 2],
) -> u64 {
    let mut h = Hasher::new();
    h.mask(mask);
    h.words([
        shape.heads_q,
        shape.heads_kv,
        shape.head_dim,
        shape.head_dim_v,
        shape.dtype as i64,
    ]);
    for side in [Side::Q, Side::K] {
        h.word(placement.side(side).hash() as i64);
    }
    h.words([
        placement.world() as i64,
        i64::from(degrees[0]),
        i64::from(degrees[1]),
        i64::from(config.backward_high_precision_reduce),
        config.dsink_reduce as i64,
        config.mesh.map_or(0, |m| m.intra as i64),
        // Ranks that keep different numbers of keys would prepare at different times.
        config.cache_size as i64,
    ]);
    h.finish()
}
