//! What a key keeps on a CUDA device: tiles of every stage's slices.

use super::device_tiles::{Cells, MadeTiles};
use super::workspace::Dims;
use crate::plan::tiles::StageRows;
use crate::plan::{Pass, Stage};

/// Whose queries are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// This rank's.
    Own,
    /// Those of other ranks that came to keys here.
    Guests,
}

/// Tiles of one stage.
#[derive(Debug, Default)]
struct StageTiles {
    own: MadeTiles,
    guests: MadeTiles,
}

/// Tiles of the stages of a pass, made when they are asked for and kept.
#[derive(Debug)]
pub(super) struct PassTiles(Vec<StageTiles>);

impl PassTiles {
    /// None yet.
    pub fn new(pass: &Pass) -> PassTiles {
        PassTiles(pass.stages.iter().map(|_| StageTiles::default()).collect())
    }

    /// Drops them.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Those of a part of stage `i`, which the pass has.
    pub fn of(&self, i: usize, part: Part) -> &MadeTiles {
        match part {
            Part::Own => &self.0[i].own,
            Part::Guests => &self.0[i].guests,
        }
    }
}

/// The slices of a part of a stage and the tensors that they speak of. With `skip_idle` rows that see nothing are left
/// alone.
pub(super) fn cells(dims: &Dims, stage: &Stage, part: Part, skip_idle: bool, piece_bytes: usize) -> Cells {
    let (slices, tokens_q) = match part {
        Part::Own => (&stage.slices, dims.tokens_q),
        Part::Guests => (&stage.guests.slices, stage.guests.transfer.recv_rows),
    };
    Cells {
        slices: slices.clone(),
        rows: StageRows {
            q: tokens_q,
            k: [dims.tokens_k, stage.transfer.recv_rows],
        },
        skip_idle,
        piece_bytes,
    }
}
