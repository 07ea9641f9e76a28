//! The forward kernel over ranges that lie on the device: their tile list is made there, then walked.

use std::sync::Arc;

use super::forward_kernel::{ForwardChoice, ForwardKernel};
use super::forward_launch::{self, ForwardCall, ForwardLaunch, ForwardLists};
use super::range_tiles::{DeviceRanges, ListShape, ListSpace, RangeTiles};
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::types::{AttnShape, Result, TileShape};

/// Both kernels on a device.
#[derive(Debug)]
pub struct ForwardRanges {
    gpu: Arc<Gpu>,
    kernel: ForwardKernel,
    tiles: RangeTiles,
}

impl ForwardRanges {
    /// Loads them, compiling first where they were not compiled ahead of time: prepare time only.
    pub fn load(gpu: &Arc<Gpu>, choice: ForwardChoice) -> Result<ForwardRanges> {
        Ok(ForwardRanges {
            gpu: gpu.clone(),
            kernel: ForwardKernel::load(gpu, choice)?,
            tiles: RangeTiles::load(gpu)?,
        })
    }

    /// Fails with what an earlier call on the device met, once.
    pub fn take_error(&self) -> Result<()> {
        self.tiles.take_error()
    }

    /// The list of a call over `n` ranges; `max_items` 0 is the default. `Status::InvalidArgument` when a launch cannot
    /// count so many items or tiles.
    pub fn list(&self, shape: &AttnShape, tokens: (i64, i64), n: i64, max_items: i64) -> Result<ListShape> {
        let list = ListShape {
            tokens_q: tokens.0,
            tokens_k: tokens.1,
            of_keys: false,
            tile: TileShape::new(self.kernel.block_q, self.kernel.block_k),
            max_items: 0,
            words: forward_launch::words(&self.kernel, shape, 1, 0),
        };
        list.with_room(max_items, n, shape.heads_q)
    }

    /// Enqueues the call over `ranges`, with `ListSpace::of(list).bytes` bytes of workspace: two launches. Neither
    /// allocates nor waits, and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace and the ranges are good until the kernels have run, and are what their types
    /// say; nobody else uses the workspace meanwhile.
    pub unsafe fn enqueue(
        &self,
        ranges: &DeviceRanges,
        list: &ListShape,
        shape: &AttnShape,
        call: &ForwardCall,
        on: Stream,
    ) -> Result<()> {
        let outputs = [Some(call.out), call.lse];
        let at = ListSpace::of(list);
        let launch = ForwardLaunch {
            gpu: &self.gpu,
            kernel: &self.kernel,
            shape,
            lists: ForwardLists {
                tiles: at.tiles(call.workspace),
                items: at.items(call.workspace),
                limits: std::ptr::null(),
                count: list.tile_count() as i32,
                pack: 1,
                slots: 0,
                words: at.words(call.workspace),
            },
        };
        // SAFETY: the caller's promise; the second launch finds what the first one makes in the workspace, in the order
        // of the stream, and both are over the same tokens.
        unsafe {
            self.tiles.enqueue(ranges, list, &outputs, call.workspace, on)?;
            launch.enqueue(call, on)
        }
    }
}
