//! Launching the forward kernel: a mask's tiles on a device, and what a call adds to them.

use std::sync::Arc;

use super::forward_kernel::ForwardKernel;
use super::forward_launch::{self, ForwardCall, ForwardLaunch, ForwardLists};
use super::pieces;
use super::tickets::{self, Tickets};
use super::tile_lists::DeviceTiles;
use crate::device::Stream;
use crate::device::cuda::{DeviceMemory, Gpu};
use crate::types::{AttnShape, Error, Result, Status, TileList};

/// Fewer blocks of keys than this are never cut into pieces: a call on them needs no workspace.
const LEAST_BLOCKS: i64 = 12;

/// The most query heads of a key head that share a tile, where that saves at least a quarter of the tiles; else 1.
pub fn pack(shape: &AttnShape, tokens_q: i64, block_q: i64) -> i64 {
    let group = shape.heads_q / shape.heads_kv;
    let most = (1..=group.min(block_q))
        .rev()
        .find(|p| group % p == 0)
        .unwrap_or(1);
    let tiles =
        |pack: i64| (tokens_q as u64).div_ceil((block_q / pack) as u64) as i64 * (shape.heads_q / pack);
    if 4 * tiles(most) <= 3 * tiles(1) { most } else { 1 }
}

/// Bytes of workspace that no call of this shape on this device exceeds, whatever its mask. `kernel` is the one that is asked for:
/// its general form, to which a mask may lead, need not be there, as it may have to be compiled.
pub fn workspace_bound(gpu: &Gpu, kernel: &ForwardKernel, tokens_k: i64) -> usize {
    // The general form has no larger tiles, and three quarters of the keys in a step at least (tests/forward_layout.rs).
    let mut smallest = kernel.clone();
    if !kernel.choice.general {
        smallest.block_k = kernel.block_k * 3 / 4;
    }
    if !may_cut(&smallest, tokens_k) {
        return 0;
    }
    // Pieces are at least a multiprocessor's share long and tiles that are cut a quarter longer: at most 1.8 for each.
    2 * gpu.properties().multiprocessors.max(1) as usize * piece_bytes(kernel)
}

/// Whether tiles over so many keys are worth cutting.
pub fn may_cut(kernel: &ForwardKernel, tokens_k: i64) -> bool {
    tokens_k > LEAST_BLOCKS * i64::from(kernel.block_k)
}

/// Output and sums of one piece of one unit.
fn piece_bytes(kernel: &ForwardKernel) -> usize {
    kernel.block_q as usize * (kernel.choice.head_dims.1 as usize + 1) * size_of::<f32>()
}

/// The tiles of a mask for one forward kernel and shape, on a device.
#[derive(Debug)]
pub struct ForwardTiles {
    gpu: Arc<Gpu>,
    kernel: ForwardKernel,
    shape: AttnShape,
    tiles: DeviceTiles,
    pack: i64,
    slots: i64,
    words: DeviceMemory,
    ticket_words: usize,
    tickets: Tickets,
}

impl ForwardTiles {
    /// Uploads `list`, which was made for tiles of `kernel.block_q / pack` queries and steps of `kernel.block_k` keys,
    /// cut where `piece_limit` says (`pieces::limit`). Allocates and waits.
    pub fn new(
        gpu: &Arc<Gpu>,
        kernel: ForwardKernel,
        shape: &AttnShape,
        list: &TileList,
        pack: i64,
        piece_limit: Option<i32>,
    ) -> Result<ForwardTiles> {
        let units = shape.heads_q / pack;
        let (tiles, slots) = match piece_limit {
            Some(limit) => {
                let (cut, slots) = pieces::cut(list, limit);
                (DeviceTiles::upload(gpu, &cut)?, slots)
            }
            None => (DeviceTiles::upload(gpu, list)?, 0),
        };
        if !kernel.choice.general && (slots > 0 || pack > 1) {
            return Err(Error::internal(
                "a forward kernel that knows neither pieces nor packed heads",
            ));
        }
        if i64::from(tiles.count()) * units > i64::from(i32::MAX / 2) {
            let message = format!(
                "{} tiles of {units} heads are more than a launch counts",
                tiles.count()
            );
            return Err(Error::new(Status::NotSupported, message));
        }
        let ticket_words = forward_launch::words(&kernel, shape, pack, slots);
        let words = DeviceMemory::upload(gpu, &vec![0; tickets::COUNT * ticket_words * size_of::<u32>()])?;
        Ok(ForwardTiles {
            gpu: gpu.clone(),
            kernel,
            shape: *shape,
            tiles,
            pack,
            slots,
            words,
            ticket_words,
            tickets: Tickets::default(),
        })
    }

    /// Bytes of workspace of a call.
    pub fn workspace_bytes(&self) -> usize {
        (self.slots * self.shape.heads_q / self.pack) as usize * piece_bytes(&self.kernel)
    }

    /// Bytes of device memory that the tile list takes.
    pub fn list_bytes(&self) -> usize {
        self.tiles.bytes()
    }

    /// Enqueues the call: one launch, which neither allocates nor waits and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace are good until the kernel has run, and are what `ForwardCall` says; nobody else
    /// uses the workspace meanwhile.
    pub unsafe fn enqueue(&self, call: &ForwardCall, stream: Stream) -> Result<()> {
        let ticket = self.tickets.next(&self.gpu, stream)?;
        let words: *mut u32 = self.words.as_ptr().cast();
        let launch = ForwardLaunch {
            gpu: &self.gpu,
            kernel: &self.kernel,
            shape: &self.shape,
            lists: ForwardLists {
                tiles: self.tiles.tiles(),
                items: self.tiles.items(),
                limits: self.tiles.limits(),
                count: self.tiles.count(),
                pack: self.pack,
                slots: self.slots,
                words: words.wrapping_add(ticket * self.ticket_words),
            },
        };
        // SAFETY: the lists and the ticket live as long as self, which outlives what was enqueued (its memory is freed by a
        // call that waits for the device); the rest is the caller's promise.
        unsafe { launch.enqueue(call, stream) }
    }
}
