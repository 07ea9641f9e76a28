//! Launchers of kernels/backward_rows.cu: what is done for every row before and behind the backward kernels.

use std::ptr::{null, null_mut};
use std::sync::Arc;

use super::embedded;
use super::kernels::{self, Kernels};
use crate::device::Stream;
use crate::device::cuda::{Arguments, Function, Gpu, Launch};
use crate::types::{DType, Error, Result, Tensor};

/// Threads of a block: MAGI_BACKWARD_ROWS_THREADS.
pub const THREADS: u32 = 256;
/// Most sinks of a token: MAGI_BACKWARD_ROWS_SINKS.
pub const SINKS: usize = 8;

/// Rows that a block takes at once.
const ROWS: i64 = THREADS as i64 / SINKS as i64;
/// Chunks of all heads that are enough to fill any device. No property of the device enters: chunks decide the order in
/// which dsink is summed.
const CHUNKS: i64 = 4096;
/// Most chunks of one head.
const HEAD_CHUNKS: i64 = 512;
/// Blocks for each multiprocessor.
const BLOCKS: i64 = 8;

/// `magi_backward_pair` of kernels/helper/backward_rows.h: of a token and of the one behind it. Of a head come those of even
/// tokens, then those of odd ones.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// lse to base 2.
    pub lse2: [f32; 2],
    /// rowsum(out * dout).
    pub delta: [f32; 2],
}

/// `magi_backward_rows` of kernels/helper/backward_rows.h. Strides count elements.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RowsParams {
    /// `[tokens, heads, width]`.
    pub out: *const u8,
    /// As above.
    pub dout: *const u8,
    /// `[tokens, heads]`, natural logarithm.
    pub lse: *const f32,
    /// `[heads, 2, padded / 2]`, aligned to 16 bytes. lse is +inf beyond the tokens and where a row sees nothing, delta 0.
    pub stats: *mut Pair,
    /// `[tokens, heads, dq_width]`, or null.
    pub dq: *mut f32,
    /// Null, or not 0 where the tile list could not be made: dq becomes NaN.
    pub failed: *const i32,
    /// Null, or `[sinks]` of every token and head by the strides below.
    pub sink: *const f32,
    /// As above.
    pub dsink: *mut f32,
    /// `[chunks, heads, SINKS]` with shared sinks.
    pub parts: *mut f64,
    /// `[heads]` with shared sinks; 0 before a launch, and after it.
    pub done: *mut u32,
    /// Strides of `out`.
    pub out_token: i64,
    /// As above.
    pub out_head: i64,
    /// Strides of `dout`.
    pub dout_token: i64,
    /// As above.
    pub dout_head: i64,
    /// Strides of `lse`.
    pub lse_token: i64,
    /// As above.
    pub lse_head: i64,
    /// Strides of `dq`.
    pub dq_token: i64,
    /// As above.
    pub dq_head: i64,
    /// Strides of `sink`; 0 for tokens when they share it.
    pub sink_token: i64,
    /// As above.
    pub sink_row: i64,
    /// As above.
    pub sink_head: i64,
    /// Strides of `dsink`.
    pub dsink_token: i64,
    /// As above.
    pub dsink_row: i64,
    /// As above.
    pub dsink_head: i64,
    /// Rows of a head.
    pub tokens: i64,
    /// Pairs of a head: even, not fewer than its rows.
    pub padded: i64,
    /// Query heads.
    pub heads: i32,
    /// Elements of a row of `out`.
    pub width: i32,
    /// Elements of a row of `dq`.
    pub dq_width: i32,
    /// Sinks of a token.
    pub sinks: i32,
    /// Chunks of a head; they cover `padded`.
    pub chunks: i32,
    /// Rows of a chunk.
    pub chunk: i32,
    /// `CLEAR`, `SHARED`, `ADD_DSINK`, `GIVEN`.
    pub flags: i32,
    /// 0.
    pub reserved: i32,
}

impl RowsParams {
    /// `dq` becomes 0.
    pub const CLEAR: i32 = 1;
    /// Sinks are those of all tokens.
    pub const SHARED: i32 = 2;
    /// `dsink` is added to.
    pub const ADD_DSINK: i32 = 4;
    /// `out` is delta itself, `[tokens, heads]`.
    pub const GIVEN: i32 = 8;
}

/// `magi_backward_dq` of kernels/helper/backward_rows.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DqParams {
    /// `[tokens, heads, width]`.
    pub from: *const f32,
    /// As above, in the input dtype.
    pub to: *mut u8,
    /// Strides of `from`.
    pub from_token: i64,
    /// As above.
    pub from_head: i64,
    /// Strides of `to`.
    pub to_token: i64,
    /// As above.
    pub to_head: i64,
    /// Queries.
    pub tokens: i64,
    /// Query heads.
    pub heads: i32,
    /// Elements of a row.
    pub width: i32,
    /// 0 or 1: to what is there.
    pub add: i32,
    /// 0.
    pub reserved: i32,
}

