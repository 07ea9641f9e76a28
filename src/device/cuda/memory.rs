//! Device memory that the library owns: taken and filled while a call prepares, never while it enqueues.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use parking_lot::Mutex;

use super::driver::check;
use super::stream::OwnStream;
use super::{Event, Gpu, stream};
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

/// How a device's uploads come and go. Made at the first one and kept.
#[derive(Debug)]
struct Uploads {
    /// On which they come, and go once nothing uses them: it never waits for work that is under way.
    stream: OwnStream,
    /// Waits for their last uses.
    behind: OwnStream,
    /// What will be free, with the points of `behind` where it is.
    leaving: Mutex<Vec<(Event, u64)>>,
}

fn uploads(gpu: &Arc<Gpu>) -> Result<Arc<Uploads>> {
    static DEVICES: Mutex<BTreeMap<i32, Arc<Uploads>>> = Mutex::new(BTreeMap::new());
    let mut devices = DEVICES.lock();
    if let Some(found) = devices.get(&gpu.ordinal()) {
        return Ok(found.clone());
    }
    let made = Arc::new(Uploads {
        stream: OwnStream::urgent(gpu)?,
        behind: OwnStream::urgent(gpu)?,
        leaving: Mutex::default(),
    });
    devices.insert(gpu.ordinal(), made.clone());
    Ok(made)
}

impl Uploads {
    /// Frees at once.
    fn free(&self, gpu: &Gpu, address: u64) -> Result<()> {
        let _current = gpu.enter()?;
        // SAFETY: taken by `DeviceMemory::pooled` and freed once; nothing uses it any more.
        let code = unsafe { sys::cuMemFreeAsync(address, stream::handle(self.stream.as_stream())) };
        check(code, "cuMemFreeAsync")
    }

    /// Frees at a later upload, once the device has come to `last_use`. Freed on a stream that waits for it, the memory would
    /// make the next upload wait too: there, or where the driver gives it out again.
    fn free_behind(&self, gpu: &Arc<Gpu>, address: u64, last_use: &Event) -> Result<()> {
        let gone = Event::new(gpu)?;
        last_use.wait(self.behind.as_stream())?;
        gone.record(self.behind.as_stream())?;
        self.leaving.lock().push((gone, address));
        Ok(())
    }

    /// Frees what nothing uses any more.
    fn sweep(&self, gpu: &Gpu) -> Result<()> {
        let mut leaving = self.leaving.lock();
        for i in (0..leaving.len()).rev() {
            if leaving[i].0.is_done()? {
                let (_, address) = leaving.swap_remove(i);
                self.free(gpu, address)?;
            }
        }
        Ok(())
    }
}

thread_local! {
    /// Behind the last use of what this thread drops now.
    static FENCE: RefCell<Option<Arc<Event>>> = const { RefCell::new(None) };
}

/// Calls `f`. What it drops of uploads is freed when the device has come to `last_use`, and the host waits for nothing.
/// Everything that uses it was enqueued, on streams that `last_use` is behind.
pub fn free_behind(last_use: Arc<Event>, f: impl FnOnce()) {
    let before = FENCE.with(|fence| fence.replace(Some(last_use)));
    f();
    FENCE.with(|fence| fence.replace(before));
}

/// Memory taken at once and freed when it is dropped, which waits for the device, except for uploads in `free_behind`.
#[derive(Debug)]
pub struct DeviceMemory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
    /// Of the driver's pool, in the order of the stream of uploads.
    pooled: bool,
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
            pooled: false,
        })
    }

    /// The same for what is uploaded and freed while the device works: from the driver's pool, where it has one.
    pub fn pooled(gpu: &Arc<Gpu>, bytes: usize) -> Result<DeviceMemory> {
        if bytes == 0 {
            return DeviceMemory::new(gpu, 0);
        }
        gpu.share_stream_memory();
        let uploads = uploads(gpu)?;
        uploads.sweep(gpu)?;
        let own = &uploads.stream;
        let _current = gpu.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is good for an address; the stream lives to the end of the process.
        let code = unsafe { sys::cuMemAllocAsync(&mut address, bytes, stream::handle(own.as_stream())) };
        if code == CUresult::CUDA_ERROR_NOT_SUPPORTED {
            return DeviceMemory::new(gpu, bytes);
        }
        check(code, &format!("{bytes} bytes on CUDA device {}", gpu.ordinal()))?;
        // Any stream may use it now.
        stream::synchronize(gpu, own.as_stream())?;
        Ok(DeviceMemory {
            gpu: gpu.clone(),
            address,
            bytes,
            pooled: true,
        })
    }

    /// Memory that holds `from`. Waits until the bytes are there.
    pub fn upload(gpu: &Arc<Gpu>, from: &[u8]) -> Result<DeviceMemory> {
        let memory = DeviceMemory::pooled(gpu, from.len())?;
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

    /// Copies `from` to `offset`. Waits until the bytes are there, but for nothing that is under way on other streams, the
    /// default one among them.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.expect_inside(offset, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        let uploads = uploads(&self.gpu)?;
        let own = &uploads.stream;
        let _current = self.gpu.enter()?;
        let to = self.address + offset as u64;
        let on = stream::handle(own.as_stream());
        // SAFETY: both sides are as long as the copy, and stay until the stream has been waited for.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), on) };
        check(code, "cuMemcpyHtoDAsync")?;
        stream::synchronize(&self.gpu, own.as_stream())
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

impl DeviceMemory {
    /// Gives pooled memory back, behind its last use.
    fn give_back(&self) -> Result<()> {
        let uploads = uploads(&self.gpu)?;
        match FENCE.try_with(|fence| fence.borrow().clone()).ok().flatten() {
            Some(last_use) => uploads.free_behind(&self.gpu, self.address, &last_use),
            None => self
                .gpu
                .synchronize()
                .and_then(|()| uploads.free(&self.gpu, self.address)),
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.pooled {
            // A device that has failed takes nothing back.
            let _ = self.give_back();
            return;
        }
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
