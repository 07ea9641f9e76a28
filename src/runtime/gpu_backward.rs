//! Gradients on one CUDA device by the fast kernels.

use std::sync::Arc;

use super::attn_args::{Backward, scale};
use super::check::{self, Extents};
use super::device_mask::DeviceMask;
use super::device_ranges::{self, Loaded};
use super::device_tiles::expect_prepared;
use super::on_gpu;
use super::single::{Choice, Options, RangeLists};
use crate::backend::cuda::backward::{BackwardCall, BackwardKernels};
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::backward_ranges::{BackwardListShapes, BackwardRanges};
use crate::backend::cuda::backward_rows::DeltaFrom;
use crate::backend::cuda::backward_tiles::BackwardTiles;
use crate::backend::cuda::forward_maps;
use crate::backend::cuda::range_tiles::DeviceRanges;
use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::types::{DType, Error, Mask, Result, Status};

/// Why the fast kernels do not compute this call, each reason on its own; empty when they do.
fn call_reasons(a: &Backward, e: &Extents, gpu: &Gpu) -> Vec<String> {
    let scale = scale(a.softmax_scale, e.shape.head_dim);
    let mut reasons = on_gpu::reasons(&e.shape, scale, a.softcap, gpu);
    if a.dk.dtype() != a.dv.dtype() {
        reasons.push("args.dk and args.dv have two dtypes; the fast kernels write one".to_owned());
    }
    if a.accumulate_dk != a.accumulate_dv {
        reasons
            .push("one of args.dk and args.dv is added to; the fast kernels add to both or none".to_owned());
    }
    if a.accumulate_dk && a.dk.dtype() == e.shape.dtype {
        reasons.push(format!(
            "args.dk of {} is added to; the fast kernels add to f32",
            e.shape.dtype.name()
        ));
    }
    reasons
}

/// What a call asks of the fast kernels; `None` for the textbook kernels, where the caller asks for them or, with the
/// default, where the fast ones cannot. `Status::NotSupported` with every reason when only the fast ones will do.
pub(super) fn choice(
    a: &Backward,
    e: &Extents,
    options: &Options,
    gpu: &Gpu,
) -> Result<Option<BackwardChoice>> {
    if options.backend == Choice::Sdpa {
        return Ok(None);
    }
    let why = call_reasons(a, e, gpu);
    if why.is_empty() {
        return Ok(BackwardChoice::new(
            &e.shape,
            a.softcap > 0.0,
            options.deterministic,
        ));
    }
    match options.backend {
        Choice::Ffa => {
            let message = format!("options.backend ffa: {}", why.join("; "));
            Err(Error::new(Status::NotSupported, message))
        }
        _ => Ok(None),
    }
}

/// Why ranges on a device cannot be taken where the fast kernels do not compute.
pub(super) fn no_ranges(a: &Backward, e: &Extents, options: &Options, gpu: &Gpu) -> Error {
    device_ranges::refuse(&match options.backend {
        Choice::Sdpa => vec!["options.backend is sdpa".to_owned()],
        _ => call_reasons(a, e, gpu),
    })
}

/// Strides and addresses that the kernels can copy by.
pub(super) fn check_layout(a: &Backward) -> Result<()> {
    for (name, t) in [
        ("args.q", &a.q),
        ("args.k", &a.k),
        ("args.v", &a.v),
        ("args.out", &a.out),
        ("args.dout", &a.dout),
        ("args.dq", &a.dq),
        ("args.dk", &a.dk),
        ("args.dv", &a.dv),
    ] {
        forward_maps::check(name, t)?;
    }
    Ok(())
}

fn call_of(a: &Backward, e: &Extents, options: &Options) -> BackwardCall {
    BackwardCall {
        q: a.q,
        k: [Some(a.k), None],
        v: [Some(a.v), None],
        from: DeltaFrom::Out(a.out),
        lse: a.lse,
        dout: a.dout,
        sink: a.sink.zip(a.dsink).map(|(s, d)| (s, d, a.accumulate_dsink)),
        softmax_scale: scale(a.softmax_scale, e.shape.head_dim),
        softcap: a.softcap,
        dq: a.dq,
        dk: [Some(a.dk), None],
        dv: [Some(a.dv), None],
        accumulate_dq: a.accumulate_dq,
        accumulate_keys: a.accumulate_dk,
        sm_margin: options.sm_margin,
        workspace: options.workspace,
    }
}

/// Makes what a call over a mask needs beside its tensors; errors as `backward`.
pub(super) fn prepare(
    mask: &Mask,
    kept: &DeviceMask,
    a: &Backward,
    e: &Extents,
    asked: BackwardChoice,
    on: Stream,
) -> Result<Arc<BackwardTiles>> {
    let gpu = on_gpu::gpu_of(e)?;
    check::backward(a, e, on)?;
    check_layout(a)?;
    stream::expect_on(&gpu, on)?;
    let asked = match a.dq.dtype() == DType::F32 || a.accumulate_dq {
        true => asked,
        false => asked.for_rows(e.tokens_q * e.shape.heads_q, kept.keys_a_query(mask)),
    };
    kept.backward(mask, &gpu, &e.shape, asked, on)
}

