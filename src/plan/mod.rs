//! From a mask to what every rank stores, fetches and computes.
//!
//! Pure functions of the mask, the attention shape, the world size and the config: no collective, no clock, no
//! randomness, integer costs. Every rank derives the needs of all ranks from the placement, so the two ends of every
//! transfer agree without a message, and equal hashes mean equal plans.

mod assign;
mod balance;
mod cells;
mod chunks;
mod cost;
mod dice;
mod draw;
mod exact;
mod explain;
mod grid;
mod guests;
mod hash;
mod heap;
mod hierarchy;
mod hosts;
mod locality;
mod measured;
mod needs;
mod order;
mod pieces;
mod placement;
mod price;
mod reach;
mod search;
mod seed;
mod sends;
mod sequence;
mod side;
mod slices;
mod stage;
mod staging;
mod stats;
pub mod tiles;
mod timeline;
mod trace;
mod traffic;
mod transfer;
mod verify;
mod volume;
mod work;

pub use draw::{MeasuredPass, draw_key, draw_measured};
pub use explain::{Explanation, Origin, explain};
pub use guests::Guests;
pub use hosts::HostVolume;
pub use measured::{Measured, Travel, Wait};
pub use placement::Placement;
pub use side::{OwnedRun, SidePlacement};
pub use stage::{Pass, Stage};
pub use stats::Stats;
pub use timeline::{StageStats, StageTimes, Timeline};
pub use trace::{Traced, trace};
pub use verify::verify;
pub use volume::Volume;

use crate::types::{AttnShape, Config, Error, Mask, Result, Side, Status};
use cost::{Cost, Direction};
use guests::Schedule;
pub(crate) use hash::Hasher;
use needs::Needs;
use sequence::Sequence;
use staging::{Staging, check_degree};
use std::sync::Arc;
use work::Work;

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
    /// Stages of the backward pass; the same object when both passes have the same stages.
    pub backward: Arc<Pass>,
    /// The work of all ranks in the forward and in the backward pass, where queries travel.
    work: [Option<Arc<Work>>; 2],
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
    /// outside -1 to 8, or the shape is not valid; `Status::NotSupported` for queries that travel over a mesh; with
    /// `config.sanity_check`, `Status::Internal` when the plan does not cover the mask.
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
        let work = travelling(mask, &placement, shape, config)?;
        let [first, second] = passes(mask, shape, &placement, rank, config, &work)?;
        let stages = [(first.0, first.1), (second.0, second.1)];
        let plan = Plan {
            rank,
            world,
            hash: plan_hash(mask, shape, &placement, config, stages, &work),
            placement,
            forward: first.2,
            backward: second.2,
            work,
        };
        if config.sanity_check {
            verify(&plan, mask)?;
        }
        Ok(plan)
    }

    /// The ranks with which this one exchanges rows in either pass, ascending. Each of them has this one among its own.
    pub fn peers(&self) -> Vec<usize> {
        let stages = self.forward.stages.iter().chain(&self.backward.stages);
        let mut peers: Vec<usize> = stages.flat_map(Stage::pieces).map(|p| p.peer as usize).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }
}

/// The work of both passes where queries travel.
fn travelling(
    mask: &Mask,
    placement: &Placement,
    shape: &AttnShape,
    config: &Config,
) -> Result<[Option<Arc<Work>>; 2]> {
    if config.qo_comm && (config.hierarchical_comm || config.mesh.is_some()) {
        let message = "config.qo_comm and config.hierarchical_comm are both set; queries travel in one level only: set \
                       one of them to 0";
        return Err(Error::new(Status::NotSupported, message));
    }
    Ok(Work::both(mask, placement, shape, config))
}

/// A pass, the number of its remote stages, and when it computes the host stage.
type Staged = (i32, Sequence, Arc<Pass>);

/// Both passes of `rank`.
fn passes(
    mask: &Mask,
    shape: &AttnShape,
    placement: &Placement,
    rank: usize,
    config: &Config,
    work: &[Option<Arc<Work>>; 2],
) -> Result<[Staged; 2]> {
    check_degree("degree_forward", config.degree_forward)?;
    check_degree("degree_backward", config.degree_backward)?;
    let mut made = [Staged::default(), Staged::default()];
    if work.iter().any(Option::is_none) {
        made = key_passes(mask, shape, placement, rank, config)?;
    }
    let directions = [
        (Direction::Forward, config.degree_forward),
        (Direction::Backward, config.degree_backward),
    ];
    for (i, (direction, asked)) in directions.into_iter().enumerate() {
        if let Some(work) = &work[i] {
            let sequences = Sequence::choices(config, direction);
            let schedule = Schedule::of(work, &Cost::new(shape, config, direction), asked, sequences);
            let pass = guests::pass(mask, placement, rank, work, &schedule);
            made[i] = (schedule.degree, schedule.sequence, Arc::new(pass));
        }
    }
    Ok(made)
}

/// The same where only keys travel; one object when both have the same stages.
fn key_passes(
    mask: &Mask,
    shape: &AttnShape,
    placement: &Placement,
    rank: usize,
    config: &Config,
) -> Result<[Staged; 2]> {
    let needs = Needs::new(mask, placement, Some(rank));
    let stagings = Staging::both(mask, placement, &needs.remote, shape, config)?;
    let [first, second] = &stagings;
    let forward = Arc::new(Pass::new(placement, rank, &needs, first, config.mesh));
    let same_order = (second.degree, second.sequence) == (first.degree, first.sequence);
    let backward = if same_order && second.groups == first.groups {
        Arc::clone(&forward)
    } else {
        Arc::new(Pass::new(placement, rank, &needs, second, config.mesh))
    };
    Ok([
        (first.degree, first.sequence, forward),
        (second.degree, second.sequence, backward),
    ])
}

/// A pass's stages in the hash. The same degree asked for and chosen are two: chosen stages are made of pieces that were cut
/// before their number was known, so their sizes differ. An order is the same however it came about.
fn stages_word(asked: i32, (degree, sequence): (i32, Sequence)) -> i64 {
    i64::from(degree) + if asked == Config::AUTO_DEGREE { 256 } else { 0 } + 512 * sequence as i64
}

fn plan_hash(
    mask: &Mask,
    shape: &AttnShape,
    placement: &Placement,
    config: &Config,
    stages: [(i32, Sequence); 2],
    work: &[Option<Arc<Work>>; 2],
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
        stages_word(config.degree_forward, stages[0]),
        stages_word(config.degree_backward, stages[1]),
        i64::from(config.backward_high_precision_reduce),
        config.dsink_reduce as i64,
        config.mesh.map_or(0, |m| m.intra as i64),
        // Ranks that keep different numbers of keys would prepare at different times.
        config.cache_size as i64,
    ]);
    if config.qo_comm {
        h.words([
            i64::from(config.qo_comm),
            i64::from(config.forward_high_precision_reduce),
        ]);
        for work in work {
            h.word(i64::from(work.is_some()));
            if let Some(work) = work {
                work.hash(&mut h);
            }
        }
    }
    h.finish()
}
