//! Attention on one device, without a communicator.

use super::attn_args::{Backward, Forward, scale};
use super::check::{self, Extents};
use super::device_mask::DeviceMask;
use super::device_ranges;
use super::gpu_backward;
use super::on_gpu;
use super::scratch::Scratch;
use crate::backend::cuda::backward_kernel::BackwardChoice;
use crate::backend::cuda::forward_kernel::ForwardChoice;
use crate::backend::{Backend, BackwardArgs, CpuBackend, ForwardArgs};
use crate::device::cuda::Gpu;
use crate::device::{Carver, Stream};
use crate::types::{
    AttnShape, DType, Device, Error, Mask, MaskType, Range, Result, Slice, StageSlice, Status, Tensor,
    TypedSlice,
};

/// A mask as tensors on the device. Ranges are clamped to the totals before the type's diagonals are laid through their
/// corners; a cell covered twice counts twice.
#[derive(Clone, Copy, Debug)]
pub struct RangeLists {
    /// i32 `[n, 2]`.
    pub q_ranges: Tensor,
    /// i32 `[n, 2]`.
    pub k_ranges: Tensor,
    /// i32 `[n]`.
    pub mask_types: Tensor,
}

/// Where the mask comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A mask handle: the mask, and what it keeps on devices.
    Mask(&'a Mask, &'a DeviceMask),
    /// Tensors on the device.
    Ranges(&'a RangeLists),
}

/// Which kernels compute.
pub use crate::types::KernelChoice as Choice;

/// How to compute, beside the tensors.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Which kernels compute.
    pub backend: Choice,
    /// Forward: out (acc) and lse hold an earlier result that this one is merged into.
    pub accumulate: bool,
    /// Backward: the same bits on every run.
    pub deterministic: bool,
    /// Multiprocessors left to others.
    pub sm_margin: i32,
    /// Ranges on a device: room for pairs of a tile and a range that meet; 0 for the default.
    pub max_items: i64,
    /// Workspace, aligned to 256 bytes.
    pub workspace: *mut u8,
    /// Bytes of workspace.
    pub workspace_bytes: usize,
}

