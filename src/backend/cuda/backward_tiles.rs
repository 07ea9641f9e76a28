//! Backward by the fast kernels over the tiles of a mask that a device keeps.

use std::sync::Arc;

use super::backward::{BackwardCall, BackwardKernels, BackwardLists};
use super::backward_launch::DeviceList;
use super::tickets::{self, Tickets};
use super::tile_lists::DeviceTiles;
use crate::device::Stream;
use crate::device::cuda::{DeviceMemory, Gpu};
use crate::types::{AttnShape, DType, Error, Result, Status, TileList};

/// The tiles of a mask for the kernels of one choice and shape, on a device.
#[derive(Debug)]
pub struct BackwardTiles {
    gpu: Arc<Gpu>,
    /// What walks them.
    pub kernels: BackwardKernels,
    shape: AttnShape,
    keys: DeviceTiles,
    queries: Option<DeviceTiles>,
    words: DeviceMemory,
    ticket_words: usize,
    tickets: Tickets,
}

/// Fails where a launch cannot count the tiles of so many heads.
fn expect_countable(list: &TileList, heads: i64) -> Result<()> {
    let tiles = list.tiles.len() as i64;
    if tiles * heads <= i64::from(i32::MAX / 2) {
        return Ok(());
    }
    let message = format!("{tiles} tiles of {heads} heads are more than a launch counts");
    Err(Error::new(Status::NotSupported, message))
}

fn device_list(tiles: &DeviceTiles) -> DeviceList {
    DeviceList {
        tiles: tiles.tiles(),
        items: tiles.items(),
        limits: tiles.limits(),
        count: tiles.count(),
        steps: tiles.steps(),
    }
}

impl BackwardTiles {
    /// Uploads lists of the tile shapes of `kernels`: key tiles, and query tiles where a kernel walks them. Allocates and
    /// waits.
    pub fn new(
        gpu: &Arc<Gpu>,
        kernels: BackwardKernels,
        shape: &AttnShape,
        keys: &TileList,
        queries: Option<&TileList>,
    ) -> Result<BackwardTiles> {
        if kernels.queries.is_some() != queries.is_some() {
            return Err(Error::internal("lists of other tiles than the kernels walk"));
        }
        for list in [Some(keys), queries].into_iter().flatten() {
            expect_countable(list, shape.heads_q)?;
        }
        let ticket_words = kernels.words(keys.tiles.len() as i64, shape);
        let words = DeviceMemory::upload(gpu, &vec![0; tickets::COUNT * ticket_words * size_of::<u32>()])?;
        Ok(BackwardTiles {
            kernels,
            shape: *shape,
            keys: DeviceTiles::upload(gpu, keys)?,
            queries: queries.map(|list| DeviceTiles::upload(gpu, list)).transpose()?,
            gpu: gpu.clone(),
            words,
            ticket_words,
            tickets: Tickets::default(),
        })
    }

    /// Bytes of workspace of a call that writes or adds to a dq of `tokens_q` rows and this dtype.
    pub fn workspace_bytes(&self, tokens_q: i64, dq: DType, accumulate: bool) -> Result<usize> {
        let tiles = i64::from(self.keys.count());
        self.kernels
            .tiles_workspace_bytes(&self.shape, (tokens_q, tiles), dq, accumulate)
    }

    /// Enqueues the call: at most three launches, one more where dq apart is added to what is not f32. They neither allocate nor
    /// wait and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace are good until the kernels have run, and are what `BackwardCall` says, with the
    /// tokens of the mask; nobody else uses the workspace meanwhile.
    pub unsafe fn enqueue(&self, call: &BackwardCall, on: Stream) -> Result<()> {
        let ticket = self.tickets.next(&self.gpu, on)?;
        let words: *mut u32 = self.words.as_ptr().cast();
        let lists = BackwardLists {
            keys: device_list(&self.keys),
            queries: self.queries.as_ref().map(device_list),
            failed: std::ptr::null(),
            words: words.wrapping_add(ticket * self.ticket_words),
        };
        // SAFETY: the lists and the ticket live as long as self, which outlives what was enqueued (its memory is freed by a
        // call that waits for the device); the rest is the caller's promise.
        unsafe { self.kernels.enqueue(&lists, &self.shape, call, on) }
    }
}
