//! Launching the forward kernel: a mask's tiles on a device, and what a call adds to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::forward_kernel::ForwardKernel;
use super::forward_maps::{self, ForwardMaps};
use super::forward_params::ForwardParams;
use super::pieces;
use super::tile_lists::DeviceTiles;
use crate::device::Stream;
use crate::device::cuda::{Arguments, DeviceMemory, Gpu, Launch, fill_words};
use crate::types::{AttnShape, Error, Result, Status, Tensor, TileList};

/// Fewer blocks of keys than this are never cut into pieces: a call on them needs no workspace.
const LEAST_BLOCKS: i64 = 12;

/// Calls with one mask that may be under way at once, on whatever streams; each has counters of its own.
const TICKETS: usize = 256;

/// What a call brings. Tensors as `ForwardArgs` of the backend says, on the device, with the strides that
/// `forward_maps::check` accepts.
#[derive(Clone, Copy, Debug)]
pub struct ForwardCall {
    /// Queries.
    pub q: Tensor,
    /// Keys of the local tensor and of the receive buffer; `None` when no slice names it.
    pub k: [Option<Tensor>; 2],
    /// Values of both.
    pub v: [Option<Tensor>; 2],
    /// f32 `[s, heads_q]` or `[tokens, s, heads_q]`.
    pub sink: Option<Tensor>,
    /// Factor of `q . k`, above 0.
    pub softmax_scale: f64,
    /// 0 is off.
    pub softcap: f64,
    /// Input dtype or f32.
    pub out: Tensor,
    /// f32.
    pub lse: Option<Tensor>,
    /// f32 `[heads_q]`.
    pub max_logits: Option<Tensor>,
    /// Merge into `(out, lse)`.
    pub accumulate: bool,
    /// Multiprocessors left to others.
    pub sm_margin: i32,
    /// `ForwardTiles::workspace_bytes` bytes, aligned to 256.
    pub workspace: *mut u8,
}

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

