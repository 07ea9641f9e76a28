//! Non-owning tensor descriptors.

use super::{DType, Error, Result, Status};

/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 8;

/// Where a tensor's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory.
    Cpu,
    /// Memory of the CUDA device with this index.
    Cuda(i32),
}

/// Data pointer, dtype, device, shape and strides (in elements) of memory that somebody else owns.
///
/// Whoever makes one promises that every element it describes is readable, and writable if it is handed to a
/// parameter that is documented as output, for as long as the value or a view of it is used; and that nobody
/// else writes those elements meanwhile. The functions of this crate that take a `Tensor` rely on it.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    data: *mut u8,
    dtype: DType,
    device: Device,
    ndim: usize,
    shape: [i64; MAX_DIMS],
    stride: [i64; MAX_DIMS],
}

// SAFETY: a Tensor is an address with a description; the promise made where it is created (see the type) covers
// use from any thread.
unsafe impl Send for Tensor {}
// SAFETY: as above; a shared Tensor gives out copies of the address only.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// Describes `data` with explicit strides.
    ///
    /// # Safety
    /// The elements described must satisfy the promise in the type's documentation. With no elements, `data` may
    /// be null.
    pub unsafe fn from_raw(
        data: *mut u8,
        dtype: DType,
        device: Device,
        shape: &[i64],
        stride: &[i64],
    ) -> Tensor {
        assert!(shape.len() <= MAX_DIMS && shape.len() == stride.len());
        let mut t = Tensor {
            data,
            dtype,
            device,
            ndim: shape.len(),
            shape: [1; MAX_DIMS],
            stride: [1; MAX_DIMS],
        };
        t.shape[..shape.len()].copy_from_slice(shape);
        t.stride[..shape.len()].copy_from_slice(stride);
        t
    }

    /// Describes `data` as a dense row-major tensor.
    ///
    /// # Safety
    /// As `from_raw`.
    pub unsafe fn dense(data: *mut u8, dtype: DType, device: Device, shape: &[i64]) -> Tensor {
        let mut stride = [1i64; MAX_DIMS];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            stride[i] = stride[i + 1] * shape[i + 1].max(1);
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { Tensor::from_raw(data, dtype, device, shape, &stride[..shape.len()]) }
    }

    /// First element.
    pub fn data(&self) -> *mut u8 {
        self.data
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Where the bytes lie.
    pub fn device(&self) -> Device {
        self.device
    }
    /// Extent of each dimension.
    pub fn shape(&self) -> &[i64] {
        &self.shape[..self.ndim]
    }
    /// Elements from one index to the next, for each dimension.
    pub fn stride(&self) -> &[i64] {
        &self.stride[..self.ndim]
    }
    /// Number of elements.
    pub fn elements(&self) -> i64 {
        self.shape().iter().product()
    }
    /// Extent of the first dimension: tokens, for most tensors here.
    pub fn tokens(&self) -> i64 {
        self.shape[0]
    }
    /// Elements of one index of the first dimension.
    pub fn row_elements(&self) -> i64 {
        self.shape().iter().skip(1).product()
    }
    /// Whether the rows (all dimensions but the first) are dense, so that a row can be copied as bytes.
    pub fn has_dense_rows(&self) -> bool {
        let mut want = 1;
        for i in (1..self.ndim).rev() {
            if self.shape[i] != 1 && self.stride[i] != want {
                return false;
            }
            want *= self.shape[i];
        }
        true
    }
    /// Whether the whole tensor is dense and row-major.
    pub fn is_dense(&self) -> bool {
        self.has_dense_rows() && (self.shape[0] <= 1 || self.stride[0] == self.row_elements())
    }

    /// Rows `[start, end)` of the first dimension, which must lie inside.
    pub fn rows(&self, start: i64, end: i64) -> Tensor {
        assert!(
            0 <= start && start <= end && end <= self.shape[0],
            "rows [{start}, {end}) of {}",
            self.shape[0]
        );
        let mut t = *self;
        t.shape[0] = end - start;
        if start != 0 {
            t.data = t
                .data
                .wrapping_offset((start * self.stride[0]) as isize * self.dtype.size() as isize);
        }
        t
    }

    /// Bytes `[first, last)` that the tensor's elements span, as addresses; `None` without elements.
    pub fn span(&self) -> Option<(usize, usize)> {
        if self.elements() == 0 {
            return None;
        }
        let (mut low, mut high) = (0i128, 0i128);
        for (&n, &s) in self.shape().iter().zip(self.stride()) {
            let reach = i128::from(n - 1) * i128::from(s);
            if reach < 0 { low += reach } else { high += reach }
        }
        let size = self.dtype.size() as i128;
        let base = self.data as usize as i128;
        Some(((base + low * size) as usize, (base + (high + 1) * size) as usize))
    }

    /// Fails with `Status::ShapeMismatch` naming `name` unless the shape is `want`.
    pub fn expect_shape(&self, name: &str, want: &[i64]) -> Result<()> {
        if self.shape() == want {
            return Ok(());
        }
        Err(Error::new(
            Status::ShapeMismatch,
            format!("{name} has shape {:?}; it must be {want:?}", self.shape()),
        ))
    }

    /// Fails with `Status::DtypeMismatch` naming `name` unless the dtype is `want`.
    pub fn expect_dtype(&self, name: &str, want: DType) -> Result<()> {
        if self.dtype == want {
            return Ok(());
        }
        let message = format!(
            "{name} has dtype {}; it must be {}",
            self.dtype.name(),
            want.name()
        );
        Err(Error::new(Status::DtypeMismatch, message))
    }
}
