//! The launches of a backward call by the fast kernels, over lists that are on the device: row work, dk and dv with dq or
//! with dq behind them, dq in its dtype.

use std::sync::Arc;

use super::backward_kernel::{BackwardChoice, BackwardKernel, Gradients};
use super::backward_launch::{DeviceList, KeysLaunch, KeysOutputs, Operands, Split, Stats};
use super::backward_queries::{self, QueriesLaunch};
use super::backward_rows::{self, BackwardRows, DeltaFrom, Pair, RowsCall, RowsSinks, RowsSums};
use crate::device::cuda::Gpu;
use crate::device::{Carver, Stream};
use crate::types::{AttnShape, DType, Result, Tensor};

/// What a call brings. Tensors as `BackwardArgs` of the backend says, on the device, with the strides that
/// `forward_maps::check` accepts.
#[derive(Clone, Copy, Debug)]
pub struct BackwardCall {
    /// Queries.
    pub q: Tensor,
    /// Keys of the local tensor and of the receive buffer; `None` when no slice names it.
    pub k: [Option<Tensor>; 2],
    /// Values of both.
    pub v: [Option<Tensor>; 2],
    /// delta, or what forward gave: input dtype or f32.
    pub from: DeltaFrom,
    /// f32 `[tokens, heads_q]`.
    pub lse: Tensor,
    /// Gradient of out.
    pub dout: Tensor,
    /// Sinks and what becomes of their gradients; whether that is added to.
    pub sink: Option<(Tensor, Tensor, bool)>,
    /// Factor of `q . k`, above 0.
    pub softmax_scale: f64,
    /// 0 is off.
    pub softcap: f64,
    /// Input dtype or f32.
    pub dq: Tensor,
    /// Input dtype or f32, all of one. Present where `k` is.
    pub dk: [Option<Tensor>; 2],
    /// As above.
    pub dv: [Option<Tensor>; 2],
    /// `dq` is added to.
    pub accumulate_dq: bool,
    /// `dk` and `dv`, which are f32, are added to.
    pub accumulate_keys: bool,
    /// Multiprocessors left to others.
    pub sm_margin: i32,
    /// `BackwardKernels::workspace_bytes` bytes, aligned to 256.
    pub workspace: *mut u8,
}

/// Lists on the device, and what else the launches work in beside the call's workspace.
#[derive(Clone, Copy, Debug)]
pub struct BackwardLists {
    /// Key tiles.
    pub keys: DeviceList,
    /// Query tiles, where a kernel of its own computes dq.
    pub queries: Option<DeviceList>,
    /// Null, or not 0 on the device where `keys` could not be made.
    pub failed: *const i32,
    /// `BackwardKernels::words` of them: 0 before the launches, and after them.
    pub words: *mut u32,
}

/// Where the parts of a call's workspace stand.
#[derive(Clone, Copy, Debug)]
struct Space {
    stats: Stats,
    parts: *mut f64,
    /// Of dq, where it is not f32 itself: `[heads_q, tokens, width]` with rows of a multiple of 16 bytes.
    sums: Option<(*mut f32, i64)>,
    pieces: *mut u8,
}

/// The kernels of a device for one choice.
#[derive(Debug)]
pub struct BackwardKernels {
    gpu: Arc<Gpu>,
    choice: BackwardChoice,
    rows: BackwardRows,
    /// Of key tiles.
    pub keys: BackwardKernel,
    /// Of query tiles.
    pub queries: Option<BackwardKernel>,
}

impl BackwardKernels {
    /// Loads them, compiling first where they were not compiled ahead of time: prepare time only.
    pub fn load(gpu: &Arc<Gpu>, choice: BackwardChoice) -> Result<BackwardKernels> {
        let kernel = |gradients| BackwardKernel::load(gpu, choice, gradients);
        let (keys, queries) = match choice.apart {
            false => (kernel(Gradients::All)?, None),
            true => (kernel(Gradients::Keys)?, Some(kernel(Gradients::Queries)?)),
        };
        Ok(BackwardKernels {
            gpu: gpu.clone(),
            choice,
            rows: BackwardRows::load(gpu, choice.dtype)?,
            keys,
            queries,
        })
    }

    /// How the work of `tiles` key tiles is split.
    fn split(&self, tiles: i64, shape: &AttnShape) -> Split {
        Split::of(tiles, shape, self.gpu.properties().multiprocessors.into())
    }

    /// Words that a call over `tiles` key tiles counts in.
    pub fn words(&self, tiles: i64, shape: &AttnShape) -> usize {
        let keys = self.split(tiles, shape).words(&self.keys);
        (keys + backward_queries::WORDS + shape.heads_q as usize).next_multiple_of(4)
    }

    /// Whether dq is summed in the workspace, from where a launch of its own brings it to `dq`.
    fn has_sums(&self, dq: DType, accumulate: bool) -> bool {
        if self.choice.apart {
            // The dq kernel adds to f32 alone.
            return accumulate && dq != DType::F32;
        }
        // As does the kernel over key tiles.
        dq != DType::F32
    }

    /// Bytes of workspace of a call over key tiles of all keys, whatever its mask, that writes or adds to a dq of this dtype.
    pub fn workspace_bytes(
        &self,
        shape: &AttnShape,
        tokens: (i64, i64),
        dq: DType,
        accumulate: bool,
    ) -> Result<usize> {
        let tiles = (tokens.1 as u64).div_ceil(self.keys.rows as u64) as i64;
        self.tiles_workspace_bytes(shape, (tokens.0, tiles), dq, accumulate)
    }

