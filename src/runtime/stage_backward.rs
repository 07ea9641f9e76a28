//! Gradients of the stages of a backward pass, by what computes on the rank's device.

use super::attn_args::{Backward, scale};
use super::context::Session;
use super::gpu_backward;
use super::key::Key;
use super::on_gpu;
use super::stage_forward::{fast_or, key_reasons, margin};
use super::stage_tiles::{Part, cells};
use crate::backend::cuda::backward::BackwardCall;
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::backward_rows::DeltaFrom;
use crate::backend::cuda::forward_maps;
use crate::backend::{Backend, BackwardArgs};
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::plan::Stage;
use crate::types::{Device, Result, Tensor};

/// The fast kernels for the stages of a call with this scale and softcap, if they compute it.
pub(super) fn choose(key: &Key, softmax_scale: f64, softcap: f64) -> Result<Option<BackwardChoice>> {
    let Device::Cuda(ordinal) = key.context().device() else {
        return Ok(None);
    };
    let (gpu, shape, compute) = (Gpu::open(ordinal)?, key.shape(), &key.config().compute);
    let softmax_scale = scale(softmax_scale, shape.head_dim);
    let mut why = on_gpu::reasons(shape, softmax_scale, softcap, &gpu);
    why.extend(key_reasons(key));
    fast_or(key, why, || {
        BackwardChoice::new(shape, softcap > 0.0, compute.deterministic)
    })
}

/// The same for a call with these arguments, whose layout is checked.
pub(super) fn choose_for(key: &Key, a: &Backward) -> Result<Option<BackwardChoice>> {
    let chosen = choose(key, a.softmax_scale, a.softcap)?;
    if chosen.is_some() {
        gpu_backward::check_layout(a)?;
    }
    Ok(chosen)
}

/// Computes the stages of one call.
pub(super) struct StageBackward<'a> {
    pub key: &'a Key,
    pub session: &'a Session<'a>,
    /// The fast kernels, if they compute.
    pub fast: Option<BackwardChoice>,
    /// Workspace of kernels.
    pub workspace: Tensor,
    pub stream: Stream,
}

impl StageBackward<'_> {
    /// Adds the gradients of a part of stage `i` to dq, dk and dv. `exchanges` run meanwhile.
    pub fn run(
        &self,
        (i, stage): (usize, &Stage),
        part: Part,
        args: &BackwardArgs<'_>,
        exchanges: usize,
    ) -> Result<()> {
        let Some(cuda) = self.session.on().cuda() else {
            return self.session.backend().attn_backward(args);
        };
        if args.slices.is_empty() {
            return Ok(());
        }
        let (dims, gpu, shape) = (self.key.dims(), cuda.gpu(), self.key.shape());
        let kept = self.key.backward_tiles().of(i, part);
        let cells = || cells(dims, stage, part, true, 0);
        let Some(choice) = self.fast else {
            let tiles = kept.textbook(cells, gpu, shape.dtype, self.stream)?;
            return cuda.clone().with_attention(tiles).attn_backward(args);
        };
        for (name, t) in [("q", args.q), ("dout", args.dout), ("dq", args.dq)] {
            forward_maps::check(name, &t)?;
        }
        let tiles = kept.backward(cells, (gpu, shape), choice, self.stream)?;
        let call = BackwardCall {
            q: args.q,
            k: args.k,
            v: args.v,
            from: DeltaFrom::Given(args.delta),
            lse: args.lse,
            dout: args.dout,
            sink: None,
            softmax_scale: args.softmax_scale,
            softcap: args.softcap,
            dq: args.dq,
            dk: args.dk,
            dv: args.dv,
            accumulate_dq: true,
            accumulate_keys: true,
            sm_margin: margin(self.key.config().compute.backward_sm_margin, exchanges),
            workspace: self.workspace.data(),
        };
        // SAFETY: as in `StageForward::run`; the workspace is as large as the key's tiles ask for.
        unsafe { tiles.enqueue(&call, self.stream) }
    }
}
