//! Tiles on CUDA devices, for each kernel and shape that slices were used with.

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
use crate::types::{AttnShape, DType, Error, Result, StageSlice, Status, TileList, TileShape};

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

/// Slices, and the tensors that they speak of.
#[derive(Debug)]
pub(super) struct Cells {
    /// What is computed.
    pub slices: Vec<StageSlice>,
    /// Rows of the tensors.
    pub rows: StageRows,
    /// Rows that see nothing have nothing to be done.
    pub skip_idle: bool,
    /// Bytes of workspace that forward may cut tiles for.
    pub piece_bytes: usize,
}

impl Cells {
    /// `list` without the tiles that have nothing to do.
    fn busy(&self, list: TileList) -> TileList {
        if self.skip_idle { list.without_idle() } else { list }
    }

    fn query_tiles(&self, shape: &TileShape) -> Result<TileList> {
        query_tiles(&self.slices, &self.rows, shape).map(|list| self.busy(list))
    }

    fn key_tiles(&self, shape: &TileShape) -> Result<TileList> {
        key_tiles(&self.slices, &self.rows, shape).map(|list| self.busy(list))
    }
}

/// Tiles of the same slices on devices, made at the first use and kept.
#[derive(Debug, Default)]
pub(super) struct MadeTiles {
    forward: Made<ForwardChoice, ForwardTiles>,
    backward: Made<BackwardChoice, BackwardTiles>,
    textbook: Mutex<Vec<TextbookTiles>>,
}

/// Fails while `on` is being captured: what is missing cannot be made then.
pub(super) fn expect_prepared(gpu: &Gpu, on: Stream) -> Result<()> {
    if !stream::is_capturing(gpu, on)? {
        return Ok(());
    }
    let message = "the stream is being captured and nothing is prepared for the call: call \
                   magi_flex_flash_attn_forward_prepare or _backward_prepare with the same arguments before, or make the \
                   same call on a key once";
    Err(Error::new(Status::NotSupported, message))
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

impl MadeTiles {
    /// Tiles for a forward call over `cells`. The first call for a purpose plans, uploads and may compile, unless `on` is
    /// being captured: then it fails, having touched nothing.
    pub fn forward(
        &self,
        cells: impl FnOnce() -> Cells,
        (gpu, shape): (&Arc<Gpu>, &AttnShape),
        asked: ForwardChoice,
        on: Stream,
    ) -> Result<Arc<ForwardTiles>> {
        find_or_make(&self.forward, (gpu, shape, asked), on, || {
            make_forward(&cells(), gpu, shape, asked)
        })
    }

    /// The same for gradients.
    pub fn backward(
        &self,
        cells: impl FnOnce() -> Cells,
        (gpu, shape): (&Arc<Gpu>, &AttnShape),
        asked: BackwardChoice,
        on: Stream,
    ) -> Result<Arc<BackwardTiles>> {
        find_or_make(&self.backward, (gpu, shape, asked), on, || {
            make_backward(&cells(), gpu, shape, asked)
        })
    }

    /// What the textbook kernels walk, and those kernels. The first call for a device and tile shape plans and uploads, as
    /// `forward` does.
    pub fn textbook(
        &self,
        cells: impl FnOnce() -> Cells,
        gpu: &Arc<Gpu>,
        dtype: DType,
        on: Stream,
    ) -> Result<Attention> {
        let shape = tile_shape(dtype);
        let mut made = self.textbook.lock();
        let here = |t: &&TextbookTiles| t.ordinal == gpu.ordinal() && t.shape == shape;
        if made.iter().find(here).is_none() {
            expect_prepared(gpu, on)?;
            let cells = cells();
            made.push(TextbookTiles {
                ordinal: gpu.ordinal(),
                shape,
                queries: Arc::new(DeviceTiles::upload(gpu, &cells.query_tiles(&shape)?)?),
                keys: Arc::new(DeviceTiles::upload(gpu, &cells.key_tiles(&shape)?)?),
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

/// Plans tiles for the kernel that `asked` names, or for its general form where heads are packed or tiles are cut.
fn make_forward(
    cells: &Cells,
    gpu: &Arc<Gpu>,
    shape: &AttnShape,
    asked: ForwardChoice,
) -> Result<ForwardTiles> {
    let mut kernel = ForwardKernel::load(gpu, asked)?;
    let processors = i64::from(gpu.properties().multiprocessors);
    let tokens_k = cells.rows.k.iter().sum();
    loop {
        // The general form may have other tiles.
        let pack = forward::pack(shape, cells.rows.q, i64::from(kernel.block_q));
        let tile = TileShape::new(kernel.block_q / pack as i32, kernel.block_k);
        let list = cells.query_tiles(&tile)?;
        let limit = forward::may_cut(&kernel, tokens_k)
            .then(|| pieces::limit(&list, shape.heads_q / pack, processors))
            .flatten();
        if kernel.choice.general || (pack == 1 && limit.is_none()) {
            let tiles = ForwardTiles::new(gpu, kernel.clone(), shape, &list, pack, limit)?;
            if tiles.workspace_bytes() <= cells.piece_bytes {
                return Ok(tiles);
            }
            return ForwardTiles::new(gpu, kernel, shape, &list, pack, None);
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

/// Plans the tiles that the kernels of `asked` walk.
fn make_backward(
    cells: &Cells,
    gpu: &Arc<Gpu>,
    shape: &AttnShape,
    asked: BackwardChoice,
) -> Result<BackwardTiles> {
    let kernels = BackwardKernels::load(gpu, asked)?;
    let keys = cells.key_tiles(&kernels.keys.tile())?;
    let queries = kernels.queries.as_ref();
    let queries = queries.map(|k| cells.query_tiles(&k.tile())).transpose()?;
    BackwardTiles::new(gpu, kernels, shape, &keys, queries.as_ref())
}
