//! Memory for one call that moves tensors of any dtype and shape, whose size no plan knows.

use super::on_stream::OnStream;
use crate::device::cuda::StreamMemory;
use crate::types::{DType, Device, Error, Result, Status, Tensor};

/// A dense tensor in memory of its own.
pub(super) struct Scratch {
    memory: Memory,
    dtype: DType,
    shape: Vec<i64>,
}

enum Memory {
    /// Words, so that every element type is aligned.
    Host(Vec<u64>),
    /// Taken and freed in the order of the call's stream.
    Cuda(StreamMemory, Device),
}

impl Scratch {
    /// Room for `rows` rows like those of `like`. `Status::OutOfMemory` when there is none.
    pub fn rows_like(on: &OnStream, rows: i64, like: &Tensor) -> Result<Scratch> {
        let mut shape = like.shape().to_vec();
        shape[0] = rows;
        Scratch::new(on, like.dtype(), shape)
    }

    /// A dense tensor where the call computes: zeroed in host memory, undefined on a CUDA device.
    pub fn new(on: &OnStream, dtype: DType, shape: Vec<i64>) -> Result<Scratch> {
        let Some(cuda) = on.cuda() else {
            return Scratch::host(dtype, shape);
        };
        let (gpu, bytes) = (cuda.gpu(), bytes_of(dtype, &shape));
        let memory = StreamMemory::new(gpu, bytes, cuda.stream())?;
        Ok(Scratch {
            memory: Memory::Cuda(memory, Device::Cuda(gpu.ordinal())),
            dtype,
            shape,
        })
    }

    /// A zeroed dense tensor in host memory.
    pub fn host(dtype: DType, shape: Vec<i64>) -> Result<Scratch> {
        let count = bytes_of(dtype, &shape).div_ceil(8);
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| {
            Error::new(
                Status::OutOfMemory,
                format!("no memory for a scratch tensor of {} bytes", count * 8),
            )
        })?;
        words.resize(count, 0);
        Ok(Scratch {
            memory: Memory::Host(words),
            dtype,
            shape,
        })
    }

    /// The tensor, good while the scratch lives, and on a CUDA device for what is enqueued on the call's stream until then.
    pub fn tensor(&mut self) -> Tensor {
        let (data, device) = match &mut self.memory {
            Memory::Host(words) => (words.as_mut_ptr().cast(), Device::Cpu),
            Memory::Cuda(memory, device) => (memory.as_ptr(), *device),
        };
        // SAFETY: the memory holds every element, and is touched through this tensor only until the scratch is dropped.
        unsafe { Tensor::dense(data, self.dtype, device, &self.shape) }
    }

    /// The tensor's bytes; none on a CUDA device.
    pub fn host_bytes(&self) -> &[u8] {
        let Memory::Host(words) = &self.memory else {
            return &[];
        };
        let bytes = bytes_of(self.dtype, &self.shape);
        // SAFETY: u64 words are initialised bytes, at least as many as the elements take.
        unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), bytes) }
    }

    /// The tensor's bytes, to be filled; none on a CUDA device.
    pub fn host_bytes_mut(&mut self) -> &mut [u8] {
        let bytes = bytes_of(self.dtype, &self.shape);
        let Memory::Host(words) = &mut self.memory else {
            return &mut [];
        };
        // SAFETY: as in `host_bytes`; any bytes are valid words.
        unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) }
    }
}

fn bytes_of(dtype: DType, shape: &[i64]) -> usize {
    let elements: usize = shape.iter().map(|&n| n as usize).product();
    elements * dtype.size()
}
