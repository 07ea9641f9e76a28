//! How many remote stages a pass has, and what each rank fetches in them.

use super::cost::{Cost, Direction};
use super::pieces::Pieces;
use super::placement::Placement;
use super::sequence::Sequence;
use super::timeline::{StageStats, Timeline};
use crate::types::{AttnShape, Config, Error, Mask, Ranges, Result};
use std::sync::Arc;

/// The remote stages of all ranks in one direction.
#[derive(Debug)]
pub(super) struct Staging {
    /// Remote stages, on every rank equally many; 0 fetches everything at once.
    pub degree: i32,
    /// When the host stage is computed; of no effect with degree 0.
    pub sequence: Sequence,
    /// `[rank][stage]`: the keys fetched, one stage with degree 0.
    pub groups: Vec<Vec<Ranges>>,
    cost: Cost,
    pieces: Option<Arc<Pieces>>,
}

impl Staging {
    /// The forward and the backward stages of `remote`, what each rank fetches.
    ///
    /// `Status::InvalidArgument` for a degree outside 0 to 8 that is not `Config::AUTO_DEGREE`.
    pub fn both(
        mask: &Mask,
        placement: &Placement,
        remote: &[Ranges],
        shape: &AttnShape,
        config: &Config,
    ) -> Result<[Staging; 2]> {
        check_degree("degree_forward", config.degree_forward)?;
        check_degree("degree_backward", config.degree_backward)?;
        let mut made: Option<(i32, Arc<Pieces>)> = None;
        Ok([
            (Direction::Forward, config.degree_forward),
            (Direction::Backward, config.degree_backward),
        ]
        .map(|(direction, asked)| {
            let cost = Cost::new(shape, config, direction);
            let sequences = Sequence::choices(config, direction);
            let settled = asked == 0 || sequences.len() == 1 || remote.iter().all(Ranges::is_empty);
            // One stage or none fetches everything together, so nothing need be cut.
            if settled && (asked == 0 || asked == 1) {
                return Staging {
                    degree: asked,
                    sequence: if asked == 0 { Sequence::First } else { sequences[0] },
                    groups: remote.iter().map(|keys| vec![keys.clone()]).collect(),
                    cost,
                    pieces: None,
                };
            }
            let pieces = match &made {
                Some((degree, pieces)) if *degree == asked => Arc::clone(pieces),
                _ => Arc::new(Pieces::new(mask, placement, remote, asked)),
            };
            made = Some((asked, Arc::clone(&pieces)));
            let degrees = match asked {
                Config::AUTO_DEGREE => 0..=Config::MAX_DEGREE,
                degree => degree..=degree,
            };
            let (degree, sequence) = pieces.best(degrees, sequences, &cost);
            Staging {
                degree,
                sequence,
                groups: pieces.groups(degree),
                cost,
                pieces: Some(pieces),
            }
        }))
    }

    /// Every stage of every rank in both directions, but for what is sent.
    pub fn timelines(
        both: &[Staging; 2],
        mask: &Mask,
        placement: &Placement,
        remote: &[Ranges],
    ) -> [Timeline; 2] {
        let mut uncut: Option<Pieces> = None;
        both.each_ref().map(|staging| {
            let pieces = match &staging.pieces {
                Some(pieces) => pieces.as_ref(),
                None => uncut.get_or_insert_with(|| Pieces::new(mask, placement, remote, 1)),
            };
            staging.timeline(pieces, remote.len())
        })
    }

    /// Stages before the first that fetches.
    pub fn before(&self) -> usize {
        if self.degree == 0 {
            0
        } else {
            self.sequence.before()
        }
    }

    fn timeline(&self, pieces: &Pieces, world: usize) -> Timeline {
        let count = if self.degree == 0 {
            1
        } else {
            self.sequence.stages(self.degree as usize)
        };
        let mut stages = vec![Vec::with_capacity(world); count];
        for rank in 0..world {
            let own = pieces.stages(rank, self.degree, self.sequence, &self.cost);
            for (stage, (load, times)) in stages.iter_mut().zip(own) {
                stage.push(StageStats {
                    area: load.area,
                    received: load.tokens,
                    times,
                    ..StageStats::default()
                });
            }
        }
        Timeline { stages }
    }
}

/// The stages' number must fit the schedule; names the config field that does not.
pub(super) fn check_degree(name: &str, degree: i32) -> Result<()> {
    if degree == Config::AUTO_DEGREE || (0..=Config::MAX_DEGREE).contains(&degree) {
        return Ok(());
    }
    let most = Config::MAX_DEGREE;
    Err(Error::argument(format!(
        "{name} is {degree}; it must be -1 (the planner chooses) or 0 to {most}"
    )))
}