/// Heads and dimensions as the tensors have them.
fn shape_of(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<AttnShape> {
    for (name, t) in [("args.q", q), ("args.k", k), ("args.v", v)] {
        if t.shape().len() != 3 {
            let message = format!(
                "{name} has {} dimensions; it must have 3: [tokens, heads, head_dim]",
                t.shape().len()
            );
            return Err(Error::new(Status::ShapeMismatch, message));
        }
    }
    let (heads_q, heads_kv) = (q.shape()[1], k.shape()[1]);
    AttnShape {
        heads_q,
        heads_kv,
        head_dim: q.shape()[2],
        head_dim_v: v.shape()[2],
        dtype: q.dtype(),
    }
    .validate()
}

/// The CPU backend, unless something was asked for that needs a GPU.
fn cpu(options: &Options) -> Result<CpuBackend> {
    if options.backend == Choice::Ffa {
        let message = "options.backend ffa: the fast kernels need a CUDA device, and the tensors lie in host memory; \
                       use the default or sdpa";
        return Err(Error::new(Status::NotSupported, message));
    }
    Ok(CpuBackend::new())
}

/// Tokens from the mask, or from the tensors when ranges give the mask.
fn extents(source: &Source<'_>, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Extents> {
    let shape = shape_of(q, k, v)?;
    let (tokens_q, tokens_k) = match source {
        Source::Mask(m, _) => (m.total_q(), m.total_k()),
        Source::Ranges(_) => (q.tokens(), k.tokens()),
    };
    // Where they lie apart, the checks that follow name the first that is not in host memory.
    let together = [k, v].iter().all(|t| t.device() == q.device());
    Ok(Extents {
        tokens_q,
        tokens_k,
        shape,
        device: if together { q.device() } else { Device::Cpu },
    })
}

/// The same of the tensors of a size query, where there is no mask.
fn on_device(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Extents> {
    Ok(Extents {
        tokens_q: q.tokens(),
        tokens_k: k.tokens(),
        shape: shape_of(q, k, v)?,
        device: q.device(),
    })
}

/// Integers of a host tensor `[n]` or `[n, 2]`, dense.
fn integers(name: &str, t: &Tensor, shape: &[i64]) -> Result<Vec<i32>> {
    check::place((name, t))?;
    t.expect_dtype(name, DType::I32)?;
    t.expect_shape(name, shape)?;
    let mut copy = Scratch::host(DType::I32, shape.to_vec())?;
    CpuBackend::new().range_gather(*t, &[Range::new(0, t.tokens())], copy.tensor())?;
    Ok(copy
        .host_bytes()
        .chunks_exact(4)
        .map(|b| i32::from_ne_bytes(b.try_into().unwrap_or_default()))
        .collect())
}

/// The slices to compute.
fn slices(source: &Source<'_>, e: &Extents) -> Result<Vec<StageSlice>> {
    let local = |slice: &Slice| StageSlice {
        slice: *slice,
        source: 0,
    };
    let lists = match source {
        Source::Mask(m, _) => return Ok(m.slices().iter().map(local).collect()),
        Source::Ranges(lists) => lists,
    };
    let n = lists.q_ranges.tokens();
    let q = integers("options.q_ranges", &lists.q_ranges, &[n, 2])?;
    let k = integers("options.k_ranges", &lists.k_ranges, &[n, 2])?;
    let types = integers("options.mask_types", &lists.mask_types, &[n])?;
    let clamp = |ends: &[i32], total: i64| {
        let start = i64::from(ends[0]).clamp(0, total);
        Range::new(start, i64::from(ends[1]).clamp(start, total))
    };
    (0..n as usize)
        .map(|i| {
            let mask_type = MaskType::from_i32(types[i])
                .map_err(|e| Error::new(e.status, format!("options.mask_types[{i}]: {}", e.message)))?;
            let (q, k) = (clamp(&q[2 * i..], e.tokens_q), clamp(&k[2 * i..], e.tokens_k));
            Ok(local(&Slice::from_typed(&TypedSlice { q, k, mask_type })))
        })
        .collect()
}

/// Hands out accumulators for outputs that have another dtype; fails with what the size query would have said.
struct Space {
    carver: Carver,
}

impl Space {
    /// `others` are the tensors of the call, with which the workspace may share no memory.
    fn over(options: &Options, needed: usize, device: Device, others: &[check::Named<'_>]) -> Result<Space> {
        if options.workspace_bytes < needed {
            let message = format!(
                "options.workspace_size is {}; this call needs {needed} bytes",
                options.workspace_bytes
            );
            return Err(Error::new(Status::BufferTooSmall, message));
        }
        let bytes = if needed == 0 { 0 } else { options.workspace_bytes };
        let base = if needed == 0 {
            std::ptr::null_mut()
        } else {
            options.workspace
        };
        let carver =
            Carver::over(base, bytes).map_err(|e| Error::new(e.status, format!("options.{}", e.message)))?;
        // SAFETY: the caller's workspace, of which only the address is looked at here.
        let used = unsafe { Tensor::dense(base, DType::U8, device, &[needed as i64]) };
        check::written(&[("options.workspace", &used)], others)?;
        Ok(Space { carver })
    }

    fn like(carver: &mut Carver, dtype: DType, device: Device, shape: &[i64]) -> Result<Tensor> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |b, &n| b.checked_mul(n as usize))
            .unwrap_or(usize::MAX);
        let data = carver.take(bytes)?;
        // SAFETY: the carver gave `bytes` bytes of the caller's workspace to this tensor alone, for this call; while
        // measuring the pointer is null and the tensor is dropped unused.
        Ok(unsafe { Tensor::dense(data, dtype, device, shape) })
    }
}

/// What forward works in: running out and lse.
fn carve_forward(a: &Forward, s: &AttnShape, carver: &mut Carver) -> Result<(Tensor, Tensor)> {
    let acc = s.dtype.accumulator();
    let tokens = a.q.tokens();
    let out = if a.out.dtype() == acc {
        a.out
    } else {
        Space::like(carver, acc, a.q.device(), &[tokens, s.heads_q, s.head_dim_v])?
    };
    let lse = a.lse.map_or_else(
        || Space::like(carver, acc, a.q.device(), &[tokens, s.heads_q]),
        Ok,
    )?;
    Ok((out, lse))
}

/// What backward works in: delta, running dq, dk and dv, and dsink when it is added to.
fn carve_backward(a: &Backward, s: &AttnShape, carver: &mut Carver) -> Result<[Tensor; 5]> {
    let acc = s.dtype.accumulator();
    let on = a.q.device();
    let delta = Space::like(carver, acc, on, &[a.q.tokens(), s.heads_q])?;
    let mut running = |t: &Tensor| {
        if t.dtype() == acc {
            Ok(*t)
        } else {
            Space::like(carver, acc, on, t.shape())
        }
    };
    let (dq, dk, dv) = (running(&a.dq)?, running(&a.dk)?, running(&a.dv)?);
    let dsink = match a.dsink {
        Some(t) if a.accumulate_dsink => Space::like(carver, acc, on, t.shape())?,
        Some(t) => t,
        None => delta,
    };
    Ok([delta, dq, dk, dv, dsink])
}

/// What computes a call, by what it asks of the fast kernels.
enum Engine<'a, C> {
    /// The fast kernels of a CUDA device.
    Fast(&'a Mask, &'a DeviceMask, C),
    /// The same, over ranges that lie there.
    Ranges(&'a RangeLists, C),
    /// The CPU, or textbook kernels.
    Steps(Box<dyn Backend>),
}

/// Decides it, once the call was found good. Loads kernels and makes tiles where they are missing.
fn forward_engine<'a>(
    source: &Source<'a>,
    a: &Forward,
    e: &Extents,
    options: &Options,
    stream: Stream,
) -> Result<Engine<'a, ForwardChoice>> {
    if options.accumulate {
        check_accumulate(a, &e.shape)?;
    }
    if e.device == Device::Cpu {
        check::forward(a, e, stream)?;
        return Ok(Engine::Steps(Box::new(cpu(options)?)));
    }
    let gpu = on_gpu::gpu_of(e)?;
    match (source, on_gpu::choice(a, e, options, &gpu)?) {
        (Source::Mask(mask, kept), Some(asked)) => Ok(Engine::Fast(mask, kept, asked)),
        (Source::Mask(mask, kept), None) => {
            check::forward(a, e, stream)?;
            Ok(Engine::Steps(Box::new(on_gpu::textbook(mask, kept, e, stream)?)))
        }
        (Source::Ranges(lists), Some(asked)) => Ok(Engine::Ranges(lists, asked)),
        (Source::Ranges(_), None) => Err(no_ranges(a, e, options, &gpu)),
    }
}

