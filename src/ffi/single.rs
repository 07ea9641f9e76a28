//! Attention on one device: any slice mask, no communicator.

use std::ffi::c_void;

use super::attn::{backward_of, forward_of, magi_backward_args, magi_forward_args};
use super::guard::guard;
use super::input::{self, flag, optional_tensor, sized};
use super::mask::magi_mask;
use super::plain::{magi_stream, magi_tensor};
use crate::runtime::single;
use crate::types::{Error, Result, Status};

/// Which kernels compute.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum magi_backend {
    /// The best there is for the device: the fast kernels where they compute the call, else textbook attention; on the CPU
    /// its one backend.
    Default = 0,
    /// The fast kernels; need a CUDA device.
    Ffa = 1,
    /// Textbook attention in high precision.
    Sdpa = 2,
}

/// How one device computes, beside the tensors. Start from MAGI_FLEX_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct magi_flex_options {
    /// sizeof(magi_flex_options).
    pub size: usize,
    /// NULL with a mask; without one i32 `[n, 2]` query ranges on the tensors' device. Ranges are clamped to the totals
    /// before a type's diagonals are laid through their corners; a cell that is covered twice counts twice. On a CUDA device
    /// the fast kernels alone take them: the lists are read there, in the order of the stream, so they may change
    /// between calls and between replays of a graph.
    pub q_ranges: *const magi_tensor,
    /// NULL with a mask; without one i32 `[n, 2]` key ranges.
    pub k_ranges: *const magi_tensor,
    /// NULL with a mask; without one i32 `[n]`, each a magi_mask_type.
    pub mask_types: *const magi_tensor,
    /// Workspace of at least the queried size, aligned to 256 bytes, sharing no memory with any tensor; NULL when that is 0.
    pub workspace: *mut c_void,
    /// Bytes of workspace.
    pub workspace_size: usize,
    /// A magi_backend.
    pub backend: i32,
    /// 0 or 1: the same bits on every run. Of backward by the fast kernels of a CUDA device, which then compute dq apart from
    /// dk and dv, 7 products for 5; without it the last bits of dq may differ. Everything else gives them always.
    pub deterministic: i32,
    /// Multiprocessors left to others; 0 on the CPU.
    pub sm_margin: i32,
    /// 0 or 1, forward only: out (in acc) and lse hold an earlier result, into which this one is merged. Not with a sink.
    pub accumulate: i32,
    /// Ranges on a CUDA device: room for this many pairs of a tile and a range that meet, tiles being of queries in forward,
    /// of keys in backward, and also of queries in deterministic backward. 0 for the default: tiles + 4 n.
    pub max_items: i64,
}

/// The range lists in the options; `None` when there are none at all.
///
/// # Safety
/// The pointers in `o` must be NULL or descriptors as magi_tensor says.
unsafe fn lists_of(o: &magi_flex_options) -> Result<Option<single::RangeLists>> {
    // SAFETY: the caller's promise.
    let given = unsafe {
        [
            optional_tensor("options.q_ranges", o.q_ranges)?,
            optional_tensor("options.k_ranges", o.k_ranges)?,
            optional_tensor("options.mask_types", o.mask_types)?,
        ]
    };
    match given {
        [None, None, None] => Ok(None),
        [Some(q_ranges), Some(k_ranges), Some(mask_types)] => Ok(Some(single::RangeLists {
            q_ranges,
            k_ranges,
            mask_types,
        })),
        _ => Err(Error::new(
            Status::NullPointer,
            "options has some of q_ranges, k_ranges and mask_types; give all three or none",
        )),
    }
}

/// The mask handle's mask, or the one that the lists describe.
fn source_of<'a>(
    mask: Option<&'a magi_mask>,
    lists: Option<&'a single::RangeLists>,
) -> Result<single::Source<'a>> {
    match (mask, lists) {
        (Some(m), None) => Ok(single::Source::Mask(&m.mask, &m.kept)),
        (None, Some(lists)) => Ok(single::Source::Ranges(lists)),
        (None, None) => Err(Error::new(
            Status::NullPointer,
            "mask is NULL and options holds no ranges; give one of them",
        )),
        (Some(_), Some(_)) => Err(Error::argument(
            "mask is given and options holds ranges; give one of them",
        )),
    }
}

