//! What a mask handle keeps on CUDA devices: its tiles for each kernel and shape that it was used with.

use std::sync::{Arc, OnceLock};

use super::device_tiles::{Cells, MadeTiles};
use crate::backend::cuda::attention::Attention;
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::backward_tiles::BackwardTiles;
use crate::backend::cuda::forward::ForwardTiles;
use crate::backend::cuda::forward_kernel::ForwardChoice;
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::plan::tiles::StageRows;
use crate::types::{AttnShape, DType, Mask, Result, Slice, StageSlice};

/// Tiles of one mask on devices, made at the first use and kept.
#[derive(Debug, Default)]
pub struct DeviceMask {
    tiles: MadeTiles,
    area: OnceLock<i64>,
}

/// The mask as one stage.
fn cells(mask: &Mask) -> Cells {
    let local = |slice: &Slice| StageSlice {
        slice: *slice,
        source: 0,
    };
    Cells {
        slices: mask.slices().iter().map(local).collect(),
        rows: StageRows {
            q: mask.total_q(),
            k: [mask.total_k(), 0],
        },
        skip_idle: false,
        piece_bytes: usize::MAX,
    }
}

impl DeviceMask {
    /// Keys that a query sees on average, rounded up; counted at the first use.
    pub fn keys_a_query(&self, mask: &Mask) -> i64 {
        let area = *self.area.get_or_init(|| mask.area());
        (area as u64).div_ceil(mask.total_q().max(1) as u64) as i64
    }

    /// As `MadeTiles::forward`.
    pub fn forward(
        &self,
        mask: &Mask,
        gpu: &Arc<Gpu>,
        shape: &AttnShape,
        asked: ForwardChoice,
        on: Stream,
    ) -> Result<Arc<ForwardTiles>> {
        self.tiles.forward(|| cells(mask), (gpu, shape), asked, on)
    }

    /// As `MadeTiles::backward`.
    pub fn backward(
        &self,
        mask: &Mask,
        gpu: &Arc<Gpu>,
        shape: &AttnShape,
        asked: BackwardChoice,
        on: Stream,
    ) -> Result<Arc<BackwardTiles>> {
        self.tiles.backward(|| cells(mask), (gpu, shape), asked, on)
    }

    /// As `MadeTiles::textbook`.
    pub fn textbook(&self, mask: &Mask, gpu: &Arc<Gpu>, dtype: DType, on: Stream) -> Result<Attention> {
        self.tiles.textbook(|| cells(mask), gpu, dtype, on)
    }
}
