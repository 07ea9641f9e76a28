//! One launch of the forward kernel: its parameters, from a call and the lists that it walks.

use super::forward_kernel::ForwardKernel;
use super::forward_maps::{self, ForwardMaps};
use super::forward_params::ForwardParams;
use super::section;
use crate::device::Stream;
use crate::device::cuda::{Arguments, Gpu, Launch, fill_words};
use crate::types::{AttnShape, Item, Result, RowLimits, Tensor, Tile};

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
    /// Merge into `(out, lse)`, or `(earlier, lse)`.
    pub accumulate: bool,
    /// f32, like `out`: what is merged into with `accumulate`, where that is not `out`, which is written then.
    pub earlier: Option<Tensor>,
    /// Multiprocessors left to others.
    pub sm_margin: i32,
    /// `ForwardTiles::workspace_bytes` bytes, aligned to 256.
    pub workspace: *mut u8,
}

/// Lists on the device, and what else a launch works in beside the call's workspace.
#[derive(Clone, Copy, Debug)]
pub struct ForwardLists {
    /// In the order of the work.
    pub tiles: *const Tile,
    /// What `Tile::item0` counts.
    pub items: *const Item,
    /// What `Item::limits` counts; null where no item has limits.
    pub limits: *const RowLimits,
    /// Number of tiles.
    pub count: i32,
    /// Query heads that share a tile.
    pub pack: i64,
    /// Places of pieces in the workspace.
    pub slots: i64,
    /// `words` of them: counters, maxima, pieces done. 0 before a launch, and after it.
    pub words: *mut u32,
}

/// How many words a launch counts in.
pub fn words(kernel: &ForwardKernel, shape: &AttnShape, pack: i64, slots: i64) -> usize {
    let done = (slots * shape.heads_q / pack) as usize * (kernel.block_q as usize / 16);
    (4 + maxima(kernel, shape) + done).next_multiple_of(4)
}

fn maxima(kernel: &ForwardKernel, shape: &AttnShape) -> usize {
    if kernel.choice.max_logits {
        shape.heads_q as usize
    } else {
        0
    }
}

/// A kernel over lists.
#[derive(Debug)]
pub struct ForwardLaunch<'a> {
    /// Where.
    pub gpu: &'a Gpu,
    /// What.
    pub kernel: &'a ForwardKernel,
    /// What the lists were made for.
    pub shape: &'a AttnShape,
    /// What is walked.
    pub lists: ForwardLists,
}

impl ForwardLaunch<'_> {
    /// Enqueues the call: one launch, which neither allocates nor waits and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace are good until the kernel has run, and are what `ForwardCall` says; the lists and
    /// words are good until then too, and name rows and tokens of the tensors. Nobody else uses workspace and words
    /// meanwhile.
    pub unsafe fn enqueue(&self, call: &ForwardCall, stream: Stream) -> Result<()> {
        let units = self.shape.heads_q / self.lists.pack;
        let work = i64::from(self.lists.count) * units;
        if work == 0 {
            return match call.max_logits {
                // SAFETY: the caller's promise: f32 [heads_q], dense.
                Some(t) if !call.accumulate => unsafe {
                    fill_words(
                        self.gpu,
                        t.data(),
                        f32::NEG_INFINITY.to_bits(),
                        t.elements() as usize,
                        stream,
                    )
                },
                _ => Ok(()),
            };
        }
        let current = self.gpu.enter()?;
        let maps = forward_maps::encode(&current, call, self.kernel, self.lists.pack)?;
        let params = self.params(call, &maps, units);
        let processors = i64::from(self.gpu.properties().multiprocessors - call.sm_margin).max(1);
        let launch = Launch {
            shared_bytes: self.kernel.shared_bytes,
            ..Launch::linear(work.min(processors) as u32, self.kernel.threads)
        };
        let mut arguments = Arguments::new();
        arguments.push(&maps.maps).push(&params);
        // SAFETY: the kernel's two parameters; the rest is the caller's promise.
        unsafe { launch.run(self.gpu, self.kernel.function, stream, &mut arguments) }
    }

    fn params(&self, call: &ForwardCall, maps: &ForwardMaps, units: i64) -> ForwardParams {
        let words = self.lists.words;
        let maxima = maxima(self.kernel, self.shape);
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
        let earlier = call.earlier.unwrap_or(call.out);
        if call.out.dtype() != self.shape.dtype {
            flags |= ForwardParams::OUT_F32;
        }
        if call.accumulate {
            flags |= ForwardParams::ACCUMULATE;
        }
        ForwardParams {
            tiles: self.lists.tiles,
            items: self.lists.items,
            limits: self.lists.limits,
            counters: words.cast(),
            maxima: words.wrapping_add(4),
            out: call.out.data(),
            lse: f32_of(call.lse),
            max_logits: f32_of(call.max_logits),
            sink: f32_of(sink),
            piece_out,
            piece_lse: piece_out.wrapping_add((self.lists.slots * units) as usize * piece_words),
            piece_done: words.wrapping_add(4 + maxima).cast(),
            earlier: earlier.data().cast(),
            out_token: call.out.stride()[0],
            out_head: call.out.stride()[1],
            lse_token: stride(call.lse, 0),
            lse_head: stride(call.lse, 1),
            sink_token: if per_token == 1 { stride(sink, 0) } else { 0 },
            sink_row: stride(sink, per_token),
            sink_head: stride(sink, per_token + 1),
            earlier_token: earlier.stride()[0],
            earlier_head: earlier.stride()[1],
            tile_count: self.lists.count,
            units: units as i32,
            group: (units / self.shape.heads_kv) as i32,
            section: self.section(call) as i32,
            pack: self.lists.pack as i32,
            pack_inverse: (65536 / self.lists.pack + 1) as i32,
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
        section::key_heads(self.gpu, heads, &call.k, &call.v) * (self.shape.heads_q / self.lists.pack / heads)
    }
}