/// The choice that a magi_backend stands for.
pub(super) fn backend_of(param: &str, value: i32) -> Result<single::Choice> {
    match value {
        0 => Ok(single::Choice::Default),
        1 => Ok(single::Choice::Ffa),
        2 => Ok(single::Choice::Sdpa),
        other => {
            let message = format!("{param} is {other}; it must be a magi_backend (0, 1 or 2)");
            Err(Error::new(Status::InvalidEnum, message))
        }
    }
}

/// Checks the options and gathers them for the runtime.
fn options_of(o: &magi_flex_options) -> Result<single::Options> {
    let backend = backend_of("options.backend", o.backend)?;
    if o.sm_margin < 0 {
        return Err(Error::argument(format!(
            "options.sm_margin is {}; it must be 0 or more",
            o.sm_margin
        )));
    }
    if o.max_items < 0 {
        return Err(Error::argument(format!(
            "options.max_items is {}; it must be 0 or more",
            o.max_items
        )));
    }
    Ok(single::Options {
        backend,
        accumulate: flag("options.accumulate", o.accumulate)?,
        deterministic: flag("options.deterministic", o.deterministic)?,
        sm_margin: o.sm_margin,
        max_items: o.max_items,
        workspace: o.workspace.cast(),
        workspace_bytes: o.workspace_size,
    })
}

/// Attention of `args.q` over `args.k` and `args.v` as `mask` says. Shapes as in magi_forward_args, with the mask's totals
/// for the local tokens.
///
/// With ranges on a CUDA device a type that is none, or more than `options.max_items` items, is found there: out and lse
/// become NaN (max_logits -inf), and the next call with ranges on the device returns INVALID_ENUM or BUFFER_TOO_SMALL in
/// place of computing, once.
///
/// On a CUDA device calls with one mask may be under way at once on the 64 streams that it was called on last, and beside them the 448
/// calls that were captured last; a captured call must not run twice at the same time, as in two executable graphs of one graph.
///
/// `mask`: NULL when `options` holds ranges. `options`: NULL for defaults. Errors: NULL_POINTER, STRUCT_SIZE,
/// INVALID_ARGUMENT, INVALID_ENUM, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE, DEVICE_MISMATCH, TENSOR_OVERLAP,
/// BUFFER_TOO_SMALL (workspace), NOT_SUPPORTED, OUT_OF_MEMORY (outputs may then be partly written). Any thread.
///
/// # Safety
/// `args` and `options` must be NULL or as their types say, their tensors as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_flex_flash_attn_forward(
    mask: Option<&magi_mask>,
    args: *const magi_forward_args,
    options: *const magi_flex_options,
    stream: magi_stream,
) -> Status {
    guard("magi_flex_flash_attn_forward", || {
        // SAFETY: the caller's promise.
        let (args, options) = unsafe { (forward_of(&sized("args", args)?)?, read_options(options)?) };
        // SAFETY: the caller's promise.
        let lists = unsafe { lists_of(&options) }?;
        single::forward(
            source_of(mask, lists.as_ref())?,
            &args,
            &options_of(&options)?,
            super::key::stream_of(stream),
        )
    })
}

/// Makes what a call of magi_flex_flash_attn_forward with the same mask, options and kinds of arguments (shapes, dtypes,
/// device, which of them are NULL) needs beside its tensors: plans the mask's tiles, uploads them, loads kernels and
/// compiles those that are not compiled yet. Such calls then only enqueue, and may be captured into a CUDA graph. Without
/// it the first call does this. May allocate and wait; not while `stream` is captured. Does nothing on the CPU. For ranges on a
/// CUDA device it only loads kernels: it then holds for calls of any number of ranges.
///
/// Tensors are checked, their memory is not touched. Errors: as magi_flex_flash_attn_forward, and COMPILE_FAILED. Any
/// thread.
///
/// # Safety
/// As magi_flex_flash_attn_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_flex_flash_attn_forward_prepare(
    mask: Option<&magi_mask>,
    args: *const magi_forward_args,
    options: *const magi_flex_options,
    stream: magi_stream,
) -> Status {
    guard("magi_flex_flash_attn_forward_prepare", || {
        // SAFETY: the caller's promise.
        let (args, options) = unsafe { (forward_of(&sized("args", args)?)?, read_options(options)?) };
        // SAFETY: the caller's promise.
        let lists = unsafe { lists_of(&options) }?;
        single::forward_prepare(
            source_of(mask, lists.as_ref())?,
            &args,
            &options_of(&options)?,
            super::key::stream_of(stream),
        )
    })
}

