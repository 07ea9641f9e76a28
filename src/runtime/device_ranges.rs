//! Attention over ranges that lie on the CUDA device of the call's tensors.

use std::sync::Arc;

use parking_lot::Mutex;

use super::attn_args::Forward;
use super::check::{self, Extents, Named};
use super::device_tiles::expect_prepared;
use super::on_gpu;
use super::single::{Options, RangeLists};
use crate::backend::cuda::forward_kernel::ForwardChoice;
use crate::backend::cuda::forward_ranges::ForwardRanges;
use crate::backend::cuda::range_tiles::{DeviceRanges, ListShape, ListSpace};
use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::types::{DType, Device, Error, Result, Status};

/// Kernels of devices by what was asked for: loaded once, kept to the end of the process.
pub(super) struct Loaded<C, K>(Mutex<Vec<(i32, C, Arc<K>)>>);

impl<C: Copy + PartialEq, K> Loaded<C, K> {
    /// None yet.
    pub const fn new() -> Loaded<C, K> {
        Loaded(Mutex::new(Vec::new()))
    }

    fn found(loaded: &[(i32, C, Arc<K>)], gpu: &Gpu, asked: C) -> Option<Arc<K>> {
        let here = |(ordinal, choice, _): &&(i32, C, Arc<K>)| *ordinal == gpu.ordinal() && *choice == asked;
        loaded.iter().find(here).map(|(_, _, kernels)| kernels.clone())
    }

    /// The kernels. `missing` decides whether they may be loaded now, and `load` does it.
    pub fn get(
        &self,
        gpu: &Arc<Gpu>,
        asked: C,
        missing: impl FnOnce() -> Result<()>,
        load: impl FnOnce(&Arc<Gpu>, C) -> Result<K>,
    ) -> Result<Arc<K>> {
        if let Some(kernels) = Self::found(&self.0.lock(), gpu, asked) {
            return Ok(kernels);
        }
        missing()?;
        // Without the lock: this may compile, and others are not to wait for it.
        let kernels = Arc::new(load(gpu, asked)?);
        let mut loaded = self.0.lock();
        if Self::found(&loaded, gpu, asked).is_none() {
            loaded.push((gpu.ordinal(), asked, kernels.clone()));
        }
        Ok(kernels)
    }
}

/// The kernels. `missing` decides whether they may be loaded now.
fn kernels(
    gpu: &Arc<Gpu>,
    asked: ForwardChoice,
    missing: impl FnOnce() -> Result<()>,
) -> Result<Arc<ForwardRanges>> {
    static LOADED: Loaded<ForwardChoice, ForwardRanges> = Loaded::new();
    LOADED.get(gpu, asked, missing, ForwardRanges::load)
}

/// The lists by their names.
pub(super) fn named(lists: &RangeLists) -> [Named<'_>; 3] {
    [
        ("options.q_ranges", &lists.q_ranges),
        ("options.k_ranges", &lists.k_ranges),
        ("options.mask_types", &lists.mask_types),
    ]
}

/// The lists, found to be i32 `[n, 2]`, `[n, 2]` and `[n]` on the device.
pub(super) fn checked(lists: &RangeLists, device: Device) -> Result<DeviceRanges> {
    let n = lists.q_ranges.tokens();
    for ((name, t), shape) in named(lists).into_iter().zip([&[n, 2][..], &[n, 2], &[n]]) {
        check::place_on((name, t), device)?;
        t.expect_dtype(name, DType::I32)?;
        t.expect_shape(name, shape)?;
    }
    Ok(DeviceRanges {
        q: lists.q_ranges,
        k: lists.k_ranges,
        types: lists.mask_types,
    })
}

/// The list that a call makes.
fn list(kernels: &ForwardRanges, lists: &RangeLists, e: &Extents, options: &Options) -> Result<ListShape> {
    let n = lists.q_ranges.tokens();
    kernels.list(&e.shape, (e.tokens_q, e.tokens_k), n, options.max_items)
}

/// Bytes of workspace that a call needs.
pub(super) fn workspace(
    lists: &RangeLists,
    e: &Extents,
    asked: ForwardChoice,
    options: &Options,
) -> Result<usize> {
    checked(lists, e.device)?;
    let kernels = kernels(&on_gpu::gpu_of(e)?, asked, || Ok(()))?;
    Ok(ListSpace::of(&list(&kernels, lists, e, options)?).bytes)
}

/// Loads kernels where they are missing, checks everything but the workspace, and reports what an earlier call met.
pub(super) fn prepare(
    lists: &RangeLists,
    a: &Forward,
    e: &Extents,
    asked: ForwardChoice,
    on: Stream,
) -> Result<(Arc<ForwardRanges>, DeviceRanges)> {
    let gpu = on_gpu::gpu_of(e)?;
    check::forward(a, e, on)?;
    on_gpu::check_layout(a)?;
    let ranges = checked(lists, e.device)?;
    let mut wrote = vec![("args.out", &a.out)];
    wrote.extend(a.lse.as_ref().map(|t| ("args.lse", t)));
    wrote.extend(a.max_logits.as_ref().map(|t| ("args.max_logits", t)));
    check::written(&wrote, &named(lists))?;
    stream::expect_on(&gpu, on)?;
    let kernels = kernels(&gpu, asked, || expect_prepared(&gpu, on))?;
    kernels.take_error()?;
    Ok((kernels, ranges))
}

/// Enqueues a call. Errors as the C function documents.
pub(super) fn forward(
    lists: &RangeLists,
    a: &Forward,
    e: &Extents,
    asked: ForwardChoice,
    options: &Options,
    on: Stream,
) -> Result<()> {
    let (kernels, ranges) = prepare(lists, a, e, asked, on)?;
    let list = list(&kernels, lists, e, options)?;
    let beside = named(lists);
    on_gpu::check_workspace(
        options,
        ListSpace::of(&list).bytes,
        e.device,
        &[&a.tensors(), &beside[..]].concat(),
    )?;
    let call = on_gpu::call_of(a, e, options);
    // SAFETY: the tensors were checked, and their memory is the caller's promise (see Tensor), as is that nobody else uses
    // the workspace meanwhile; the kernels are kept.
    unsafe { kernels.enqueue(&ranges, &list, &e.shape, &call, on) }
}

/// Why there are no kernels but the fast ones.
pub(super) fn refuse(reasons: &[String]) -> Error {
    let message = format!(
        "options holds ranges on a CUDA device, which only the fast kernels take, and {}; make a mask of them \
         (magi_mask_create)",
        reasons.join("; ")
    );
    Error::new(Status::NotSupported, message)
}
