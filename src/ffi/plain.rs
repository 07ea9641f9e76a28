//! Plain types of the header, and a helper to fill one.

use std::ffi::c_void;

use super::{guard::guard, input};
use crate::types::{AttnShape, DType, Error, MAX_DIMS, Range, Result, Status};

/// Where a tensor's bytes lie.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum magi_device_type {
    /// Host memory.
    Cpu = 0,
    /// Memory of a CUDA device.
    Cuda = 1,
}

/// Only its address passes: a `cudaStream_t` without a cast. NULL on the CPU.
pub type magi_stream = *mut CUstream_st;

/// Never defined here; CUDA's own.
#[repr(C)]
pub struct CUstream_st {
    _opaque: [u8; 0],
}

/// One slice of a mask: queries `q`, keys `k`, and which corners the diagonals run through.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct magi_slice {
    /// Query rows.
    pub q: Range,
    /// Key columns.
    pub k: Range,
    /// A magi_mask_type.
    pub mask_type: i32,
    /// Must be 0.
    pub reserved: i32,
}

/// A tensor that the caller owns: element `[i, j, ..]` lies `i * stride[0] + j * stride[1] + ..` elements after `data`.
///
/// The last stride must be 1; other strides may be anything, for outputs anything that names no element twice. `data`
/// must be aligned to its element, and may be NULL when a dimension is 0. Attention tensors are
/// `[tokens, heads, head_dim]`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_tensor {
    /// First element.
    pub data: *mut c_void,
    /// A magi_dtype.
    pub dtype: i32,
    /// A magi_device_type.
    pub device_type: i32,
    /// Index of the device; 0 on the CPU.
    pub device_index: i32,
    /// Dimensions in use, 1 to 8.
    pub ndim: i32,
    /// Extent of each dimension.
    pub shape: [i64; 8],
    /// Elements from one index to the next in each dimension.
    pub stride: [i64; 8],
}

/// Heads, head dimensions and dtype of an attention layer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_attn_shape {
    /// sizeof(magi_attn_shape).
    pub size: usize,
    /// Query heads, 1 to 65,536.
    pub heads_q: i64,
    /// Key and value heads; a divisor of heads_q.
    pub heads_kv: i64,
    /// Elements of a query or key row, 8 to 1,024.
    pub head_dim: i64,
    /// Elements of a value row, 8 to 1,024.
    pub head_dim_v: i64,
    /// A magi_dtype: f64, f32, bf16 or f16.
    pub dtype: i32,
    /// Must be 0.
    pub reserved: i32,
}

const _: () = assert!(MAX_DIMS == 8);

/// Reads and checks an attention shape.
///
/// # Safety
/// As `input::sized`.
pub(super) unsafe fn read_shape(param: &str, shape: *const magi_attn_shape) -> Result<AttnShape> {
    // SAFETY: the caller's promise.
    let s = unsafe { input::sized(param, shape) }?;
    let named = |e: Error| Error::new(e.status, format!("{param}.{}", e.message));
    if s.reserved != 0 {
        return Err(Error::argument(format!(
            "{param}.reserved is {}; it must be 0",
            s.reserved
        )));
    }
    let dtype = DType::from_i32(s.dtype).map_err(named)?;
    let (heads_q, heads_kv) = (s.heads_q, s.heads_kv);
    AttnShape {
        heads_q,
        heads_kv,
        head_dim: s.head_dim,
        head_dim_v: s.head_dim_v,
        dtype,
    }
    .validate()
    .map_err(named)
}

/// Describes `data` as a dense row-major host tensor of `ndim` dimensions. Nothing is read or allocated.
///
/// `shape`: `[ndim]`. Errors: NULL_POINTER, INVALID_ENUM (dtype), SHAPE_MISMATCH (ndim outside 1 to 8, a negative
/// extent, more elements than memory holds). Any thread.
///
/// # Safety
/// `shape` must point to `ndim` integers, `tensor` to a magi_tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_tensor_init(
    data: *mut c_void,
    dtype: i32,
    ndim: i32,
    shape: *const i64,
    tensor: *mut magi_tensor,
) -> Status {
    guard("magi_tensor_init", || {
        DType::from_i32(dtype)?;
        if !(1..=MAX_DIMS as i32).contains(&ndim) {
            return Err(Error::new(
                Status::ShapeMismatch,
                format!("ndim is {ndim}; it must be 1 to {MAX_DIMS}"),
            ));
        }
        // SAFETY: the caller's promise.
        let extents = unsafe { input::array("shape", shape, ndim as usize) }?;
        let mut t = magi_tensor {
            data,
            dtype,
            device_type: 0,
            device_index: 0,
            ndim,
            shape: [0; 8],
            stride: [0; 8],
        };
        let mut step = 1i64;
        for (i, &n) in extents.iter().enumerate().rev() {
            t.shape[i] = n;
            t.stride[i] = step;
            step = step.checked_mul(n.max(1)).filter(|_| n >= 0).ok_or_else(|| {
                Error::new(
                    Status::ShapeMismatch,
                    format!("shape[{i}] is {n}; extents must be 0 or more and fit memory"),
                )
            })?;
        }
        // SAFETY: the caller's promise.
        unsafe { input::write_out("tensor", tensor, t) }
    })
}