/// Gradients of magi_flex_flash_attn_forward. Shapes and flags as in magi_backward_args. On a CUDA device the fast kernels
/// compute what they do in forward, except where dk and dv have two dtypes, one of them alone is added to, or both are added
/// to in bf16 or f16: that is for the textbook kernels. The workspace has f32 sums of dq where dq itself is not f32, and
/// grows with the tensors.
///
/// With ranges on a CUDA device that cannot be taken (see forward) dq, dk and dv become NaN.
///
/// Errors: as forward. Any thread.
///
/// # Safety
/// As magi_flex_flash_attn_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_flex_flash_attn_backward(
    mask: Option<&magi_mask>,
    args: *const magi_backward_args,
    options: *const magi_flex_options,
    stream: magi_stream,
) -> Status {
    guard("magi_flex_flash_attn_backward", || {
        // SAFETY: the caller's promise.
        let (args, options) = unsafe { (backward_of(&sized("args", args)?)?, read_options(options)?) };
        // SAFETY: the caller's promise.
        let lists = unsafe { lists_of(&options) }?;
        single::backward(
            source_of(mask, lists.as_ref())?,
            &args,
            &options_of(&options)?,
            super::key::stream_of(stream),
        )
    })
}

/// What magi_flex_flash_attn_forward_prepare is to forward, for magi_flex_flash_attn_backward.
///
/// # Safety
/// As magi_flex_flash_attn_backward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_flex_flash_attn_backward_prepare(
    mask: Option<&magi_mask>,
    args: *const magi_backward_args,
    options: *const magi_flex_options,
    stream: magi_stream,
) -> Status {
    guard("magi_flex_flash_attn_backward_prepare", || {
        // SAFETY: the caller's promise.
        let (args, options) = unsafe { (backward_of(&sized("args", args)?)?, read_options(options)?) };
        // SAFETY: the caller's promise.
        let lists = unsafe { lists_of(&options) }?;
        single::backward_prepare(
            source_of(mask, lists.as_ref())?,
            &args,
            &options_of(&options)?,
            super::key::stream_of(stream),
        )
    })
}

/// Bytes of workspace that magi_flex_flash_attn_forward needs for `args` (data pointers are not looked at beyond NULL)
/// and `options` (NULL for defaults). On a CUDA device the first query, or prepare, for a kind of arguments loads their kernel, which
/// may have to be compiled; later ones only compute. Errors: as forward, and COMPILE_FAILED. Any thread.
///
/// # Safety
/// As magi_flex_flash_attn_forward; `bytes` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_flex_flash_attn_forward_workspace_size(
    args: *const magi_forward_args,
    options: *const magi_flex_options,
    bytes: *mut usize,
) -> Status {
    guard("magi_flex_flash_attn_forward_workspace_size", || {
        // SAFETY: the caller's promise.
        let (args, options) = unsafe { (forward_of(&sized("args", args)?)?, read_options(options)?) };
        // SAFETY: the caller's promise.
        let lists = unsafe { lists_of(&options) }?;
        let needed = single::forward_workspace(lists.as_ref(), &args, &options_of(&options)?)?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("bytes", bytes, needed) }
    })
}

/// Bytes of workspace that magi_flex_flash_attn_backward needs. Otherwise as the forward query.
///
/// # Safety
/// As magi_flex_flash_attn_backward; `bytes` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_flex_flash_attn_backward_workspace_size(
    args: *const magi_backward_args,
    options: *const magi_flex_options,
    bytes: *mut usize,
) -> Status {
    guard("magi_flex_flash_attn_backward_workspace_size", || {
        // SAFETY: the caller's promise.
        let (args, options) = unsafe { (backward_of(&sized("args", args)?)?, read_options(options)?) };
        // SAFETY: the caller's promise.
        let lists = unsafe { lists_of(&options) }?;
        let needed = single::backward_workspace(lists.as_ref(), &args, &options_of(&options)?)?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("bytes", bytes, needed) }
    })
}

/// The options, or the defaults for NULL.
///
/// # Safety
/// As `input::sized`.
unsafe fn read_options(options: *const magi_flex_options) -> Result<magi_flex_options> {
    if options.is_null() {
        let null = std::ptr::null();
        return Ok(magi_flex_options {
            size: size_of::<magi_flex_options>(),
            q_ranges: null,
            k_ranges: null,
            mask_types: null,
            workspace: std::ptr::null_mut(),
            workspace_size: 0,
            backend: magi_backend::Default as i32,
            deterministic: 0,
            sm_margin: 0,
            accumulate: 0,
            max_items: 0,
        });
    }
    // SAFETY: the caller's promise.
    unsafe { sized("options", options) }
}