/// Sinks of a call and their gradients.
#[derive(Clone, Copy, Debug)]
pub struct RowsSinks {
    /// f32 `[s, heads]` or `[tokens, s, heads]`.
    pub sink: Tensor,
    /// Like `sink`.
    pub dsink: Tensor,
    /// `dsink` is added to.
    pub add: bool,
    /// `parts` of them, aligned to 8 bytes, when tokens share the sinks.
    pub parts: *mut f64,
    /// `[heads]`, 0 before the launch and after it, when tokens share the sinks.
    pub done: *mut u32,
}

/// f32 sums of dq that a call adds to.
#[derive(Clone, Copy, Debug)]
pub struct RowsSums {
    /// f32 `[tokens, heads, head_dim]`.
    pub dq: Tensor,
    /// They begin at 0, else with what is there.
    pub clear: bool,
}

/// Where delta comes from.
#[derive(Clone, Copy, Debug)]
pub enum DeltaFrom {
    /// It is the sum over a row of this times dout: f32 or the dtype of dout, `[tokens, heads, width]`.
    Out(Tensor),
    /// f32 `[tokens, heads]`.
    Given(Tensor),
}

impl DeltaFrom {
    fn tensor(&self) -> &Tensor {
        match self {
            DeltaFrom::Out(t) | DeltaFrom::Given(t) => t,
        }
    }
}

/// What a call brings.
#[derive(Clone, Copy, Debug)]
pub struct RowsCall {
    /// Where delta comes from.
    pub from: DeltaFrom,
    /// bf16 or f16.
    pub dout: Tensor,
    /// f32 `[tokens, heads]`.
    pub lse: Tensor,
    /// `[heads, 2, padded / 2]`, aligned to 16 bytes.
    pub stats: *mut Pair,
    /// At least the tokens, even.
    pub padded: i64,
    /// Sums that begin here.
    pub sums: Option<RowsSums>,
    /// Null, or not 0 on the device where the tile list could not be made.
    pub failed: *const i32,
    /// With their gradients.
    pub sinks: Option<RowsSinks>,
}

/// Chunks of a head and rows of each.
pub fn chunks(padded: i64, heads: i64) -> (i64, i64) {
    let enough = (CHUNKS / heads.max(1)).clamp(1, HEAD_CHUNKS);
    let chunk = ((padded.max(1) + enough - 1) / enough + ROWS - 1) / ROWS * ROWS;
    ((padded.max(1) + chunk - 1) / chunk, chunk)
}

/// How many f64 the gradients of shared sinks are summed in.
pub fn parts(padded: i64, heads: i64) -> usize {
    chunks(padded, heads).0 as usize * heads as usize * SINKS
}

/// The kernels on a device for one input dtype.
#[derive(Clone, Debug)]
pub struct BackwardRows {
    gpu: Arc<Gpu>,
    dtype: DType,
    /// For out in f32, and in the input dtype.
    prepare: [Function; 2],
    /// To f32, and to the input dtype.
    convert: [Function; 2],
    /// Keeps the functions valid.
    _kernels: Arc<Kernels>,
}

impl BackwardRows {
    /// Loads them. The first time on a device may compile, allocate and wait: prepare time.
    pub fn load(gpu: &Arc<Gpu>, dtype: DType) -> Result<BackwardRows> {
        let kernels = kernels::load(gpu, embedded::listed("backward_rows")?)?;
        let name = dtype.name();
        let function = |entry: String| kernels.function(&entry);
        Ok(BackwardRows {
            gpu: gpu.clone(),
            dtype,
            prepare: [
                function(format!("backward_rows_f32_{name}"))?,
                function(format!("backward_rows_{name}_{name}"))?,
            ],
            convert: [
                function("backward_dq_f32".to_owned())?,
                function(format!("backward_dq_{name}"))?,
            ],
            _kernels: kernels,
        })
    }

    /// Enqueues lse2, delta, dsink and the zeros of dq: one launch, behind which the next may begin early.
    ///
    /// # Safety
    /// The tensors were checked as a call's are, rows of out, dout and dq begin at multiples of 16 bytes, and all memory is
    /// good until the kernel has run; nobody else uses `stats`, `parts` and `done` meanwhile.
    pub unsafe fn prepare(&self, call: &RowsCall, on: Stream) -> Result<()> {
        let params = self.params(call)?;
        let units = i64::from(params.chunks) * i64::from(params.heads);
        let mut arguments = Arguments::new();
        arguments.push(&params);
        let function = self.prepare[usize::from(call.from.tensor().dtype() == self.dtype)];
        // SAFETY: the kernel's parameter; the rest is the caller's promise.
        unsafe {
            self.blocks(units, false)
                .run(&self.gpu, function, on, &mut arguments)
        }
    }