/// Bytes of workspace that no call of this shape on this device exceeds, whatever its mask.
pub fn workspace_bound(gpu: &Gpu, kernel: &ForwardKernel, tokens_k: i64) -> usize {
    if !may_cut(kernel, tokens_k) {
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
    tickets: DeviceMemory,
    ticket_words: usize,
    next: AtomicUsize,
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
        let maxima = if kernel.choice.max_logits {
            shape.heads_q as usize
        } else {
            0
        };
        let done = (slots * units) as usize * (kernel.block_q as usize / 16);
        let ticket_words = (4 + maxima + done).next_multiple_of(4);
        let tickets = DeviceMemory::upload(gpu, &vec![0; TICKETS * ticket_words * size_of::<u32>()])?;
        Ok(ForwardTiles {
            gpu: gpu.clone(),
            kernel,
            shape: *shape,
            tiles,
            pack,
            slots,
            tickets,
            ticket_words,
            next: AtomicUsize::new(0),
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
        let units = self.shape.heads_q / self.pack;
        let work = i64::from(self.tiles.count()) * units;
        if work == 0 {
            return match call.max_logits {
                // SAFETY: the caller's promise: f32 [heads_q], dense.
                Some(t) if !call.accumulate => unsafe {
                    fill_words(
                        &self.gpu,
                        t.data(),
                        f32::NEG_INFINITY.to_bits(),
                        t.elements() as usize,
                        stream,
                    )
                },
                _ => Ok(()),
            };
        }
        let maps = forward_maps::encode(call, &self.kernel, self.pack)?;
        let params = self.params(call, &maps, units);
        let processors = i64::from(self.gpu.properties().multiprocessors - call.sm_margin).max(1);
        let launch = Launch {
            shared_bytes: self.kernel.shared_bytes,
            ..Launch::linear(work.min(processors) as u32, self.kernel.threads)
        };
        let mut arguments = Arguments::new();
        arguments.push(&maps.maps).push(&params);
        // SAFETY: the kernel's two parameters; the lists and the ticket live as long as self, which outlives what was
        // enqueued (its memory is freed by a call that waits for the device); the rest is the caller's promise.
        unsafe { launch.run(&self.gpu, self.kernel.function, stream, &mut arguments) }
    }

    fn params(&self, call: &ForwardCall, maps: &ForwardMaps, units: i64) -> ForwardParams {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed) % TICKETS;
        let words: *mut u32 = self.tickets.as_ptr().cast();
        let words = words.wrapping_add(ticket * self.ticket_words);
        let maxima = if self.kernel.choice.max_logits {
            self.shape.heads_q as usize
        } else {
            0
        };
        let f32_of = |t: Option<Tensor>| t.map_or(std::ptr::null_mut(), |t| t.data().cast::<f32>());
        let stride = |t: Option<Tensor>, i: usize| t.map_or(0, |t| t.stride()[i]);
        let sink = call.sink;
        let per_token = usize::from(sink.is_some_and(|t| t.shape().len() == 3));
        let tokens = |t: Option<Tensor>| t.map_or(0, |t| t.tokens() as i32);
        let piece_words = self.kernel.block_q as usize * self.kernel.choice.head_dims.1 as usize;
        let piece_out: *mut f32 = call.workspace.cast();
        let factor = if call.softcap > 0.0 {
            call.softcap
        } else {
            call.softmax_scale
        };
        let mut flags = 0;
        if call.out.dtype() != self.shape.dtype {
            flags |= ForwardParams::OUT_F32;
        }
        if call.accumulate {
            flags |= ForwardParams::ACCUMULATE;
        }
        ForwardParams {
            tiles: self.tiles.tiles(),
            items: self.tiles.items(),
            limits: self.tiles.limits(),
            counters: words.cast(),
            maxima: words.wrapping_add(4),
            out: call.out.data(),
            lse: f32_of(call.lse),
            max_logits: f32_of(call.max_logits),
            sink: f32_of(sink),
            piece_out,
            piece_lse: piece_out.wrapping_add((self.slots * units) as usize * piece_words),
            piece_done: words.wrapping_add(4 + maxima).cast(),
            out_token: call.out.stride()[0],
            out_head: call.out.stride()[1],
            lse_token: stride(call.lse, 0),
            lse_head: stride(call.lse, 1),
            sink_token: if per_token == 1 { stride(sink, 0) } else { 0 },
            sink_row: stride(sink, per_token),
            sink_head: stride(sink, per_token + 1),
            tile_count: self.tiles.count(),
            units: units as i32,
            group: (units / self.shape.heads_kv) as i32,
            section: self.section(call) as i32,
            pack: self.pack as i32,
            pack_inverse: (65536 / self.pack + 1) as i32,
            tokens_k: [tokens(call.k[0]), tokens(call.k[1])],
            head_dim_v: self.shape.head_dim_v as i32,
            sinks: sink.map_or(0, |t| t.shape()[per_token] as i32),
            q_bytes: maps.q_bytes,
            flags,
            copies_k: maps.copies_k,
            copies_v: maps.copies_v,
            scale_log2: (factor * std::f64::consts::LOG2_E) as f32,
            softcap_scale: if call.softcap > 0.0 {
                (call.softmax_scale / call.softcap) as f32
            } else {
                0.0
            },
        }
    }

    /// Units whose keys and values stay in the L2 cache together: those of a divisor of the key heads.
    fn section(&self, call: &ForwardCall) -> i64 {
        let heads = self.shape.heads_kv;
        let bytes: i64 = [call.k, call.v]
            .iter()
            .flatten()
            .flatten()
            .map(|t| t.tokens() * t.shape()[2] * t.dtype().size() as i64)
            .sum();
        let fit = i64::from(self.gpu.properties().l2_bytes) * 5 / 8 / bytes.max(1);
        let together = (1..=heads)
            .rev()
            .find(|n| heads % n == 0 && *n <= fit)
            .unwrap_or(1);
        together * (self.shape.heads_q / self.pack / heads)
    }
}
