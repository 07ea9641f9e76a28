//! Moving tokens between the global order and the plan's layout. Any dtype, any number of dimensions from 1.

use super::guard::guard;
use super::input::{flag, side as side_of, tensor, write_out};
use super::key::{magi_key, stream_of, with_key};
use super::plain::{magi_stream, magi_tensor};
use crate::runtime::{movement, roll};
use crate::types::Status;

/// Picks this rank's tokens: `local_x[i] = x[position i]`. No communication.
///
/// `x`: `[total of side, ..]`, the same on every rank; `local_x`: `[local tokens of side, ..]`, same dtype and trailing
/// shape, any strides. Errors: NULL_POINTER, INVALID_ENUM, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE,
/// DEVICE_MISMATCH, TENSOR_OVERLAP, HANDLE_BUSY, COMM_DESTROYED, POISONED. Backward: magi_dispatch_backward.
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_dispatch(
    key: Option<&magi_key>,
    side: i32,
    x: *const magi_tensor,
    local_x: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_dispatch", key, |k| {
        // SAFETY: the caller's promise.
        let (x, local_x) = unsafe { (tensor("x", x)?, tensor("local_x", local_x)?) };
        movement::dispatch(k, side_of(side)?, x, local_x, stream_of(stream))
    })
}

/// Gradient of magi_dispatch: gathers every rank's `dlocal_x` `[local tokens, ..]` into `dx` `[total, ..]`, the sum over
/// ranks of what each contributed, on every rank.
///
/// Errors: as magi_undispatch. Collective.
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_dispatch_backward(
    key: Option<&magi_key>,
    side: i32,
    dlocal_x: *const magi_tensor,
    dx: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_dispatch_backward", key, |k| {
        // SAFETY: the caller's promise.
        let (dlocal_x, dx) = unsafe { (tensor("dlocal_x", dlocal_x)?, tensor("dx", dx)?) };
        let names = ["dlocal_x", "dx"];
        movement::undispatch(k, side_of(side)?, dlocal_x, dx, names, stream_of(stream))
    })
}

/// Gathers the ranks' tokens into the full tensor in global order, on every rank.
///
/// `local_x`: `[local tokens of side, ..]`; `x`: `[total of side, ..]`, same dtype and trailing shape, any strides.
/// Errors: as magi_dispatch, and PLAN_MISMATCH, OUT_OF_MEMORY, COMM_FAILED, TIMEOUT, ABORTED. Collective.
/// Backward: magi_undispatch_backward.
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_undispatch(
    key: Option<&magi_key>,
    side: i32,
    local_x: *const magi_tensor,
    x: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_undispatch", key, |k| {
        // SAFETY: the caller's promise.
        let (local_x, x) = unsafe { (tensor("local_x", local_x)?, tensor("x", x)?) };
        movement::undispatch(k, side_of(side)?, local_x, x, ["local_x", "x"], stream_of(stream))
    })
}

/// Gradient of magi_undispatch. With `partial` 0 every rank holds the full gradient `dx` `[total, ..]` and picks its
/// tokens, without communication. With `partial` 1 each rank holds a part of it: `dlocal_x` is the sum over ranks, added
/// in rank order in the accumulator type (f64 for f64, else f32); the dtype must be f64, f32, bf16 or f16, and the call is
/// collective.
///
/// `dlocal_x`: `[local tokens, ..]`. Errors: as magi_undispatch, and INVALID_ARGUMENT (partial).
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_undispatch_backward(
    key: Option<&magi_key>,
    side: i32,
    dx: *const magi_tensor,
    partial: i32,
    dlocal_x: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_undispatch_backward", key, |k| {
        // SAFETY: the caller's promise.
        let (dx, dlocal_x) = unsafe { (tensor("dx", dx)?, tensor("dlocal_x", dlocal_x)?) };
        let (side, stream) = (side_of(side)?, stream_of(stream));
        if flag("partial", partial)? {
            movement::undispatch_backward_partial(k, side, dx, dlocal_x, stream)
        } else {
            movement::undispatch_backward_full(k, side, dx, dlocal_x, stream)
        }
    })
}

/// From contiguous shares to the plan's layout, for tensors too large to replicate.
///
/// `share`: this rank's share `[total / world size, ..]` of the global tensor (the first total % world size ranks hold one
/// token more); `local_x`: `[local tokens of side, ..]`, same dtype and trailing shape. Errors: as magi_undispatch.
/// Collective. It is a permutation: its gradient is magi_undispatch_sharded of the gradients.
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_dispatch_sharded(
    key: Option<&magi_key>,
    side: i32,
    share: *const magi_tensor,
    local_x: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_dispatch_sharded", key, |k| {
        // SAFETY: the caller's promise.
        let (share, local_x) = unsafe { (tensor("share", share)?, tensor("local_x", local_x)?) };
        movement::dispatch_sharded(k, side_of(side)?, share, local_x, stream_of(stream))
    })
}

/// The inverse of magi_dispatch_sharded: from the plan's layout to contiguous shares. Errors: as magi_undispatch.
/// Collective. Its gradient is magi_dispatch_sharded of the gradients.
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_undispatch_sharded(
    key: Option<&magi_key>,
    side: i32,
    local_x: *const magi_tensor,
    share: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_undispatch_sharded", key, |k| {
        // SAFETY: the caller's promise.
        let (local_x, share) = unsafe { (tensor("local_x", local_x)?, tensor("share", share)?) };
        movement::undispatch_sharded(k, side_of(side)?, local_x, share, stream_of(stream))
    })
}

/// Shifts tokens along the global sequence, those at the end to the front: token `(i + shift) mod valid` of the result is
/// token i of `local_x`, whichever ranks own them. Tokens from `valid` on, padding that the caller put there, stay.
///
/// `local_x`, `local_y`: `[local tokens of side, ..]`, same dtype and trailing shape, any strides. `shift` may be negative or
/// larger than the total. `valid`: 0 to the side's total, or -1 for all; equal on all ranks, as `shift`. Errors: as
/// magi_undispatch, and INVALID_ARGUMENT. Collective. Its gradient is magi_roll of the gradients by -shift.
///
/// # Safety
/// The tensors must be as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_roll(
    key: Option<&magi_key>,
    side: i32,
    local_x: *const magi_tensor,
    shift: i64,
    valid: i64,
    local_y: *const magi_tensor,
    stream: magi_stream,
) -> Status {
    with_key("magi_roll", key, |k| {
        // SAFETY: the caller's promise.
        let (local_x, local_y) = unsafe { (tensor("local_x", local_x)?, tensor("local_y", local_y)?) };
        roll::roll(
            k,
            side_of(side)?,
            local_x,
            shift,
            valid,
            local_y,
            stream_of(stream),
        )
    })
}

/// The least number of tokens to add to `total` so that it divides evenly into chunks, equally many for each rank. Only for
/// callers who want that: nothing in this library needs it.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT. Any thread.
///
/// # Safety
/// `pad` must point to an int64_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_compute_pad_size(
    total: i64,
    chunk_size: i64,
    world_size: i32,
    pad: *mut i64,
) -> Status {
    guard("magi_compute_pad_size", || {
        let needed = roll::pad_size(total, chunk_size, world_size.into())?;
        // SAFETY: the caller's promise.
        unsafe { write_out("pad", pad, needed) }
    })
}
