//! Tensors in the memory of the first CUDA device, for tests that are skipped where there is none.

use std::sync::Arc;

use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::types::{Device, Status, Tensor};

/// The first device, or `None` (said aloud) without one. A device that fails is no reason to skip.
pub fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        Err(e) if e.status == Status::NoDevice => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A copy in device memory of everything that a tensor in host memory spans.
pub struct Copy {
    host: Tensor,
    low: usize,
    memory: DeviceMemory,
}

impl Copy {
    pub fn of(gpu: &Arc<Gpu>, host: Tensor) -> Copy {
        let (low, high) = host.span().unwrap_or_default();
        let bytes = match high - low {
            0 => &[],
            // SAFETY: the tensor spans these bytes of its buffer.
            length => unsafe { std::slice::from_raw_parts(low as *const u8, length) },
        };
        let memory = DeviceMemory::upload(gpu, bytes).unwrap();
        Copy { host, low, memory }
    }

    pub fn tensor(&self) -> Tensor {
        let h = &self.host;
        let data = self.memory.as_ptr().wrapping_add(h.data() as usize - self.low);
        // SAFETY: the copy is as long as what the host's tensor spans.
        unsafe { Tensor::from_raw(data, h.dtype(), Device::Cuda(0), h.shape(), h.stride()) }
    }

    /// Copies back, over what the host's tensor spans.
    pub fn fetch(&self) {
        if self.memory.bytes() == 0 {
            return;
        }
        // SAFETY: as in `of`; nobody else looks at the buffer meanwhile.
        let to = unsafe { std::slice::from_raw_parts_mut(self.low as *mut u8, self.memory.bytes()) };
        self.memory.read(0, to).unwrap();
    }
}
