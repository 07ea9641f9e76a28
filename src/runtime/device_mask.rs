//! What a mask handle keeps on CUDA devices: its tiles for each kernel and shape that it was used with.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::backend::cuda::attention::Attention;
use crate::backend::cuda::backward::BackwardKernels;
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::backward_tiles::BackwardTiles;
use crate::backend::cuda::forward::{self, ForwardTiles};
use crate::backend::cuda::forward_kernel::{ForwardChoice, ForwardKernel};
use crate::backend::cuda::pieces;
use crate::backend::cuda::textbook::Textbook;
use crate::backend::cuda::textbook_params::tile_shape;
use crate::backend::cuda::tile_lists::DeviceTiles;
use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::plan::tiles::{StageRows, key_tiles, query_tiles};
use crate::types::{AttnShape, DType, Error, Mask, Result, Slice, StageSlice, Status, TileShape};

/// What tiles were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Purpose<C> {
    ordinal: i32,
    shape: AttnShape,
    /// What the call asked for; the kernel may be more general when tiles are packed or cut.
    asked: C,
}

/// Tiles by what they were made for.
type Made<C, T> = Mutex<Vec<(Purpose<C>, Arc<T>)>>;

/// Query and key tiles for the textbook kernels of a device.
#[derive(Debug)]
struct TextbookTiles {
    ordinal: i32,
    shape: TileShape,
    queries: Arc<DeviceTiles>,
    keys: Arc<DeviceTiles>,
}

/// Tiles of one mask on devices, made at the first use and kept.
#[derive(Debug, Default)]
pub struct DeviceMask {
    forward: Made<ForwardChoice, ForwardTiles>,
    backward: Made<BackwardChoice, BackwardTiles>,
    textbook: Mutex<Vec<TextbookTiles>>,
}

/// Fails while `on` is being captured: what is missing cannot be made then.
pub(super) fn expect_prepared(gpu: &Gpu, on: Stream) -> Result<()> {
    if !stream::is_capturing(gpu, on)? {
        return Ok(());
    }
    let message = "the stream is being captured and this mask is not prepared for the call; call \
                   magi_flex_flash_attn_forward_prepare or _backward_prepare with the same arguments before";
    Err(Error::new(Status::NotSupported, message))
}

/// The mask as one stage, and its rows.
fn stage(mask: &Mask) -> (Vec<StageSlice>, StageRows) {
    let local = |slice: &Slice| StageSlice {
        slice: *slice,
        source: 0,
    };
    let rows = StageRows {
        q: mask.total_q(),
        k: [mask.total_k(), 0],
    };
    (mask.slices().iter().map(local).collect(), rows)
}

/// The tiles in `made`, or those that `make` makes now, unless `on` is being captured.
fn find_or_make<C: Copy + PartialEq, T>(
    made: &Made<C, T>,
    (gpu, shape, asked): (&Arc<Gpu>, &AttnShape, C),
    on: Stream,
    make: impl FnOnce() -> Result<T>,
) -> Result<Arc<T>> {
    let purpose = Purpose {
        ordinal: gpu.ordinal(),
        shape: *shape,
        asked,
    };
    let mut made = made.lock();
    if let Some((_, tiles)) = made.iter().find(|(p, _)| *p == purpose) {
        return Ok(tiles.clone());
    }
    expect_prepared(gpu, on)?;
    let tiles = Arc::new(make()?);
    made.push((purpose, tiles.clone()));
    Ok(tiles)
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
        find_or_make(&self.forward, (gpu, shape, asked), on, || {
            make_forward(mask, gpu, shape, asked)
        })
    }

    /// The same for gradients.
    pub fn backward(
        &self,
        mask: &Mask,
        gpu: &Arc<Gpu>,
        shape: &AttnShape,
        asked: BackwardChoice,
        on: Stream,
    ) -> Result<Arc<BackwardTiles>> {
        find_or_make(&self.backward, (gpu, shape, asked), on, || {
            make_backward(mask, gpu, shape, asked)
        })
    }

    /// What the textbook kernels walk, and those kernels. The first call for a device and tile shape plans and uploads, as
    /// `forward` does.
    pub fn textbook(&self, mask: &Mask, gpu: &Arc<Gpu>, dtype: DType, on: Stream) -> Result<Attention> {
        let shape = tile_shape(dtype);
        let mut made = self.textbook.lock();
        let here = |t: &&TextbookTiles| t.ordinal == gpu.ordinal() && t.shape == shape;
        if made.iter().find(here).is_none() {
            expect_prepared(gpu, on)?;
            let (slices, rows) = stage(mask);
            made.push(TextbookTiles {
                ordinal: gpu.ordinal(),
                shape,
                queries: Arc::new(DeviceTiles::upload(gpu, &query_tiles(&slices, &rows, &shape)?)?),
                keys: Arc::new(DeviceTiles::upload(gpu, &key_tiles(&slices, &rows, &shape)?)?),
            });
        }
        let found = made.iter().find(here);
        let found = found.ok_or_else(|| Error::internal("tiles that were just made are not there"))?;
        Ok(Attention {
            textbook: Textbook::load(gpu)?,
            queries: found.queries.clone(),
            keys: found.keys.clone(),
        })
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
    let (slices, rows) = stage(mask);
    let mut kernel = ForwardKernel::load(gpu, asked)?;
    let processors = i64::from(gpu.properties().multiprocessors);
    loop {
        // The general form may have other tiles.
        let pack = forward::pack(shape, mask.total_q(), i64::from(kernel.block_q));
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

/// Plans the tiles of `mask` that the kernels of `asked` walk.
fn make_backward(
    mask: &Mask,
    gpu: &Arc<Gpu>,
    shape: &AttnShape,
    asked: BackwardChoice,
) -> Result<BackwardTiles> {
    let (slices, rows) = stage(mask);
    let kernels = BackwardKernels::load(gpu, asked)?;
    let keys = key_tiles(&slices, &rows, &kernels.keys.tile())?;
    let queries = kernels.queries.as_ref();
    let queries = queries
        .map(|k| query_tiles(&slices, &rows, &k.tile()))
        .transpose()?;
    BackwardTiles::new(gpu, kernels, shape, &keys, queries.as_ref())
}