    /// The same over so many queries and key tiles.
    pub fn tiles_workspace_bytes(
        &self,
        shape: &AttnShape,
        (tokens_q, tiles): (i64, i64),
        dq: DType,
        accumulate: bool,
    ) -> Result<usize> {
        let mut carver = Carver::measure();
        let sums = self.has_sums(dq, accumulate);
        self.space(shape, tokens_q, tiles, sums, &mut carver)?;
        Ok(carver.used())
    }

    fn space(
        &self,
        shape: &AttnShape,
        tokens_q: i64,
        tiles: i64,
        sums: bool,
        carver: &mut Carver,
    ) -> Result<Space> {
        let padded = (tokens_q + 3) / 4 * 4;
        let rows = shape.heads_q.saturating_mul(padded) as usize;
        let pairs = carver.take(rows.saturating_mul(size_of::<Pair>()))?.cast();
        let parts = backward_rows::parts(padded, shape.heads_q);
        let parts = carver.take(parts * size_of::<f64>())?.cast();
        let width = (shape.head_dim + 3) / 4 * 4;
        let bytes = rows.saturating_mul(width as usize * size_of::<f32>());
        let sums = if sums {
            Some((carver.take(bytes)?.cast(), width))
        } else {
            None
        };
        let pieces = self.split(tiles, shape).piece_bytes(&self.keys);
        Ok(Space {
            stats: Stats { pairs, padded },
            parts,
            sums,
            pieces: carver.take(pieces)?,
        })
    }

    /// Enqueues the call: at most three launches, one more where dq apart is added to what is not f32. They neither allocate nor
    /// wait and may be captured.
    ///
    /// # Safety
    /// The call's tensors and workspace are good until the kernels have run, and are what `BackwardCall` says; the lists and
    /// words are good until then too, and name rows and tokens of the tensors. Nobody else uses workspace and words
    /// meanwhile.
    pub unsafe fn enqueue(
        &self,
        lists: &BackwardLists,
        shape: &AttnShape,
        call: &BackwardCall,
        on: Stream,
    ) -> Result<()> {
        let tiles = i64::from(lists.keys.count);
        let own = self.has_sums(call.dq.dtype(), call.accumulate_dq);
        let mut carver = Carver::measure();
        self.space(shape, call.q.tokens(), tiles, own, &mut carver)?;
        let mut carver = Carver::over(call.workspace, carver.used())?;
        let space = self.space(shape, call.q.tokens(), tiles, own, &mut carver)?;
        let split = self.split(tiles, shape);
        let keys_words = split.words(&self.keys);
        let queries_words = lists.words.wrapping_add(keys_words);
        let done = queries_words.wrapping_add(backward_queries::WORDS);
        let sums = space.sums.map(|(at, width)| sums_of(call, shape, at, width));
        let operands = operands(call, &space);
        // SAFETY: the caller's promise; the workspace holds what `space` carves from it, for one launch after the other.
        unsafe {
            self.rows
                .prepare(&self.rows_call(lists, call, &space, sums, done), on)?;
            let keys = KeysLaunch {
                gpu: &self.gpu,
                kernel: &self.keys,
                shape,
                list: lists.keys,
                split,
                words: lists.words,
            };
            let outputs = KeysOutputs {
                dq: (!self.choice.apart).then(|| sums.unwrap_or(call.dq)),
                dk: call.dk,
                dv: call.dv,
                accumulate: call.accumulate_keys,
                pieces: space.pieces,
            };
            keys.enqueue(&operands, &outputs, on)?;
            if let (Some(kernel), Some(list)) = (&self.queries, lists.queries) {
                let queries = QueriesLaunch {
                    gpu: &self.gpu,
                    kernel,
                    shape,
                    list,
                    words: queries_words,
                    behind_keys: tiles > 0,
                };
                let dq = sums.unwrap_or(call.dq);
                queries.enqueue(&operands, &dq, call.accumulate_dq && sums.is_none(), on)?;
            }
            match &sums {
                Some(sums) => self.rows.convert(sums, &call.dq, call.accumulate_dq, on),
                None => Ok(()),
            }
        }
    }

    fn rows_call(
        &self,
        lists: &BackwardLists,
        call: &BackwardCall,
        space: &Space,
        sums: Option<Tensor>,
        done: *mut u32,
    ) -> RowsCall {
        let begin = |dq: Tensor, clear: bool| RowsSums { dq, clear };
        let sums = match sums {
            _ if self.choice.apart => None,
            Some(sums) => Some(begin(sums, true)),
            None => Some(begin(call.dq, !call.accumulate_dq)),
        };
        RowsCall {
            from: call.from,
            dout: call.dout,
            lse: call.lse,
            stats: space.stats.pairs,
            padded: space.stats.padded,
            sums,
            failed: lists.failed,
            sinks: call.sink.map(|(sink, dsink, add)| RowsSinks {
                sink,
                dsink,
                add,
                parts: space.parts,
                done,
            }),
        }
    }
}

fn operands(call: &BackwardCall, space: &Space) -> Operands {
    Operands {
        q: call.q,
        k: call.k,
        v: call.v,
        dout: call.dout,
        stats: space.stats,
        softmax_scale: call.softmax_scale,
        softcap: call.softcap,
        sm_margin: call.sm_margin,
    }
}

/// The sums in the workspace as a tensor like dq. Rows of a head lie together, so that a step adds to one stretch of memory.
fn sums_of(call: &BackwardCall, shape: &AttnShape, at: *mut f32, width: i64) -> Tensor {
    let tokens = call.q.tokens();
    let extents = [tokens, shape.heads_q, shape.head_dim];
    // SAFETY: the space has `width` elements for each of these rows, for this call alone.
    unsafe {
        Tensor::from_raw(
            at.cast(),
            DType::F32,
            call.q.device(),
            &extents,
            &[width, width * tokens, 1],
        )
    }
}
