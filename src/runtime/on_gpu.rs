//! Attention on one CUDA device.

use std::sync::Arc;

use super::attn_args::{Forward, scale};
use super::check::{self, Extents};
use super::device_mask::DeviceMask;
use super::single::{Choice, Options};
use crate::backend::cuda::forward::{self, ForwardCall, ForwardTiles};
use crate::backend::cuda::forward_kernel::{ForwardChoice, ForwardKernel};
use crate::backend::cuda::forward_maps;
use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::types::{AttnShape, DType, Device, Error, Mask, Result, Status, Tensor};

/// Why the fast forward kernels cannot compute a call, each reason on its own; empty when they can.
pub fn reasons(shape: &AttnShape, softmax_scale: f64, gpu: &Gpu) -> Vec<String> {
    let mut reasons = Vec::new();
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
    if softmax_scale <= 0.0 {
        reasons.push(format!(
            "softmax_scale {softmax_scale}; the fast kernels take positive ones"
        ));
    }
    reasons
}

/// What a forward call asks of the fast kernels. `Status::NotSupported` with every reason when they cannot.
fn choice(a: &Forward, e: &Extents, options: &Options, gpu: &Gpu) -> Result<ForwardChoice> {
    let mut why = reasons(&e.shape, scale(a.softmax_scale, e.shape.head_dim), gpu);
    if options.backend == Choice::Sdpa {
        why.push("options.backend sdpa: this build has textbook attention on the CPU only".to_owned());
    }
    let general = a.out.dtype() != e.shape.dtype || options.accumulate || a.sink.is_some();
    let found = ForwardChoice::new(&e.shape, a.softcap > 0.0, a.max_logits.is_some(), general);
    match found {
        Some(choice) if why.is_empty() => Ok(choice),
        _ => Err(Error::new(Status::NotSupported, why.join("; "))),
    }
}

/// Strides and addresses that the kernels can copy by.
fn check_layout(a: &Forward) -> Result<()> {
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

/// The device of a call that was found good, and the kernel that it asks for.
struct Call {
    gpu: Arc<Gpu>,
    shape: AttnShape,
    choice: ForwardChoice,
}

impl Call {
    fn new(a: &Forward, e: Extents, options: &Options, on: Stream) -> Result<Call> {
        let Device::Cuda(ordinal) = e.device else {
            return Err(Error::internal("a call on host memory was sent to a CUDA device"));
        };
        let gpu = Gpu::open(ordinal)?;
        check::forward(a, &e, on)?;
        let choice = choice(a, &e, options, &gpu)?;
        check_layout(a)?;
        stream::expect_on(&gpu, on)?;
        Ok(Call {
            gpu,
            shape: e.shape,
            choice,
        })
    }

    fn tiles(&self, mask: &Mask, kept: &DeviceMask, on: Stream) -> Result<Arc<ForwardTiles>> {
        kept.forward(mask, &self.gpu, &self.shape, self.choice, on)
    }
}

/// Makes everything that the call needs beside its tensors. Errors as `forward`.
pub(super) fn prepare(
    mask: &Mask,
    kept: &DeviceMask,
    a: &Forward,
    e: Extents,
    options: &Options,
    on: Stream,
) -> Result<()> {
    let call = Call::new(a, e, options, on)?;
    call.tiles(mask, kept, on).map(|_| ())
}

/// Enqueues the call. Errors as the C function documents.
pub(super) fn forward(
    mask: &Mask,
    kept: &DeviceMask,
    a: &Forward,
    e: Extents,
    options: &Options,
    on: Stream,
) -> Result<()> {
    let call = Call::new(a, e, options, on)?;
    let tiles = call.tiles(mask, kept, on)?;
    let needed = tiles.workspace_bytes();
    if options.workspace_bytes < needed {
        let message = format!(
            "options.workspace_size is {}; this call needs {needed} bytes",
            options.workspace_bytes
        );
        return Err(Error::new(Status::BufferTooSmall, message));
    }
    check_workspace(a, options, needed, e.device)?;
    let launch = ForwardCall {
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
        sm_margin: options.sm_margin,
        workspace: options.workspace,
    };
    // SAFETY: the tensors were checked, and their memory is the caller's promise (see Tensor); the mask handle keeps
    // the tiles, and must outlive what was enqueued with it.
    unsafe { tiles.enqueue(&launch, on) }
}

/// The workspace is aligned and shares no memory with the call's tensors.
fn check_workspace(a: &Forward, options: &Options, needed: usize, device: Device) -> Result<()> {
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
    let optional = [
        ("args.sink", &a.sink),
        ("args.lse", &a.lse),
        ("args.max_logits", &a.max_logits),
    ];
    let mut others = vec![
        ("args.q", &a.q),
        ("args.k", &a.k),
        ("args.v", &a.v),
        ("args.out", &a.out),
    ];
    others.extend(
        optional
            .iter()
            .filter_map(|(name, t)| t.as_ref().map(|t| (*name, t))),
    );
    check::written(&[("options.workspace", &used)], &others)
}

/// Bytes of workspace that no mask makes a call exceed.
pub(super) fn forward_workspace(a: &Forward, e: &Extents, options: &Options) -> Result<usize> {
    let Device::Cuda(ordinal) = e.device else {
        return Err(Error::internal("a call on host memory was sent to a CUDA device"));
    };
    let gpu = Gpu::open(ordinal)?;
    let asked = choice(a, e, options, &gpu)?;
    let general = ForwardChoice {
        general: true,
        ..asked
    };
    let kernel = ForwardKernel::load(&gpu, general)?;
    Ok(forward::workspace_bound(&gpu, &kernel, a.k.tokens()))
}