/// Enqueues a call over a mask. Errors as the C function documents.
pub(super) fn backward(
    mask: &Mask,
    kept: &DeviceMask,
    a: &Backward,
    e: &Extents,
    asked: BackwardChoice,
    options: &Options,
    on: Stream,
) -> Result<()> {
    let tiles = prepare(mask, kept, a, e, asked, on)?;
    let tokens = (e.tokens_q, e.tokens_k);
    let needed = tiles
        .kernels
        .workspace_bytes(&e.shape, tokens, a.dq.dtype(), a.accumulate_dq)?;
    on_gpu::check_workspace(options, needed, e.device, &a.tensors())?;
    // SAFETY: the tensors were checked, and their memory is the caller's promise (see Tensor); the mask handle keeps the
    // tiles, and must outlive what was enqueued with it.
    unsafe { tiles.enqueue(&call_of(a, e, options), on) }
}

/// Bytes of workspace that no mask makes a call exceed.
pub(super) fn workspace(a: &Backward, e: &Extents, asked: BackwardChoice) -> Result<usize> {
    static LOADED: Loaded<BackwardChoice, BackwardKernels> = Loaded::new();
    let kernels = LOADED.get(&on_gpu::gpu_of(e)?, asked, || Ok(()), BackwardKernels::load)?;
    let tokens = (e.tokens_q, e.tokens_k);
    kernels.workspace_bytes(&e.shape, tokens, a.dq.dtype(), a.accumulate_dq)
}

/// The kernels over ranges. `missing` decides whether they may be loaded now.
fn range_kernels(
    gpu: &Arc<Gpu>,
    asked: BackwardChoice,
    missing: impl FnOnce() -> Result<()>,
) -> Result<Arc<BackwardRanges>> {
    static LOADED: Loaded<BackwardChoice, BackwardRanges> = Loaded::new();
    LOADED.get(gpu, asked, missing, BackwardRanges::load)
}

fn range_lists(
    kernels: &BackwardRanges,
    lists: &RangeLists,
    e: &Extents,
    options: &Options,
) -> Result<BackwardListShapes> {
    let n = lists.q_ranges.tokens();
    kernels.lists(&e.shape, (e.tokens_q, e.tokens_k), n, options.max_items)
}

/// Bytes of workspace that a call over ranges needs.
pub(super) fn ranges_workspace(
    lists: &RangeLists,
    a: &Backward,
    e: &Extents,
    asked: BackwardChoice,
    options: &Options,
) -> Result<usize> {
    device_ranges::checked(lists, e.device)?;
    let kernels = range_kernels(&on_gpu::gpu_of(e)?, asked, || Ok(()))?;
    let shapes = range_lists(&kernels, lists, e, options)?;
    let tokens = (e.tokens_q, e.tokens_k);
    kernels.workspace_bytes(&shapes, &e.shape, tokens, a.dq.dtype(), a.accumulate_dq)
}

/// Loads kernels where they are missing, checks everything but the workspace, and reports what an earlier call met.
pub(super) fn prepare_ranges(
    lists: &RangeLists,
    a: &Backward,
    e: &Extents,
    asked: BackwardChoice,
    on: Stream,
) -> Result<(Arc<BackwardRanges>, DeviceRanges)> {
    let gpu = on_gpu::gpu_of(e)?;
    check::backward(a, e, on)?;
    check_layout(a)?;
    let ranges = device_ranges::checked(lists, e.device)?;
    let mut wrote = vec![("args.dq", &a.dq), ("args.dk", &a.dk), ("args.dv", &a.dv)];
    wrote.extend(a.dsink.as_ref().map(|t| ("args.dsink", t)));
    check::written(&wrote, &device_ranges::named(lists))?;
    stream::expect_on(&gpu, on)?;
    let kernels = range_kernels(&gpu, asked, || expect_prepared(&gpu, on))?;
    kernels.take_error()?;
    Ok((kernels, ranges))
}

/// Enqueues a call over ranges. Errors as the C function documents.
pub(super) fn backward_ranges(
    lists: &RangeLists,
    a: &Backward,
    e: &Extents,
    asked: BackwardChoice,
    options: &Options,
    on: Stream,
) -> Result<()> {
    let (kernels, ranges) = prepare_ranges(lists, a, e, asked, on)?;
    let shapes = range_lists(&kernels, lists, e, options)?;
    let tokens = (e.tokens_q, e.tokens_k);
    let needed = kernels.workspace_bytes(&shapes, &e.shape, tokens, a.dq.dtype(), a.accumulate_dq)?;
    let tensors = [&a.tensors()[..], &device_ranges::named(lists)].concat();
    on_gpu::check_workspace(options, needed, e.device, &tensors)?;
    // SAFETY: the tensors were checked, and their memory is the caller's promise (see Tensor), as is that nobody else uses
    // the workspace meanwhile; the kernels are kept.
    unsafe { kernels.enqueue(&ranges, &shapes, &e.shape, &call_of(a, e, options), on) }
}
