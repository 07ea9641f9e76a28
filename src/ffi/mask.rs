//! Masks: which keys every query sees. Immutable, usable from any thread.

use std::ffi::c_char;
use std::sync::Arc;

use super::guard::{guard, guard_destroy};
use super::input;
use super::plain::magi_slice;
use crate::runtime::device_mask::DeviceMask;
use crate::types::{Error, Mask, MaskType, Result, Status, TypedSlice};

/// A mask. Immutable: every function on it may be called from any thread, many at once.
pub struct magi_mask {
    pub(super) mask: Arc<Mask>,
    /// What single-device calls keep on CUDA devices.
    pub(super) kept: DeviceMask,
}

/// Hands a new mask to the caller.
///
/// # Safety
/// `mask` must be NULL or point to a pointer.
pub(super) unsafe fn hand_out(mask: *mut *mut magi_mask, made: Mask) -> Result<()> {
    input::check_out("mask", mask)?;
    // SAFETY: the caller's promise.
    unsafe {
        input::write_out(
            "mask",
            mask,
            Box::into_raw(Box::new(magi_mask {
                mask: Arc::new(made),
                kept: DeviceMask::default(),
            })),
        )
    }
}

/// The mask whose visible cells are those of `slices`, over `total_q` queries and `total_k` keys (0 to 2^31).
///
/// `slices`: `[n]`; they may share rows and columns and may be empty, in any order; NULL with n = 0 is the mask that
/// shows nothing. Errors: NULL_POINTER, INVALID_RANGE (naming the slice), INVALID_ENUM, MASK_OVERLAP (naming two slices
/// and a cell that both cover), INVALID_ARGUMENT. Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `slices` must point to `n` slices, `mask` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create(
    slices: *const magi_slice,
    n: usize,
    total_q: i64,
    total_k: i64,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create", || {
        input::check_out("mask", mask)?;
        // SAFETY: the caller's promise.
        let slices = unsafe { input::array("slices", slices, n) }?;
        let typed = slices
            .iter()
            .enumerate()
            .map(typed_slice)
            .collect::<Result<Vec<_>>>()?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, Mask::new(&typed, total_q, total_k)?) }
    })
}

fn typed_slice((i, s): (usize, &magi_slice)) -> Result<TypedSlice> {
    let named = |e: Error| Error::new(e.status, format!("slices[{i}].{}", e.message));
    if s.reserved != 0 {
        return Err(Error::argument(format!(
            "slices[{i}].reserved is {}; it must be 0",
            s.reserved
        )));
    }
    Ok(TypedSlice {
        q: s.q,
        k: s.k,
        mask_type: MaskType::from_i32(s.mask_type).map_err(named)?,
    })
}

/// The mask of documents packed one after the other: document i owns queries `[cu_seqlens_q[i], cu_seqlens_q[i+1])` and keys
/// `[cu_seqlens_k[i], cu_seqlens_k[i+1])`, and sees nothing of the others.
///
/// `cu_seqlens_q`, `cu_seqlens_k`: `[n]`, n >= 1, from 0 ascending; the last are the totals. `causal` (0 or 1) aligns bottom-right.
/// A query sees `window_left` keys before its diagonal and `window_right` after it (-1: all of them; with `causal`
/// none after it), and the first `global_window` keys of its document besides.
/// Errors: NULL_POINTER, INVALID_ARGUMENT, INVALID_RANGE. Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `cu_seqlens_q` and `cu_seqlens_k` must point to `n` integers each, `mask` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_cu_seqlens(
    cu_seqlens_q: *const i64,
    cu_seqlens_k: *const i64,
    n: usize,
    causal: i32,
    window_left: i64,
    window_right: i64,
    global_window: i64,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_cu_seqlens", || {
        input::check_out("mask", mask)?;
        let causal = input::flag("causal", causal)?;
        // SAFETY: the caller's promise.
        let (cu_seqlens_q, cu_seqlens_k) = unsafe {
            (
                input::array("cu_seqlens_q", cu_seqlens_q, n)?,
                input::array("cu_seqlens_k", cu_seqlens_k, n)?,
            )
        };
        let made = Mask::from_cu_seqlens(
            cu_seqlens_q,
            cu_seqlens_k,
            causal,
            (window_left, window_right),
            global_window,
        )?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, made) }
    })
}

