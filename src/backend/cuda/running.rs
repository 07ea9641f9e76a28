//! Launchers of kernels/running.cu.

use super::CudaBackend;
use super::check::{expect_here, expect_rows};
use super::walk::{Sinks, View};
use crate::device::cuda::{Arguments, Launch};
use crate::types::{DType, Result, Tensor};

/// Elements that a lane of `attn_delta` reads at once where it can.
const LANE: i64 = 4;

/// Microseconds that `stand_by` takes: a kernel that has become ready is on the device in some 5, where there is room.
const STAND_BY: i32 = 15;

/// Whether the rows of every tensor can be read four elements at a time.
fn is_wide(tensors: [&Tensor; 2], width: i64) -> bool {
    width % LANE == 0
        && tensors.iter().all(|t| {
            let bytes = (t.dtype().size() as i64 * LANE).min(16);
            let view = View::of(t);
            [t.data() as usize as i64, view.token, view.head]
                .iter()
                .all(|x| x % bytes == 0)
        })
}

impl CudaBackend {
    fn sinks(&self, name: &str, t: &Tensor, dtype: DType, tokens: i64, heads: i64) -> Result<Sinks> {
        expect_here(self.gpu(), name, t)?;
        t.expect_dtype(name, dtype)?;
        Sinks::of(name, t, tokens, heads)
    }

    /// See `Backend::attn_init`.
    pub(super) fn init(
        &self,
        out: &Tensor,
        lse: &Tensor,
        max_logits: Option<&Tensor>,
        sink: Option<&Tensor>,
    ) -> Result<()> {
        let gpu = self.gpu();
        let (tokens, heads, _) = expect_rows(gpu, "out", out)?;
        expect_rows(gpu, "lse", lse)?;
        lse.expect_shape("lse", &[tokens, heads])?;
        let sinks = match sink {
            Some(s) => self.sinks("sink", s, DType::F32, tokens, heads)?,
            None => Sinks::NONE,
        };
        let (mut max_at, mut max_step) = (std::ptr::null_mut(), 0i64);
        if let Some(m) = max_logits {
            expect_here(gpu, "max_logits", m)?;
            m.expect_dtype("max_logits", DType::F32)?;
            m.expect_shape("max_logits", &[heads])?;
            (max_at, max_step) = (m.data(), m.stride()[0] * 4);
        }
        self.zero(out)?;
        let (view, heads_i32) = (View::of(lse), heads as i32);
        let mut arguments = Arguments::new();
        arguments.push(&view).push(&sinks).push(&max_at).push(&max_step);
        arguments.push(&tokens).push(&heads_i32);
        // Without tokens there are still the maxima.
        let threads = (tokens * heads).max(heads);
        // SAFETY: parameters as in kernels/running.cu; shapes were checked.
        unsafe { self.launch_over("running", "attn_init", threads, &mut arguments) }
    }

    /// See `Backend::attn_delta`.
    pub(super) fn delta(&self, out: &Tensor, dout: &Tensor, delta: &Tensor) -> Result<()> {
        let gpu = self.gpu();
        let (tokens, heads, width) = expect_rows(gpu, "out", out)?;
        expect_rows(gpu, "dout", dout)?;
        dout.expect_shape("dout", out.shape())?;
        expect_rows(gpu, "delta", delta)?;
        delta.expect_shape("delta", &out.shape()[..2])?;
        let views = [out, dout, delta].map(View::of);
        let wide = i32::from(is_wide([out, dout], width));
        let (threads, heads, width) = (tokens * heads * 32, heads as i32, width as i32);
        let mut arguments = Arguments::new();
        arguments.push(&views[0]).push(&views[1]).push(&views[2]);
        arguments.push(&tokens).push(&heads).push(&width).push(&wide);
        let name = format!("attn_delta_{}_{}", out.dtype().name(), dout.dtype().name());
        // SAFETY: as in `init`.
        unsafe { self.launch_over("running", &name, threads, &mut arguments) }
    }

    /// See `Backend::sink_backward`.
    pub(super) fn sink_gradient(
        &self,
        sink: &Tensor,
        lse: &Tensor,
        delta: &Tensor,
        dsink: &Tensor,
    ) -> Result<()> {
        let gpu = self.gpu();
        let (tokens, heads, _) = expect_rows(gpu, "lse", lse)?;
        expect_rows(gpu, "delta", delta)?;
        delta.expect_shape("delta", lse.shape())?;
        dsink.expect_shape("dsink", sink.shape())?;
        let from = self.sinks("sink", sink, DType::F32, tokens, heads)?;
        let to = self.sinks("dsink", dsink, lse.dtype(), tokens, heads)?;
        let (lse, delta, heads_i32) = (View::of(lse), View::of(delta), heads as i32);
        let mut arguments = Arguments::new();
        arguments.push(&from).push(&to).push(&lse).push(&delta);
        arguments.push(&tokens).push(&heads_i32);
        let sums = i64::from(from.count) * heads;
        if sink.shape().len() == 3 {
            let threads = tokens * sums;
            // SAFETY: as in `init`.
            return unsafe { self.launch_over("running", "sink_backward_tokens", threads, &mut arguments) };
        }
        let launch = Launch::linear(sums as u32, 512);
        // SAFETY: as in `init`; a block for each sum.
        unsafe { self.launch("running", "sink_backward_shared", &launch, &mut arguments) }
    }

    /// See `Backend::stand_by`.
    pub(super) fn pass_time(&self) -> Result<()> {
        let mut arguments = Arguments::new();
        arguments.push(&STAND_BY);
        // SAFETY: as in `init`.
        unsafe { self.launch("running", "stand_by", &Launch::linear(1, 32), &mut arguments) }
    }

    /// See `Backend::max_rows`.
    pub(super) fn largest_of_rows(&self, src: &Tensor, dst: &Tensor) -> Result<()> {
        for (name, t) in [("src", src), ("dst", dst)] {
            expect_here(self.gpu(), name, t)?;
            t.expect_dtype(name, DType::F32)?;
        }
        let heads = dst.elements();
        src.expect_shape("src", &[src.tokens(), heads])?;
        dst.expect_shape("dst", &[heads])?;
        let steps = [src.stride()[0], src.stride()[1], dst.stride()[0]].map(|s| s * 4);
        let (from, to, rows, columns) = (src.data(), dst.data(), src.tokens(), heads as i32);
        let mut arguments = Arguments::new();
        arguments.push(&from).push(&steps[0]).push(&steps[1]);
        arguments.push(&to).push(&steps[2]).push(&rows).push(&columns);
        // SAFETY: as in `init`.
        unsafe { self.launch_over("running", "max_rows", heads, &mut arguments) }
    }
}