/// Why ranges on a device cannot be taken where the fast kernels do not compute.
fn no_ranges(a: &Forward, e: &Extents, options: &Options, gpu: &Gpu) -> Error {
    device_ranges::refuse(&match options.backend {
        Choice::Sdpa => vec!["options.backend is sdpa".to_owned()],
        _ => on_gpu::reasons(&e.shape, scale(a.softmax_scale, e.shape.head_dim), a.softcap, gpu),
    })
}

/// The same for a backward call.
fn backward_engine<'a>(
    source: &Source<'a>,
    a: &Backward,
    e: &Extents,
    options: &Options,
    stream: Stream,
) -> Result<Engine<'a, BackwardChoice>> {
    if options.accumulate {
        return Err(Error::argument(
            "options.accumulate is for forward; backward takes MAGI_ACCUMULATE_* in args.flags",
        ));
    }
    if e.device == Device::Cpu {
        check::backward(a, e, stream)?;
        return Ok(Engine::Steps(Box::new(cpu(options)?)));
    }
    let gpu = on_gpu::gpu_of(e)?;
    match (source, gpu_backward::choice(a, e, options, &gpu)?) {
        (Source::Mask(mask, kept), Some(asked)) => Ok(Engine::Fast(mask, kept, asked)),
        (Source::Mask(mask, kept), None) => {
            check::backward(a, e, stream)?;
            Ok(Engine::Steps(Box::new(on_gpu::textbook(mask, kept, e, stream)?)))
        }
        (Source::Ranges(lists), Some(asked)) => Ok(Engine::Ranges(lists, asked)),
        (Source::Ranges(_), None) => Err(gpu_backward::no_ranges(a, e, options, &gpu)),
    }
}

