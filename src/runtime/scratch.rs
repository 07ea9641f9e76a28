//! Host memory for one call that moves tensors of any dtype and shape, whose size no plan knows.

use crate::types::{DType, Device, Error, Result, Status, Tensor};

/// A dense tensor in memory of its own.
pub(super) struct Scratch {
    /// Words, so that every element type is aligned.
    words: Vec<u64>,
    dtype: DType,
    shape: Vec<i64>,
}

impl Scratch {
    /// Room for `rows` rows like those of `like`. `Status::OutOfMemory` when there is none.
    pub fn rows_like(rows: i64, like: &Tensor) -> Result<Scratch> {
        let mut shape = like.shape().to_vec();
        shape[0] = rows;
        Scratch::new(like.dtype(), shape)
    }

    /// A zeroed dense tensor.
    pub fn new(dtype: DType, shape: Vec<i64>) -> Result<Scratch> {
        let elements: usize = shape.iter().map(|&n| n as usize).product();
        let count = (elements * dtype.size()).div_ceil(8);
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| {
            Error::new(
                Status::OutOfMemory,
                format!("no memory for a scratch tensor of {} bytes", count * 8),
            )
        })?;
        words.resize(count, 0);
        Ok(Scratch { words, dtype, shape })
    }

    /// The tensor, good while the scratch lives.
    pub fn tensor(&mut self) -> Tensor {
        // SAFETY: the words hold every element, and are touched through this tensor only until the scratch is dropped.
        unsafe {
            Tensor::dense(
                self.words.as_mut_ptr().cast(),
                self.dtype,
                Device::Cpu,
                &self.shape,
            )
        }
    }

    /// The tensor's bytes.
    pub fn bytes(&self) -> &[u8] {
        let elements: usize = self.shape.iter().map(|&n| n as usize).product();
        // SAFETY: u64 words are initialised bytes, at least as many as the elements take.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), elements * self.dtype.size()) }
    }

    /// The tensor's bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let elements: usize = self.shape.iter().map(|&n| n as usize).product();
        // SAFETY: as in `bytes`; any bytes are valid words.
        unsafe {
            std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), elements * self.dtype.size())
        }
    }
}