/// The mask of one sequence in which each query sees a window of keys: as magi_mask_create_from_cu_seqlens with one
/// document of `total_q` queries and `total_k` keys. A causal window of w keys is (w - 1, 0).
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT, INVALID_RANGE. Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `mask` must point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_sliding_window(
    total_q: i64,
    total_k: i64,
    window_left: i64,
    window_right: i64,
    global_window: i64,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_sliding_window", || {
        let made = Mask::from_sliding_window(total_q, total_k, (window_left, window_right), global_window)?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, made) }
    })
}

/// The mask in which each token sees its own block of `block` tokens and all blocks before it, in each document.
///
/// `cu_seqlens`: `[n]`, n >= 1, from 0 ascending; the last is the total. Errors: NULL_POINTER, INVALID_ARGUMENT,
/// INVALID_RANGE. Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `cu_seqlens` must point to `n` integers, `mask` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_block_causal(
    cu_seqlens: *const i64,
    n: usize,
    block: i64,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_block_causal", || {
        input::check_out("mask", mask)?;
        // SAFETY: the caller's promise.
        let cu = unsafe { input::array("cu_seqlens", cu_seqlens, n) }?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, Mask::from_block_causal_cu_seqlens(cu, block)?) }
    })
}

/// Totals of a mask: query tokens and key tokens. Either pointer may be NULL. Errors: NULL_POINTER. Any thread.
///
/// # Safety
/// `total_q` and `total_k` must be NULL or point to an int64_t each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_totals(
    mask: Option<&magi_mask>,
    total_q: *mut i64,
    total_k: *mut i64,
) -> Status {
    guard("magi_mask_totals", || {
        let mask = &input::non_null("mask", mask)?.mask;
        for (out, value) in [(total_q, mask.total_q()), (total_k, mask.total_k())] {
            if !out.is_null() {
                // SAFETY: not NULL, and the caller's promise.
                unsafe { out.write(value) };
            }
        }
        Ok(())
    })
}

/// Number of visible (query, key) cells. Errors: NULL_POINTER. Any thread.
///
/// # Safety
/// `area` must point to an int64_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_area(mask: Option<&magi_mask>, area: *mut i64) -> Status {
    guard("magi_mask_area", || {
        // SAFETY: the caller's promise.
        unsafe { input::write_out("area", area, input::non_null("mask", mask)?.mask.area()) }
    })
}

/// Prints the mask as typed slices that cover the same cells, each once.
///
/// `slices`: room for `*count`, or NULL to ask for the number; `*count` becomes the number there is.
/// Errors: NULL_POINTER, BUFFER_TOO_SMALL. Any thread.
///
/// # Safety
/// `slices` must be NULL or have room for `*count` slices; `count` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_slices(
    mask: Option<&magi_mask>,
    slices: *mut magi_slice,
    count: *mut usize,
) -> Status {
    guard("magi_mask_slices", || {
        let typed = input::non_null("mask", mask)?.mask.to_typed();
        let plain = |t: &TypedSlice| magi_slice {
            q: t.q,
            k: t.k,
            mask_type: t.mask_type as i32,
            reserved: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { input::fill_array("slices", typed.len(), typed.iter().map(plain), slices, count) }
    })
}

/// Draws the mask as SVG: slices coloured by type, or a grid of shades when there are too many to draw each. At most some
/// hundred kilobytes; follows the viewer's light or dark scheme.
///
/// `svg`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
/// Errors: NULL_POINTER, BUFFER_TOO_SMALL. Any thread.
///
/// # Safety
/// `svg` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_draw(
    mask: Option<&magi_mask>,
    svg: *mut c_char,
    size: *mut usize,
) -> Status {
    guard("magi_mask_draw", || {
        let picture = input::non_null("mask", mask)?.mask.draw();
        // SAFETY: the caller's promise.
        unsafe { input::fill_text("svg", picture, svg, size) }
    })
}

/// Frees the handle. Keys made from it stay good. A mask that was used on a CUDA device waits for all that is under way there, so
/// do not destroy one while a stream of that device is captured. NULL does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn magi_mask_destroy(mask: Option<Box<magi_mask>>) {
    guard_destroy(|| drop(mask));
}
