//! What a key needs on a CUDA device before its calls can be enqueued: kernels, tiles of every stage, and their workspace.

use std::sync::Arc;

use super::device_tiles::Cells;
use super::key::Key;
use super::stage_forward::Asked;
use super::stage_tiles::{Part, cells};
use super::workspace::KernelBytes;
use super::{stage_backward, stage_forward};
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::forward::workspace_bound;
use crate::backend::cuda::forward_kernel::{ForwardChoice, ForwardKernel};
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::plan::{Pass, Stage};
use crate::types::{Device, Error, Result};

/// Bytes that kernels work in. The first time, with kernels loaded and tiles made for calls without softcap and max_logits;
/// those of others come with their first call. Fails while `on` is being captured and something is missing.
pub(super) fn kernel_bytes(key: &Key, on: Stream) -> Result<KernelBytes> {
    let mut kept = key.data().kernel_bytes.lock();
    if let Some(bytes) = *kept {
        return Ok(bytes);
    }
    let Device::Cuda(ordinal) = key.context().device() else {
        return Ok(KernelBytes::default());
    };
    let gpu = Gpu::open(ordinal)?;
    let bytes = KernelBytes {
        forward: forward(key, &gpu, on)?,
        backward: backward(key, &gpu, on)?,
    };
    *kept = Some(bytes);
    Ok(bytes)
}

/// Parts of stages that have slices, or of which `always` says so.
fn parts(pass: &Pass, always: impl Fn(usize, Part) -> bool) -> impl Iterator<Item = (usize, &Stage, Part)> {
    let both = |(i, stage)| [(i, stage, Part::Own), (i, stage, Part::Guests)];
    let all = pass.stages.iter().enumerate().flat_map(both);
    all.filter(move |(i, stage, part)| {
        let slices = match part {
            Part::Own => &stage.slices,
            Part::Guests => &stage.guests.slices,
        };
        !slices.is_empty() || always(*i, *part)
    })
}

fn forward(key: &Key, gpu: &Arc<Gpu>, on: Stream) -> Result<usize> {
    let dims = key.dims();
    let asked = Asked {
        softmax_scale: 0.0,
        softcap: 0.0,
        max_logits: false,
        general: false,
    };
    let chosen = stage_forward::choose(key, asked)?;
    let bytes = match chosen {
        Some(choice) => {
            let tokens_k = dims.tokens_k + dims.forward.recv_rows;
            workspace_bound(gpu, &ForwardKernel::load(gpu, choice)?, tokens_k)
        }
        None => 0,
    };
    make_forward(key, gpu, (chosen, bytes), on)?;
    Ok(bytes)
}

fn make_forward(
    key: &Key,
    gpu: &Arc<Gpu>,
    (chosen, bytes): (Option<ForwardChoice>, usize),
    on: Stream,
) -> Result<()> {
    let (dims, shape) = (key.dims(), key.shape());
    let pass = &key.plan().forward;
    let skip = |i: usize, part: Part| stage_forward::skips_idle(key, i, part);
    for (i, stage, part) in parts(pass, |i, part| chosen.is_some() && !skip(i, part)) {
        let cells = || cells(dims, stage, part, skip(i, part), bytes);
        let kept = key.forward_tiles().of(i, part);
        match chosen {
            Some(choice) => drop(kept.forward(cells, (gpu, shape), choice, on)?),
            None => drop(kept.textbook(cells, gpu, shape.dtype, on)?),
        }
    }
    Ok(())
}

/// Makes what a forward call with this kernel needs where it is the first of its kind, before anything of it has begun: later
/// a failure would end the communicator. Bytes that kernels work in.
pub(super) fn before_forward(key: &Key, chosen: Option<ForwardChoice>, on: Stream) -> Result<KernelBytes> {
    let bytes = kernel_bytes(key, on)?;
    if let Device::Cuda(ordinal) = key.context().device() {
        make_forward(key, &Gpu::open(ordinal)?, (chosen, bytes.forward), on)?;
    }
    Ok(bytes)
}

/// The same of a backward call, whose kernels have room in the workspace.
pub(super) fn before_backward(key: &Key, chosen: Option<BackwardChoice>, on: Stream) -> Result<KernelBytes> {
    let bytes = kernel_bytes(key, on)?;
    if let Device::Cuda(ordinal) = key.context().device() {
        let needed = make_backward(key, &Gpu::open(ordinal)?, chosen, on)?;
        if needed > bytes.backward {
            let room = bytes.backward;
            let message =
                format!("kernels of this call need {needed} bytes of workspace, and {room} were prepared");
            return Err(Error::internal(message));
        }
    }
    Ok(bytes)
}

fn backward(key: &Key, gpu: &Arc<Gpu>, on: Stream) -> Result<usize> {
    make_backward(key, gpu, stage_backward::choose(key, 0.0, 0.0)?, on)
}

/// Bytes that its kernels work in.
fn make_backward(key: &Key, gpu: &Arc<Gpu>, chosen: Option<BackwardChoice>, on: Stream) -> Result<usize> {
    let (dims, shape, pass) = (key.dims(), key.shape(), &key.plan().backward);
    let mut bytes = 0;
    for (i, stage, part) in parts(pass, |_, _| false) {
        let cells = || -> Cells { cells(dims, stage, part, true, 0) };
        let kept = key.backward_tiles().of(i, part);
        match chosen {
            Some(choice) => {
                let tiles = kept.backward(cells, (gpu, shape), choice, on)?;
                let tokens_q = match part {
                    Part::Own => dims.tokens_q,
                    Part::Guests => stage.guests.transfer.recv_rows,
                };
                let acc = shape.dtype.accumulator();
                bytes = bytes.max(tiles.workspace_bytes(tokens_q, acc, true)?);
            }
            None => drop(kept.textbook(cells, gpu, shape.dtype, on)?),
        }
    }
    Ok(bytes)
}
