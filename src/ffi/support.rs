//! What can be computed where.

use std::ffi::c_char;

use super::guard::guard;
use super::input;
use super::plain::{magi_attn_shape, read_shape};
use super::single::backend_of;
use crate::runtime::support::{self, Question, Wish};
use crate::types::{Error, Status};

/// Gradients are asked for too.
pub const MAGI_WITH_BACKWARD: u32 = 1;
/// A sink.
pub const MAGI_WITH_SINK: u32 = 2;
/// max_logits.
pub const MAGI_WITH_MAX_LOGITS: u32 = 4;
/// out in the accumulator type.
pub const MAGI_WITH_ACC_OUT: u32 = 8;
/// options.accumulate.
pub const MAGI_WITH_ACCUMULATE: u32 = 16;
/// The mask as ranges in memory of the CUDA device.
pub const MAGI_WITH_DEVICE_RANGES: u32 = 32;
/// Dropout: supported nowhere.
pub const MAGI_WITH_DROPOUT: u32 = 64;
/// An additive bias or ALiBi: supported nowhere.
pub const MAGI_WITH_BIAS: u32 = 128;
/// Tensors in an 8-bit floating-point type: supported nowhere.
pub const MAGI_WITH_FP8: u32 = 256;
/// Keys and values in pages: supported nowhere.
pub const MAGI_WITH_PAGED_KEYS: u32 = 512;
/// A mask of its own for each head: supported nowhere.
pub const MAGI_WITH_HEAD_MASKS: u32 = 1024;
/// Gradients into lse: supported nowhere.
pub const MAGI_WITH_LSE_GRADIENT: u32 = 2048;

const _: () = {
    assert!(MAGI_WITH_BACKWARD == Wish::Backward as u32);
    assert!(MAGI_WITH_SINK == Wish::Sink as u32);
    assert!(MAGI_WITH_MAX_LOGITS == Wish::MaxLogits as u32);
    assert!(MAGI_WITH_ACC_OUT == Wish::AccOut as u32);
    assert!(MAGI_WITH_ACCUMULATE == Wish::Accumulate as u32);
    assert!(MAGI_WITH_DEVICE_RANGES == Wish::DeviceRanges as u32);
    assert!(MAGI_WITH_DROPOUT == Wish::Dropout as u32);
    assert!(MAGI_WITH_BIAS == Wish::Bias as u32);
    assert!(MAGI_WITH_FP8 == Wish::Fp8 as u32);
    assert!(MAGI_WITH_PAGED_KEYS == Wish::PagedKeys as u32);
    assert!(MAGI_WITH_HEAD_MASKS == Wish::HeadMasks as u32);
    assert!(MAGI_WITH_LSE_GRADIENT == Wish::LseGradient as u32);
};

/// Says in words which kernels magi_flex_flash_attn_forward and _backward would compute with on a device, and what no device
/// computes. Meant for people; the wording may change. Strides and addresses are not part of the question.
///
/// `device_type`: a magi_device_type. `device_index`: 0 on the CPU. `backend`: a magi_backend. `softmax_scale`, `softcap`: as
/// in magi_forward_args. `flags`: MAGI_WITH_*, what the calls are to do; without MAGI_WITH_BACKWARD only forward has to be
/// possible. `text`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
/// Errors: NOT_SUPPORTED when the calls cannot be computed there, the message holding every reason; NULL_POINTER, STRUCT_SIZE,
/// INVALID_ARGUMENT, INVALID_ENUM, DTYPE_MISMATCH, BUFFER_TOO_SMALL, NO_DEVICE. Any thread.
///
/// # Safety
/// `shape` must point to a magi_attn_shape; `text` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_explain_support(
    device_type: i32,
    device_index: i32,
    shape: *const magi_attn_shape,
    backend: i32,
    softmax_scale: f64,
    softcap: f64,
    flags: u32,
    text: *mut c_char,
    size: *mut usize,
) -> Status {
    guard("magi_explain_support", || {
        input::check_out("size", size)?;
        let known = 2 * MAGI_WITH_LSE_GRADIENT - 1;
        if flags & !known != 0 {
            return Err(Error::argument(format!(
                "flags is {flags:#x}; only the bits of {known:#x} are known"
            )));
        }
        if device_type == 0 && device_index != 0 {
            return Err(Error::argument(format!(
                "device_index is {device_index}; it must be 0 on the CPU"
            )));
        }
        let words = support::explain(&Question {
            device: input::device("", device_type, device_index)?,
            // SAFETY: the caller's promise.
            shape: unsafe { read_shape("shape", shape) }?,
            backend: backend_of("backend", backend)?,
            softmax_scale,
            softcap,
            wishes: flags,
        })?;
        // SAFETY: the caller's promise.
        unsafe { input::fill_text("text", words, text, size) }
    })
}
