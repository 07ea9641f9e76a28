//! Attention on one CUDA device.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::attn_args::{Forward, scale};
use super::check::{self, Extents};
use super::device_mask::DeviceMask;
use super::single::{Choice, Options};
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::forward::{self, ForwardTiles};
use crate::backend::cuda::forward_kernel::{ForwardChoice, ForwardKernel};
use crate::backend::cuda::forward_launch::ForwardCall;
use crate::backend::cuda::forward_maps;
use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::types::{AttnShape, DType, Device, Error, Mask, Result, Status, Tensor};

/// Positive scales that the fast kernels take: in f32, they and their products with logits stay normal numbers.
const SCALES: RangeInclusive<f64> = 1e-30..=1e6;

/// Softcaps that they take: their tanh is right to 2^-23 of 1, which the softcap makes an error of a logit.
const SOFTCAPS: RangeInclusive<f64> = 1e-6..=1e3;

/// Why the fast forward kernels cannot compute a call, each reason on its own; empty when they can.
pub fn reasons(shape: &AttnShape, softmax_scale: f64, softcap: f64, gpu: &Gpu) -> Vec<String> {
    let mut reasons = numbers(softmax_scale, softcap);
    let p = gpu.properties();
    if p.major != 9 {
        reasons.push(format!(
            "CUDA device {} ({}) has compute capability {}.{}; the fast kernels need 9.0",
            gpu.ordinal(),
            p.name,
            p.major,
            p.minor
        ));
    }
    if !matches!(shape.dtype, DType::Bf16 | DType::F16) {
        reasons.push(format!(
            "dtype {}; the fast kernels take bf16 and f16",
            shape.dtype.name()
        ));
    }
    for (name, value) in [("head_dim", shape.head_dim), ("head_dim_v", shape.head_dim_v)] {
        if value > 256 {
            reasons.push(format!("{name} {value}; the fast kernels take up to 256"));
        }
    }
    reasons
}

/// Those of them that lie in numbers.
fn numbers(softmax_scale: f64, softcap: f64) -> Vec<String> {
    let mut reasons = Vec::new();
    for (name, value, taken, or) in [
        ("softmax_scale", softmax_scale, SCALES, ""),
        ("softcap", softcap, SOFTCAPS, "0 or "),
    ] {
        if !taken.contains(&value) && (or.is_empty() || value != 0.0) {
            reasons.push(format!(
                "{name} {value:e}; the fast kernels take {or}{:e} to {:e}",
                taken.start(),
                taken.end()
            ));
        }
    }
    reasons
}

/// The device of a call.
pub(super) fn gpu_of(e: &Extents) -> Result<Arc<Gpu>> {
    match e.device {
        Device::Cuda(ordinal) => Gpu::open(ordinal),
        Device::Cpu => Err(Error::internal("a call on host memory was sent to a CUDA device")),
    }
}

/// What a forward call asks of the fast kernels; `None` for the textbook kernels, where the caller asks for them or, with
/// the default, where the fast ones cannot. `Status::NotSupported` with every reason when only the fast ones will do.
pub(super) fn choice(
    a: &Forward,
    e: &Extents,
    options: &Options,
    gpu: &Gpu,
) -> Result<Option<ForwardChoice>> {
    if options.backend == Choice::Sdpa {
        return Ok(None);
    }
    let why = reasons(&e.shape, scale(a.softmax_scale, e.shape.head_dim), a.softcap, gpu);
    if !why.is_empty() {
        return match options.backend {
            Choice::Ffa => {
                let message = format!("options.backend ffa: {}", why.join("; "));
                Err(Error::new(Status::NotSupported, message))
            }
            _ => Ok(None),
        };
    }
    let general = a.out.dtype() != e.shape.dtype || options.accumulate || a.sink.is_some();
    Ok(ForwardChoice::new(
        &e.shape,
        a.softcap > 0.0,
        a.max_logits.is_some(),
        general,
    ))
}

/// The textbook kernels over a mask.
pub(super) fn textbook(mask: &Mask, kept: &DeviceMask, e: &Extents, on: Stream) -> Result<CudaBackend> {
    let gpu = gpu_of(e)?;
    let attention = kept.textbook(mask, &gpu, e.shape.dtype, on)?;
    Ok(CudaBackend::new(&gpu, on)?.with_attention(attention))
}

/// Strides and addresses that the kernels can copy by.
pub(super) fn check_layout(a: &Forward) -> Result<()> {
    for (name, t) in [
        ("args.q", &a.q),
        ("args.k", &a.k),
        ("args.v", &a.v),
        ("args.out", &a.out),
    ] {
        forward_maps::check(name, t)?;
    }
    Ok(())
}

