//! What a mask handle keeps on CUDA devices: its tiles for each kernel and shape that it was used with.

use std::sync::Arc;

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
pub struct DeviceMask(MadeTiles);

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
    /// As `MadeTiles::forward`.
    pub fn forward(
        &self,
        mask: &Mask,
        gpu: &Arc<Gpu>,
        shape: &AttnShape,
        asked: ForwardChoice,
        on: Stream,
    ) -> Result<Arc<ForwardTiles>> {
        self.0.forward(|| cells(mask), (gpu, shape), asked, on)
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
        self.0.backward(|| cells(mask), (gpu, shape), asked, on)
    }

    /// As `MadeTiles::textbook`.
    pub fn textbook(&self, mask: &Mask, gpu: &Arc<Gpu>, dtype: DType, on: Stream) -> Result<Attention> {
        self.0.textbook(|| cells(mask), gpu, dtype, on)
    }
}
