//! What a mask handle keeps on CUDA devices: its tiles for each kernel and shape that it was used with.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::cuda::forward::{self, ForwardTiles};
use crate::backend::cuda::forward_kernel::{ForwardChoice, ForwardKernel};
use crate::backend::cuda::pieces;
use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::plan::tiles::{StageRows, query_tiles};
use crate::types::{AttnShape, Error, Mask, Result, StageSlice, Status, TileShape};

/// What tiles were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Purpose {
    ordinal: i32,
    shape: AttnShape,
    /// What the call asked for; the kernel may be more general when tiles are packed or cut.
    asked: ForwardChoice,
}

/// Tiles of one mask on devices, made at the first use and kept.
#[derive(Debug, Default)]
pub struct DeviceMask {
    made: Mutex<Vec<(Purpose, Arc<ForwardTiles>)>>,
}

impl DeviceMask {
    /// Tiles for a call. The first call for a purpose plans, uploads and may compile, unless `on` is being captured: then
    /// it fails, having touched nothing.
    pub fn forward(
        &self,
        mask: &Mask,
        gpu: &Arc<Gpu>,
        shape: &AttnShape,
        asked: ForwardChoice,
        on: Stream,
    ) -> Result<Arc<ForwardTiles>> {
        let purpose = Purpose {
            ordinal: gpu.ordinal(),
            shape: *shape,
            asked,
        };
        let mut made = self.made.lock();
        if let Some((_, tiles)) = made.iter().find(|(p, _)| *p == purpose) {
            return Ok(tiles.clone());
        }
        if stream::is_capturing(gpu, on)? {
            let message = "the stream is being captured and this mask is not prepared for the call; call \
                           magi_flex_flash_attn_forward_prepare with the same arguments before";
            return Err(Error::new(Status::NotSupported, message));
        }
        let tiles = Arc::new(make_forward(mask, gpu, shape, asked)?);
        made.push((purpose, tiles.clone()));
        Ok(tiles)
    }
}

/// Plans the tiles of `mask` for the kernel that `asked` names, or for its general form where heads are packed or tiles
/// are cut.
fn make_forward(
    mask: &Mask,
    gpu: &Arc<Gpu>,
    shape: &AttnShape,
    asked: ForwardChoice,
) -> Result<ForwardTiles> {
    let slices: Vec<StageSlice> = mask
        .slices()
        .iter()
        .map(|slice| StageSlice {
            slice: *slice,
            source: 0,
        })
        .collect();
    let rows = StageRows {
        q: mask.total_q(),
        k: [mask.total_k(), 0],
    };
    let mut kernel = ForwardKernel::load(gpu, asked)?;
    let pack = forward::pack(shape, mask.total_q(), i64::from(kernel.block_q));
    let processors = i64::from(gpu.properties().multiprocessors);
    loop {
        let tile = TileShape::new(kernel.block_q / pack as i32, kernel.block_k);
        let list = query_tiles(&slices, &rows, &tile)?;
        let limit = forward::may_cut(&kernel, mask.total_k())
            .then(|| pieces::limit(&list, shape.heads_q / pack, processors))
            .flatten();
        if kernel.choice.general || (pack == 1 && limit.is_none()) {
            return ForwardTiles::new(gpu, kernel, shape, &list, pack, limit);
        }
        kernel = ForwardKernel::load(
            gpu,
            ForwardChoice {
                general: true,
                ..asked
            },
        )?;
    }
}
