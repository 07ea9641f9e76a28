//! Arithmetic on one device: attention over slices, row gathers and reductions, casts.
//!
//! `Backend` is what the runtime sees. Everything it is given was validated above; implementations check again what
//! memory safety rests on, and return an error rather than panic.

mod args;
pub mod cpu;
pub mod cuda;

pub use args::{BackwardArgs, ForwardArgs};
pub use cpu::CpuBackend;
pub use cuda::CudaBackend;

use crate::types::{Range, Result, Tensor};

/// Arithmetic on one device.
///
/// "Accumulator type" is `shape.dtype.accumulator()`: f64 for f64, else f32. Tensors may have any strides (zero and
/// negative ones on inputs only); the last dimension of q, k, v, dout, out, dq, dk and dv has stride 1. A tensor with
/// 0 tokens may have a null pointer. Errors: `ShapeMismatch`, `DtypeMismatch`,
/// `InvalidStride`, `DeviceMismatch`, `NullPointer`, `InvalidRange`, `OutOfMemory`; all are found before the first
/// write.
pub trait Backend: Send + Sync {
    /// Starts a running result: `out` `[tokens, heads_q, head_dim_v]` = 0, `lse` `[tokens, heads_q]` =
    /// logsumexp of the token's sinks (-inf without), `max_logits` `[heads_q]` f32 = -inf.
    ///
    /// `sink` is f32, `[s, heads_q]` shared by all tokens or `[tokens, s, heads_q]`.
    fn attn_init(
        &self,
        out: Tensor,
        lse: Tensor,
        max_logits: Option<Tensor>,
        sink: Option<Tensor>,
    ) -> Result<()>;

    /// Merges attention over the slices into the running `(out, lse)`.
    fn attn_forward(&self, args: &ForwardArgs<'_>) -> Result<()>;

    /// `delta[t, h]` = sum over the head dimension of `out * dout`, where an `out` of 0 gives 0 whatever `dout` is. `out` and `dout` are any attention dtype, `delta`
    /// is the accumulator type.
    fn attn_delta(&self, out: Tensor, dout: Tensor, delta: Tensor) -> Result<()>;

    /// Overwrites `dsink`, shaped like `sink` and of the accumulator type, with `-exp(sink - lse) * delta`, summed
    /// over tokens in ascending order when the sink is shared.
    fn sink_backward(&self, sink: Tensor, lse: Tensor, delta: Tensor, dsink: Tensor) -> Result<()>;

    /// `dst[h]` = the largest `src[r, h]` over the rows of `src`, -inf without rows; NaN counts for nothing. f32
    /// `[rows, heads]` and `[heads]`.
    fn max_rows(&self, src: Tensor, dst: Tensor) -> Result<()>;

    /// Lets some microseconds pass before what is enqueued behind it, so that what became ready at the same moment on
    /// another stream is on the device first. In host memory nothing runs beside.
    fn stand_by(&self) -> Result<()>;

    /// Adds the gradients of attention over the slices to `dq`, `dk` and `dv`.
    fn attn_backward(&self, args: &BackwardArgs<'_>) -> Result<()>;

    /// Copies the rows of `src` inside `ranges`, one range after the other, to consecutive rows of `dst`. Any dtype,
    /// the same on both sides; `dst` has exactly as many rows as the ranges have tokens.
    fn range_gather(&self, src: Tensor, ranges: &[Range], dst: Tensor) -> Result<()>;

    /// The inverse of `range_gather`: consecutive rows of `src` to the rows of `dst` inside `ranges`.
    fn range_scatter(&self, src: Tensor, dst: Tensor, ranges: &[Range]) -> Result<()>;

    /// Adds consecutive rows of `src` to the rows of `dst` inside `ranges`, in order. Any attention dtypes; the sum is
    /// formed in f64 and rounded once to the dtype of `dst`.
    fn range_reduce(&self, src: Tensor, dst: Tensor, ranges: &[Range]) -> Result<()>;

    /// Merges the consecutive rows of `(out_src, lse_src)` into the rows of `(out_dst, lse_dst)` inside `ranges`,
    /// weighing each side by `exp(lse - merged lse)`; -inf has weight 0 and its `out` is not read.
    fn lse_reduce(
        &self,
        out_src: Tensor,
        lse_src: Tensor,
        out_dst: Tensor,
        lse_dst: Tensor,
        ranges: &[Range],
    ) -> Result<()>;

    /// Divides every element of an attention-dtype tensor by `by`, which is not 0.
    fn divide(&self, dst: Tensor, by: i64) -> Result<()>;

    /// Converts `src` to the dtype of `dst`, rounding to nearest even; adds to `dst` when `accumulate`.
    fn cast(&self, src: Tensor, dst: Tensor, accumulate: bool) -> Result<()>;

    /// Sets every element to zero, whatever the dtype.
    fn fill_zero(&self, dst: Tensor) -> Result<()>;

    /// Whether any element is NaN; false for integer dtypes.
    fn has_nan(&self, tensor: Tensor) -> Result<bool>;
}