/// Makes what a call of the fast kernels needs beside its tensors; errors as `forward`.
pub(super) fn prepare(
    mask: &Mask,
    kept: &DeviceMask,
    a: &Forward,
    e: &Extents,
    asked: ForwardChoice,
    on: Stream,
) -> Result<Arc<ForwardTiles>> {
    let gpu = gpu_of(e)?;
    check::forward(a, e, on)?;
    check_layout(a)?;
    stream::expect_on(&gpu, on)?;
    kept.forward(mask, &gpu, &e.shape, asked, on)
}

/// What a call brings to a launch.
pub(super) fn call_of(a: &Forward, e: &Extents, options: &Options) -> ForwardCall {
    ForwardCall {
        q: a.q,
        k: [Some(a.k), None],
        v: [Some(a.v), None],
        sink: a.sink,
        softmax_scale: scale(a.softmax_scale, e.shape.head_dim),
        softcap: a.softcap,
        out: a.out,
        lse: a.lse,
        max_logits: a.max_logits,
        accumulate: options.accumulate,
        earlier: None,
        sm_margin: options.sm_margin,
        workspace: options.workspace,
    }
}

/// Enqueues a call of the fast kernels. Errors as the C function documents.
pub(super) fn forward(
    mask: &Mask,
    kept: &DeviceMask,
    a: &Forward,
    e: &Extents,
    asked: ForwardChoice,
    options: &Options,
    on: Stream,
) -> Result<()> {
    let tiles = prepare(mask, kept, a, e, asked, on)?;
    check_workspace(options, tiles.workspace_bytes(), e.device, &a.tensors())?;
    let launch = call_of(a, e, options);
    // SAFETY: the tensors were checked, and their memory is the caller's promise (see Tensor); the mask handle keeps
    // the tiles, and must outlive what was enqueued with it.
    unsafe { tiles.enqueue(&launch, on) }
}

/// The workspace is large enough and aligned, and shares no memory with the tensors of the call.
pub(super) fn check_workspace(
    options: &Options,
    needed: usize,
    device: Device,
    tensors: &[check::Named<'_>],
) -> Result<()> {
    if options.workspace_bytes < needed {
        let message = format!(
            "options.workspace_size is {}; this call needs {needed} bytes",
            options.workspace_bytes
        );
        return Err(Error::new(Status::BufferTooSmall, message));
    }
    if needed == 0 {
        return Ok(());
    }
    if options.workspace.is_null() {
        return Err(Error::new(Status::NullPointer, "options.workspace is NULL"));
    }
    if !(options.workspace as usize).is_multiple_of(256) {
        return Err(Error::argument(format!(
            "options.workspace lies at {:p}; it must be aligned to 256 bytes",
            options.workspace
        )));
    }
    // SAFETY: the caller's workspace, of which only the address is looked at here.
    let used = unsafe { Tensor::dense(options.workspace, DType::U8, device, &[needed as i64]) };
    check::written(&[("options.workspace", &used)], tensors)
}

/// Bytes of workspace that no mask makes a call of the fast kernels exceed.
pub(super) fn forward_workspace(a: &Forward, e: &Extents, asked: ForwardChoice) -> Result<usize> {
    let gpu = gpu_of(e)?;
    let kernel = ForwardKernel::load(&gpu, asked)?;
    Ok(forward::workspace_bound(&gpu, &kernel, a.k.tokens()))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    /// Outside of them f32 arithmetic makes NaN of -inf, or tanh too coarse a logit.
    #[test]
    fn numbers_that_f32_cannot_carry_are_named() {
        for (softmax_scale, softcap) in [(0.088, 0.0), (1e-30, 15.0), (1e6, 1e3), (1.0, 1e-6)] {
            assert!(numbers(softmax_scale, softcap).is_empty());
        }
        for (softmax_scale, softcap, name) in [
            (-0.1, 0.0, "softmax_scale -1e-1"),
            (1e-46, 0.0, "softmax_scale 1e-46"),
            (1e39, 30.0, "softmax_scale 1e39"),
            (0.1, 1e-60, "softcap 1e-60"),
            (0.1, 1e4, "softcap 1e4"),
        ] {
            let reasons = numbers(softmax_scale, softcap);
            assert!(reasons.len() == 1 && reasons[0].starts_with(name), "{reasons:?}");
        }
        assert_eq!(numbers(-1.0, 1e9).len(), 2);
    }
}