/// Slices for a backend that walks them; those on devices have tiles.
fn slices_for(source: &Source<'_>, e: &Extents) -> Result<Vec<StageSlice>> {
    match e.device {
        Device::Cpu => slices(source, e),
        Device::Cuda(_) => Ok(Vec::new()),
    }
}

/// Makes everything that `forward` needs beside its tensors, so that it only enqueues.
pub fn forward_prepare(source: Source<'_>, a: &Forward, options: &Options, stream: Stream) -> Result<()> {
    let e = extents(&source, &a.q, &a.k, &a.v)?;
    match forward_engine(&source, a, &e, options, stream)? {
        Engine::Fast(mask, kept, asked) => on_gpu::prepare(mask, kept, a, &e, asked, stream).map(|_| ()),
        Engine::Ranges(lists, asked) => device_ranges::prepare(lists, a, &e, asked, stream).map(|_| ()),
        Engine::Steps(_) => Ok(()),
    }
}

/// The same for `backward`.
pub fn backward_prepare(source: Source<'_>, a: &Backward, options: &Options, stream: Stream) -> Result<()> {
    let e = extents(&source, &a.q, &a.k, &a.v)?;
    match backward_engine(&source, a, &e, options, stream)? {
        Engine::Fast(mask, kept, asked) => {
            gpu_backward::prepare(mask, kept, a, &e, asked, stream).map(|_| ())
        }
        Engine::Ranges(lists, asked) => gpu_backward::prepare_ranges(lists, a, &e, asked, stream).map(|_| ()),
        Engine::Steps(_) => Ok(()),
    }
}

/// Bytes of workspace of the calls that go step by step.
fn forward_steps_workspace(a: &Forward) -> Result<usize> {
    let mut carver = Carver::measure();
    carve_forward(a, &shape_of(&a.q, &a.k, &a.v)?, &mut carver)?;
    Ok(carver.used())
}

/// Bytes of workspace that `forward` needs, over `lists` when they give the mask.
pub fn forward_workspace(lists: Option<&RangeLists>, a: &Forward, options: &Options) -> Result<usize> {
    if a.q.device() == Device::Cpu {
        cpu(options)?;
        return forward_steps_workspace(a);
    }
    let e = on_device(&a.q, &a.k, &a.v)?;
    let gpu = on_gpu::gpu_of(&e)?;
    match (lists, on_gpu::choice(a, &e, options, &gpu)?) {
        (None, Some(asked)) => on_gpu::forward_workspace(a, &e, asked),
        (None, None) => forward_steps_workspace(a),
        (Some(lists), Some(asked)) => device_ranges::workspace(lists, &e, asked, options),
        (Some(_), None) => Err(no_ranges(a, &e, options, &gpu)),
    }
}

/// Bytes of workspace of the calls that go step by step.
fn backward_steps_workspace(a: &Backward) -> Result<usize> {
    let mut carver = Carver::measure();
    carve_backward(a, &shape_of(&a.q, &a.k, &a.v)?, &mut carver)?;
    Ok(carver.used())
}

/// Bytes of workspace that `backward` needs, over `lists` when they give the mask.
pub fn backward_workspace(lists: Option<&RangeLists>, a: &Backward, options: &Options) -> Result<usize> {
    if a.q.device() == Device::Cpu {
        cpu(options)?;
        return backward_steps_workspace(a);
    }
    let e = on_device(&a.q, &a.k, &a.v)?;
    let gpu = on_gpu::gpu_of(&e)?;
    match (lists, gpu_backward::choice(a, &e, options, &gpu)?) {
        (None, Some(asked)) => gpu_backward::workspace(a, &e, asked),
        (None, None) => backward_steps_workspace(a),
        (Some(lists), Some(asked)) => gpu_backward::ranges_workspace(lists, a, &e, asked, options),
        (Some(_), None) => Err(gpu_backward::no_ranges(a, &e, options, &gpu)),
    }
}

