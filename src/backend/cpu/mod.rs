//! The reference backend: any dtype outside, f64 inside, on host memory.
//!
//! Blocks of queries and keys are converted to f64 once and multiplied by vector kernels chosen for the processor at
//! run time. Every result is the same for any number of threads; it may differ in its last bits between processors
//! with other vector widths.

mod backward;
mod blocks;
mod element;
mod elementwise;
mod exp;
mod forward;
mod kernels;
mod panel;
mod problem;
mod product;
mod ranges;
mod rows;
mod running;
mod scratch;
mod threads;
mod vector;
mod view;
mod walk;

use super::{Backend, BackwardArgs, ForwardArgs};
use crate::types::{Range, Result, Tensor};
use kernels::Kernels;

/// Attention on the processor. Holds no memory and no threads between calls.
#[derive(Clone, Copy, Debug)]
pub struct CpuBackend {
    threads: usize,
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuBackend {
    /// A backend that uses up to as many threads as the process may run at once.
    pub fn new() -> Self {
        Self::with_threads(std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    }

    /// A backend that uses up to `threads` threads, the caller's among them; 0 counts as 1.
    pub fn with_threads(threads: usize) -> Self {
        Self {
            threads: threads.max(1),
        }
    }
}

impl Backend for CpuBackend {
    fn attn_init(
        &self,
        out: Tensor,
        lse: Tensor,
        max_logits: Option<Tensor>,
        sink: Option<Tensor>,
    ) -> Result<()> {
        running::init(&out, &lse, max_logits.as_ref(), sink.as_ref())
    }

    fn attn_forward(&self, args: &ForwardArgs<'_>) -> Result<()> {
        forward::forward(Kernels::best(), self.threads, args)
    }

    fn attn_delta(&self, out: Tensor, dout: Tensor, delta: Tensor) -> Result<()> {
        running::delta(&out, &dout, &delta)
    }

    fn stand_by(&self) -> Result<()> {
        Ok(())
    }

    fn max_rows(&self, src: Tensor, dst: Tensor) -> Result<()> {
        running::max_rows(&src, &dst)
    }

    fn sink_backward(&self, sink: Tensor, lse: Tensor, delta: Tensor, dsink: Tensor) -> Result<()> {
        running::sink_backward(&sink, &lse, &delta, &dsink)
    }

    fn attn_backward(&self, args: &BackwardArgs<'_>) -> Result<()> {
        backward::backward(Kernels::best(), self.threads, args)
    }

    fn range_gather(&self, src: Tensor, ranges: &[Range], dst: Tensor) -> Result<()> {
        ranges::gather(&src, ranges, &dst)
    }

    fn range_scatter(&self, src: Tensor, dst: Tensor, ranges: &[Range]) -> Result<()> {
        ranges::scatter(&src, &dst, ranges)
    }

    fn range_reduce(&self, src: Tensor, dst: Tensor, ranges: &[Range]) -> Result<()> {
        ranges::reduce(&src, &dst, ranges)
    }

    fn lse_reduce(
        &self,
        out_src: Tensor,
        lse_src: Tensor,
        out_dst: Tensor,
        lse_dst: Tensor,
        ranges: &[Range],
    ) -> Result<()> {
        ranges::lse_reduce((&out_src, &lse_src), (&out_dst, &lse_dst), ranges)
    }

    fn divide(&self, dst: Tensor, by: i64) -> Result<()> {
        elementwise::divide(&dst, by)
    }

    fn cast(&self, src: Tensor, dst: Tensor, accumulate: bool) -> Result<()> {
        elementwise::cast(&src, &dst, accumulate)
    }

    fn fill_zero(&self, dst: Tensor) -> Result<()> {
        elementwise::fill_zero(&dst)
    }

    fn has_nan(&self, tensor: Tensor) -> Result<bool> {
        elementwise::has_nan(&tensor)
    }
}