    /// Enqueues `to` = the f32 sums `from`, or adds them; both `[tokens, heads, width]`, `to` of the input dtype or f32. It
    /// begins while the kernel before it on the stream ends.
    ///
    /// # Safety
    /// As `prepare`, of `from` and `to`.
    pub unsafe fn convert(&self, from: &Tensor, to: &Tensor, add: bool, on: Stream) -> Result<()> {
        let width = to.shape()[2];
        let params = DqParams {
            from: from.data().cast(),
            to: to.data(),
            from_token: from.stride()[0],
            from_head: from.stride()[1],
            to_token: to.stride()[0],
            to_head: to.stride()[1],
            tokens: to.tokens(),
            heads: to.shape()[1] as i32,
            width: width as i32,
            add: add.into(),
            reserved: 0,
        };
        let threads = to.tokens() * to.shape()[1] * ((width + 7) / 8);
        let blocks = (threads + i64::from(THREADS) - 1) / i64::from(THREADS);
        let mut arguments = Arguments::new();
        arguments.push(&params);
        let function = self.convert[usize::from(to.dtype() == self.dtype)];
        // SAFETY: as in `prepare`.
        unsafe {
            self.blocks(blocks, true)
                .run(&self.gpu, function, on, &mut arguments)
        }
    }

    fn blocks(&self, work: i64, overlap_previous: bool) -> Launch {
        let most = i64::from(self.gpu.properties().multiprocessors) * BLOCKS;
        Launch {
            overlap_previous,
            ..Launch::linear(work.clamp(0, most.max(1)) as u32, THREADS)
        }
    }

    fn params(&self, c: &RowsCall) -> Result<RowsParams> {
        let from = c.from.tensor();
        if c.dout.dtype() != self.dtype || ![self.dtype, DType::F32].contains(&from.dtype()) {
            let message = format!(
                "rows of {} and {} for kernels of {}",
                from.dtype().name(),
                c.dout.dtype().name(),
                self.dtype.name()
            );
            return Err(Error::internal(message));
        }
        let (tokens, heads) = (c.dout.tokens(), c.dout.shape()[1]);
        let (chunks, chunk) = chunks(c.padded, heads);
        let sums = c.sums.map(|s| s.dq);
        let dq_stride = |i: usize| sums.map_or(0, |t| t.stride()[i]);
        let mut flags = 0;
        if c.sums.is_some_and(|s| s.clear) {
            flags |= RowsParams::CLEAR;
        }
        if matches!(c.from, DeltaFrom::Given(_)) {
            flags |= RowsParams::GIVEN;
        }
        let mut params = RowsParams {
            out: from.data(),
            dout: c.dout.data(),
            lse: c.lse.data().cast(),
            stats: c.stats,
            dq: sums.map_or(null_mut(), |t| t.data().cast()),
            failed: c.failed,
            sink: null(),
            dsink: null_mut(),
            parts: null_mut(),
            done: null_mut(),
            out_token: from.stride()[0],
            out_head: from.stride()[1],
            dout_token: c.dout.stride()[0],
            dout_head: c.dout.stride()[1],
            lse_token: c.lse.stride()[0],
            lse_head: c.lse.stride()[1],
            dq_token: dq_stride(0),
            dq_head: dq_stride(1),
            sink_token: 0,
            sink_row: 0,
            sink_head: 0,
            dsink_token: 0,
            dsink_row: 0,
            dsink_head: 0,
            tokens,
            padded: c.padded,
            heads: heads as i32,
            width: c.dout.shape()[2] as i32,
            dq_width: sums.map_or(0, |t| t.shape()[2]) as i32,
            sinks: 0,
            chunks: chunks as i32,
            chunk: chunk as i32,
            flags,
            reserved: 0,
        };
        if let Some(sinks) = &c.sinks {
            params.set_sinks(sinks);
        }
        Ok(params)
    }
}

impl RowsParams {
    fn set_sinks(&mut self, s: &RowsSinks) {
        let shared = s.sink.shape().len() == 2;
        let first = usize::from(!shared);
        let strides = |t: &Tensor| {
            let stride = t.stride();
            let token = if shared { 0 } else { stride[0] };
            (token, stride[first], stride[first + 1])
        };
        self.sink = s.sink.data().cast();
        self.dsink = s.dsink.data().cast();
        (self.sink_token, self.sink_row, self.sink_head) = strides(&s.sink);
        (self.dsink_token, self.dsink_row, self.dsink_head) = strides(&s.dsink);
        self.sinks = s.sink.shape()[first] as i32;
        if shared {
            (self.parts, self.done) = (s.parts, s.done);
            self.flags |= RowsParams::SHARED;
        }
        if s.add {
            self.flags |= RowsParams::ADD_DSINK;
        }
    }
}