/// Attention on one device. Errors as the C function documents.
pub fn forward(source: Source<'_>, a: &Forward, options: &Options, stream: Stream) -> Result<()> {
    let e = extents(&source, &a.q, &a.k, &a.v)?;
    let backend = match forward_engine(&source, a, &e, options, stream)? {
        Engine::Fast(mask, kept, asked) => {
            return on_gpu::forward(mask, kept, a, &e, asked, options, stream);
        }
        Engine::Ranges(lists, asked) => {
            return device_ranges::forward(lists, a, &e, asked, options, stream);
        }
        Engine::Steps(backend) => backend,
    };
    let slices = slices_for(&source, &e)?;
    let mut space = Space::over(options, forward_steps_workspace(a)?, e.device, &a.tensors())?;
    let (out, lse) = carve_forward(a, &e.shape, &mut space.carver)?;
    if !options.accumulate {
        backend.attn_init(out, lse, a.max_logits, a.sink)?;
    }
    backend.attn_forward(&ForwardArgs {
        q: a.q,
        k: [Some(a.k), None],
        v: [Some(a.v), None],
        slices: &slices,
        shape: e.shape,
        softmax_scale: scale(a.softmax_scale, e.shape.head_dim),
        softcap: a.softcap,
        out,
        lse,
        max_logits: a.max_logits,
    })?;
    if out.dtype() != a.out.dtype() {
        backend.cast(out, a.out, false)?;
    }
    Ok(())
}

/// Merging needs an earlier (out, lse) in the accumulator type, which has the sink already.
fn check_accumulate(a: &Forward, s: &AttnShape) -> Result<()> {
    let acc = s.dtype.accumulator();
    a.out.expect_dtype("args.out (options.accumulate is set)", acc)?;
    if a.lse.is_none() {
        return Err(Error::new(
            Status::NullPointer,
            "args.lse is NULL; options.accumulate needs the earlier lse",
        ));
    }
    if a.sink.is_some() {
        return Err(Error::argument(
            "args.sink is given with options.accumulate; the earlier result holds the sink",
        ));
    }
    Ok(())
}

/// Gradients on one device. Errors as the C function documents.
pub fn backward(source: Source<'_>, a: &Backward, options: &Options, stream: Stream) -> Result<()> {
    let e = extents(&source, &a.q, &a.k, &a.v)?;
    let backend = match backward_engine(&source, a, &e, options, stream)? {
        Engine::Fast(mask, kept, asked) => {
            return gpu_backward::backward(mask, kept, a, &e, asked, options, stream);
        }
        Engine::Ranges(lists, asked) => {
            return gpu_backward::backward_ranges(lists, a, &e, asked, options, stream);
        }
        Engine::Steps(backend) => backend,
    };
    let slices = slices_for(&source, &e)?;
    let mut space = Space::over(options, backward_steps_workspace(a)?, e.device, &a.tensors())?;
    let [delta, dq, dk, dv, own_dsink] = carve_backward(a, &e.shape, &mut space.carver)?;
    backend.attn_delta(a.out, a.dout, delta)?;
    if let (Some(sink), Some(dsink)) = (a.sink, a.dsink) {
        backend.sink_backward(sink, a.lse, delta, own_dsink)?;
        if a.accumulate_dsink {
            backend.range_reduce(own_dsink, dsink, &[Range::new(0, dsink.tokens())])?;
        }
    }
    let outputs = [
        (dq, a.dq, a.accumulate_dq),
        (dk, a.dk, a.accumulate_dk),
        (dv, a.dv, a.accumulate_dv),
    ];
    for (running, target, add) in &outputs {
        if running.dtype() != target.dtype() || !add {
            backend.fill_zero(*running)?;
        }
    }
    backend.attn_backward(&BackwardArgs {
        q: a.q,
        k: [Some(a.k), None],
        v: [Some(a.v), None],
        dout: a.dout,
        lse: a.lse,
        delta,
        slices: &slices,
        shape: e.shape,
        softmax_scale: scale(a.softmax_scale, e.shape.head_dim),
        softcap: a.softcap,
        dq,
        dk: [Some(dk), None],
        dv: [Some(dv), None],
    })?;
    for (running, target, add) in &outputs {
        if running.dtype() != target.dtype() {
            backend.cast(*running, *target, *add)?;
        }
    }
    Ok(())
}
