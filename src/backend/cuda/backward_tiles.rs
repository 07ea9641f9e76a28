//! Backward by the fast kernels over the tiles of a mask that a device keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::backward::{BackwardCall, BackwardKernels, BackwardLists};
use super::backward_launch::DeviceList;
use super::tile_lists::DeviceTiles;
use crate::device::Stream;
use crate::device::cuda::{DeviceMemory, Gpu};
use crate::types::{AttnShape, Error, Result, Status, TileList};

/// Calls with one mask that may be under way at once, on whatever streams; each has counters of its own.
const TICKETS: usize = 256;

/// The tiles of a mask for the kernels of one choice and shape, on a device.
#[derive(Debug)]
pub struct BackwardTiles {
    /// What walks them.
    pub kernels: BackwardKernels,
    shape: AttnShape,
    keys: DeviceTiles,
    queries: Option<DeviceTiles>,
    tickets: DeviceMemory,
    ticket_words: usize,
    next: AtomicUsize,
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
        let tickets = DeviceMemory::upload(gpu, &vec![0; TICKETS * ticket_words * size_of::<u32>()])?;
        Ok(BackwardTiles {
            kernels,
            shape: *shape,
            keys: DeviceTiles::upload(gpu, keys)?,
            queries: queries.map(|list| DeviceTiles::upload(gpu, list)).transpose()?,
            tickets,
            ticket_words,
            next: AtomicUsize::new(0),
        })
    }

    /// Enqueues the call: at most three launches, which neither allocate nor wait and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace are good until the kernels have run, and are what `BackwardCall` says, with the
    /// tokens of the mask; nobody else uses the workspace meanwhile.
    pub unsafe fn enqueue(&self, call: &BackwardCall, on: Stream) -> Result<()> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed) % TICKETS;
        let words: *mut u32 = self.tickets.as_ptr().cast();
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
