//! Device memory that the library owns: taken and filled while a call prepares, never while it enqueues.

use std::sync::Arc;

use cudarc::driver::sys;

use super::driver::check;
use super::{Gpu, stream};
use crate::device::Stream;
use crate::types::{Error, Result};

/// Enqueues writing `value` to `count` 32-bit words.
///
/// # Safety
/// `at` points to `count` words of the device, which nobody else uses before the stream has written them.
pub unsafe fn fill_words(gpu: &Gpu, at: *mut u8, value: u32, count: usize, on: Stream) -> Result<()> {
    let _current = gpu.enter()?;
    // SAFETY: the caller's promise.
    let code = unsafe { sys::cuMemsetD32Async(at as u64, value, count, stream::handle(on)) };
    check(code, "cuMemsetD32Async")
}

/// Memory taken at once and freed when it is dropped, which may wait for the device.
#[derive(Debug)]
pub struct DeviceMemory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// `bytes` uninitialised bytes, aligned to 256. `Status::OutOfMemory` when there are none. 0 bytes have the
    /// address 0.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<DeviceMemory> {
        let mut address = 0;
        if bytes != 0 {
            let _current = gpu.enter()?;
            // SAFETY: the pointer is good for an address.
            let code = unsafe { sys::cuMemAlloc_v2(&mut address, bytes) };
            check(code, &format!("{bytes} bytes on CUDA device {}", gpu.ordinal()))?;
        }
        Ok(DeviceMemory {
            gpu: gpu.clone(),
            address,
            bytes,
        })
    }

    /// Memory that holds `from`. Waits until the bytes are there.
    pub fn upload(gpu: &Arc<Gpu>, from: &[u8]) -> Result<DeviceMemory> {
        let memory = DeviceMemory::new(gpu, from.len())?;
        memory.write(0, from)?;
        Ok(memory)
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address as *mut u8
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn expect_inside(&self, offset: usize, bytes: usize) -> Result<()> {
        if offset.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let size = self.bytes;
        Err(Error::internal(format!(
            "{bytes} bytes at {offset} of {size} bytes of device memory"
        )))
    }

    /// Copies `from` to `offset`. Waits until the bytes are there.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.expect_inside(offset, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        let _current = self.gpu.enter()?;
        // SAFETY: both sides are as long as the copy; the call returns when `from` has been read.
        let code =
            unsafe { sys::cuMemcpyHtoD_v2(self.address + offset as u64, from.as_ptr().cast(), from.len()) };
        check(code, "cuMemcpyHtoD")?;
        // The call may return when the bytes are on their way only, in the order of the default stream, for which streams
        // that were made non-blocking do not wait.
        stream::synchronize(&self.gpu, Stream::NULL)
    }

    /// Copies from `offset` to `to`. Waits for the copy, but not for other streams.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.expect_inside(offset, to.len())?;
        if to.is_empty() {
            return Ok(());
        }
        let _current = self.gpu.enter()?;
        // SAFETY: both sides are as long as the copy; the call returns when `to` has been written.
        let code =
            unsafe { sys::cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), self.address + offset as u64, to.len()) };
        check(code, "cuMemcpyDtoH")
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0
            && let Ok(_current) = self.gpu.enter()
        {
            // SAFETY: taken by `new` and freed once.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Memory taken and freed in the order of a stream: dropping it waits for nothing, and what was enqueued on the
/// stream before still finds it.
#[derive(Debug)]
pub struct StreamMemory {
    gpu: Arc<Gpu>,
    stream: Stream,
    address: u64,
    bytes: usize,
}

impl StreamMemory {
    /// `bytes` uninitialised bytes, aligned to 256, for use on `stream`, which must outlive them.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, stream: Stream) -> Result<StreamMemory> {
        let mut address = 0;
        if bytes != 0 {
            gpu.share_stream_memory();
            let _current = gpu.enter()?;
            // SAFETY: the pointer is good for an address; the stream is the caller's.
            let code = unsafe { sys::cuMemAllocAsync(&mut address, bytes, stream::handle(stream)) };
            check(code, &format!("{bytes} bytes on CUDA device {}", gpu.ordinal()))?;
        }
        Ok(StreamMemory {
            gpu: gpu.clone(),
            stream,
            address,
            bytes,
        })
    }

    /// First byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.address as *mut u8
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for StreamMemory {
    fn drop(&mut self) {
        if self.address != 0
            && let Ok(_current) = self.gpu.enter()
        {
            // SAFETY: taken by `new` on this stream, which still exists, and freed once.
            let _ = unsafe { sys::cuMemFreeAsync(self.address, stream::handle(self.stream)) };
        }
    }
}
