//! Backward by the fast kernels over ranges that lie on the device: their tile lists are made there, then walked.

use std::sync::Arc;

use super::backward::{BackwardCall, BackwardKernels, BackwardLists};
use super::backward_kernel::{BackwardChoice, BackwardKernel};
use super::backward_launch::DeviceList;
use super::range_tiles::{DeviceRanges, ListShape, ListSpace, RangeTiles};
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::types::{AttnShape, DType, Result};

/// The kernels on a device.
#[derive(Debug)]
pub struct BackwardRanges {
    kernels: BackwardKernels,
    tiles: RangeTiles,
}

/// The lists of a call.
#[derive(Clone, Copy, Debug)]
pub struct BackwardListShapes {
    /// Of key tiles.
    pub keys: ListShape,
    /// Of query tiles, where a kernel of its own computes dq.
    pub queries: Option<ListShape>,
}

impl BackwardListShapes {
    /// Bytes of the first list, and of both.
    fn bytes(&self) -> (usize, usize) {
        // A multiple of 256, so that what follows is aligned.
        let of = |list: &ListShape| ListSpace::of(list).bytes.next_multiple_of(256);
        let keys = of(&self.keys);
        (keys, keys + self.queries.as_ref().map_or(0, of))
    }
}

impl BackwardRanges {
    /// Loads them, compiling first where they were not compiled ahead of time: prepare time only.
    pub fn load(gpu: &Arc<Gpu>, choice: BackwardChoice) -> Result<BackwardRanges> {
        Ok(BackwardRanges {
            kernels: BackwardKernels::load(gpu, choice)?,
            tiles: RangeTiles::load(gpu)?,
        })
    }

    /// Fails with what an earlier call on the device met, once.
    pub fn take_error(&self) -> Result<()> {
        self.tiles.take_error()
    }

    /// The lists of a call over `n` ranges; `max_items` holds for each, 0 is the default. `Status::InvalidArgument` when a
    /// launch cannot count so many items or tiles.
    pub fn lists(
        &self,
        shape: &AttnShape,
        tokens: (i64, i64),
        n: i64,
        max_items: i64,
    ) -> Result<BackwardListShapes> {
        let list = |kernel: &BackwardKernel, of_keys: bool| ListShape {
            tokens_q: tokens.0,
            tokens_k: tokens.1,
            of_keys,
            tile: kernel.tile(),
            max_items: 0,
            words: 0,
        };
        let keys = list(&self.kernels.keys, true);
        let queries = self.kernels.queries.as_ref().map(|kernel| list(kernel, false));
        let with_room = |list: ListShape| list.with_room(max_items, n, shape.heads_q);
        Ok(BackwardListShapes {
            keys: ListShape {
                words: self.kernels.words(keys.tile_count(), shape),
                ..with_room(keys)?
            },
            queries: queries.map(with_room).transpose()?,
        })
    }

    /// Bytes of workspace of a call that writes or adds to a dq of this dtype.
    pub fn workspace_bytes(
        &self,
        lists: &BackwardListShapes,
        shape: &AttnShape,
        tokens: (i64, i64),
        dq: DType,
        accumulate: bool,
    ) -> Result<usize> {
        let call = self.kernels.workspace_bytes(shape, tokens, dq, accumulate)?;
        Ok(lists.bytes().1 + call)
    }

    /// Enqueues the call over `ranges`, with `workspace_bytes` of workspace: a launch for each list, then those of `BackwardKernels`.
    /// Neither allocates nor waits, and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace and the ranges are good until the kernels have run, and are what their types say;
    /// nobody else uses the workspace meanwhile.
    pub unsafe fn enqueue(
        &self,
        ranges: &DeviceRanges,
        lists: &BackwardListShapes,
        shape: &AttnShape,
        call: &BackwardCall,
        on: Stream,
    ) -> Result<()> {
        let (keys_bytes, bytes) = lists.bytes();
        let keys_space = call.workspace;
        let queries_space = call.workspace.wrapping_add(keys_bytes);
        let device_list = |list: &ListShape, space: *mut u8| {
            let at = ListSpace::of(list);
            DeviceList {
                tiles: at.tiles(space),
                items: at.items(space),
                limits: std::ptr::null(),
                count: list.tile_count() as i32,
                steps: (0, 0),
            }
        };
        let at = ListSpace::of(&lists.keys);
        let launches = BackwardLists {
            keys: device_list(&lists.keys, keys_space),
            queries: lists
                .queries
                .as_ref()
                .map(|list| device_list(list, queries_space)),
            failed: at.failed(keys_space),
            words: at.words(keys_space),
        };
        let of_keys = [call.dk[0], call.dv[0]];
        let call = BackwardCall {
            workspace: call.workspace.wrapping_add(bytes),
            ..*call
        };
        // SAFETY: the caller's promise; every launch finds what those before it make in the workspace, in the order of the
        // stream, and all are over the same tokens.
        unsafe {
            self.tiles
                .enqueue(ranges, &lists.keys, &of_keys, keys_space, on)?;
            if let Some(list) = &lists.queries {
                let of_queries = [Some(call.dq), None];
                self.tiles.enqueue(ranges, list, &of_queries, queries_space, on)?;
            }
            self.kernels.enqueue(&launches, shape, &call, on)
        }
    }
}
