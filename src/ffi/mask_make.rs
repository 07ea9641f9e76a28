//! Masks made from a bit matrix, a tree of prefixes, or a video.

use super::guard::guard;
use super::input;
use super::mask::{hand_out, magi_mask};
use crate::types::{Mask, Status};

/// The mask of a bit matrix `[total_q, row_bytes]`: query q sees key k where bit k % 8, least significant first, of byte
/// `q * row_bytes + k / 8` is set. It is covered exactly by few slices, found in one pass over the matrix.
///
/// `row_bytes`: total_k / 8, rounded up, or more; bits beyond total_k are not looked at. `bits` may be NULL when the matrix
/// has no bytes. Errors: NULL_POINTER, INVALID_RANGE, INVALID_ARGUMENT (row_bytes; more than 2^20 slices are needed).
/// Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `bits` must point to `total_q * row_bytes` bytes, `mask` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_dense(
    bits: *const u8,
    row_bytes: usize,
    total_q: i64,
    total_k: i64,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_dense", || {
        input::check_out("mask", mask)?;
        let bytes = Mask::dense_bytes(row_bytes, total_q, total_k)?;
        // SAFETY: the caller's promise.
        let bits = unsafe { input::array("bits", bits, bytes) }?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, Mask::from_dense(bits, row_bytes, total_q, total_k)?) }
    })
}

/// The mask of sequences that share prefixes: node i continues node `parents[i]`, or starts a tree of its own where that
/// is -1. A token sees all tokens of its node's ancestors, and its own node up to itself. Nodes lie one after the other,
/// node i with `lengths[i]` tokens; in depth-first order there is one slice a node.
///
/// `parents`, `lengths`: `[n]`, parents before children. Errors: NULL_POINTER, INVALID_ARGUMENT (a parent; an order that
/// needs more than 2^20 slices), INVALID_RANGE (a length). Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `parents` and `lengths` must point to `n` integers each, `mask` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_prefix_tree(
    parents: *const i64,
    lengths: *const i64,
    n: usize,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_prefix_tree", || {
        input::check_out("mask", mask)?;
        // SAFETY: the caller's promise.
        let (parents, lengths) = unsafe {
            (
                input::array("parents", parents, n)?,
                input::array("lengths", lengths, n)?,
            )
        };
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, Mask::from_prefix_tree(parents, lengths)?) }
    })
}

/// The mask of one question of `prefix` tokens and `n` answers to it, one after the other, of `answers[i]` tokens: answers see
/// the question and themselves, each token causally.
///
/// `answers`: `[n]`. Errors: NULL_POINTER, INVALID_RANGE (naming lengths[0] for the question, lengths[i + 1] for answer i).
/// Any thread. Destroy with magi_mask_destroy.
///
/// # Safety
/// `answers` must point to `n` integers, `mask` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_share_question(
    prefix: i64,
    answers: *const i64,
    n: usize,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_share_question", || {
        input::check_out("mask", mask)?;
        // SAFETY: the caller's promise.
        let answers = unsafe { input::array("answers", answers, n) }?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, Mask::from_share_question(prefix, answers)?) }
    })
}

/// The mask of a video of `frames` frames with `tokens_per_frame` tokens each: a token sees all tokens of its own frame and
/// of `window` frames on either side (-1: all), with `causal` (0 or 1) only of those before; with `first_frame` (0 or 1)
/// also those of the first frame, however far.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT (frames: 0 to 2^20), INVALID_RANGE (too many tokens). Any thread. Destroy with
/// magi_mask_destroy.
///
/// # Safety
/// `mask` must point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_mask_create_from_video(
    frames: i64,
    tokens_per_frame: i64,
    window: i64,
    first_frame: i32,
    causal: i32,
    mask: *mut *mut magi_mask,
) -> Status {
    guard("magi_mask_create_from_video", || {
        let first_frame = input::flag("first_frame", first_frame)?;
        let causal = input::flag("causal", causal)?;
        let made = Mask::from_video(frames, tokens_per_frame, window, first_frame, causal)?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(mask, made) }
    })
}
