//! A device with its primary context.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUcontext, CUdevice_attribute_enum as Attribute};
use parking_lot::Mutex;

use super::driver::{self, check};
use crate::device::fault;
use crate::types::{Error, Result, Status};

/// What kernels are chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The device's name.
    pub name: String,
    /// Compute capability, before the point.
    pub major: i32,
    /// Compute capability, after the point.
    pub minor: i32,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of level-2 cache.
    pub l2_bytes: i32,
    /// Most bytes of shared memory that a thread block can ask for.
    pub shared_bytes: i32,
    /// Bytes of memory.
    pub memory_bytes: usize,
}

/// A CUDA device. Holds its primary context, the one that the CUDA runtime and frameworks use too, to the end of the
/// process.
#[derive(Debug)]
pub struct Gpu {
    ordinal: i32,
    context: CUcontext,
    properties: Properties,
    shared: OnceLock<()>,
}

// SAFETY: a context may be used from any thread; the pointer is never dereferenced here.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// While it lives, a device's context is the thread's current one; then the one before is again.
#[derive(Debug)]
pub struct Current<'a> {
    gpu: PhantomData<&'a Gpu>,
    /// The current context belongs to a thread.
    thread: PhantomData<*const ()>,
}

impl Gpu {
    /// The device with this index. `Status::NoDevice` without a driver or such a device.
    pub fn open(ordinal: i32) -> Result<Arc<Gpu>> {
        static OPEN: Mutex<BTreeMap<i32, Arc<Gpu>>> = Mutex::new(BTreeMap::new());
        fault::point("cuda.open", ordinal as usize)?;
        let count = driver::device_count()?;
        if !(0..count).contains(&ordinal) {
            let message = format!(
                "there is no CUDA device {ordinal}; this process sees {count} (CUDA_VISIBLE_DEVICES)"
            );
            return Err(Error::new(Status::NoDevice, message));
        }
        let mut open = OPEN.lock();
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Arc::new(Gpu::retain(ordinal)?);
        open.insert(ordinal, gpu.clone());
        Ok(gpu)
    }

    fn retain(ordinal: i32) -> Result<Gpu> {
        let mut device = 0;
        // SAFETY: the driver is there; the pointer is good for a device.
        check(unsafe { sys::cuDeviceGet(&mut device, ordinal) }, "cuDeviceGet")?;
        let properties = properties(device)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: a device of this driver; the pointer is good for a context.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) };
        check(code, "cuDevicePrimaryCtxRetain")?;
        Ok(Gpu {
            ordinal,
            context,
            properties,
            shared: OnceLock::new(),
        })
    }

    /// Its index.
    pub fn ordinal(&self) -> i32 {
        self.ordinal
    }

    /// What kernels are chosen by.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The primary context.
    pub(super) fn context(&self) -> CUcontext {
        self.context
    }

    /// Waits until everything that was enqueued on the device is done, on whatever stream.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: a context is current.
        check(unsafe { sys::cuCtxSynchronize() }, "cuCtxSynchronize")
    }

    /// Lets the other devices of the process reach memory that is taken in the order of a stream, as they reach any other:
    /// NCCL reads and writes the memory of another rank of its process directly. Once.
    pub(super) fn share_stream_memory(&self) {
        self.shared.get_or_init(|| {
            // Devices that cannot reach this one get their bytes another way.
            let _ = driver::device_count().and_then(|count| share_pool(self.ordinal, count));
        });
    }

    /// Makes its context the thread's current one until the result is dropped.
    pub fn enter(&self) -> Result<Current<'_>> {
        // SAFETY: the context is retained for good.
        let code = unsafe { sys::cuCtxPushCurrent_v2(self.context) };
        check(code, "cuCtxPushCurrent")?;
        Ok(Current {
            gpu: PhantomData,
            thread: PhantomData,
        })
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: `enter` pushed on this thread, and guards are dropped in reverse order of their making.
        let _ = unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}

/// Opens the pool of device `ordinal` to those of all `count` devices that can reach it.
fn share_pool(ordinal: i32, count: i32) -> Result<()> {
    let device = |ordinal| {
        let mut device = 0;
        // SAFETY: the driver is there; the pointer is good for a device.
        check(unsafe { sys::cuDeviceGet(&mut device, ordinal) }, "cuDeviceGet").map(|()| device)
    };
    let own = device(ordinal)?;
    let mut peers = Vec::new();
    for other in (0..count).filter(|&other| other != ordinal) {
        let (peer, mut can) = (device(other)?, 0);
        // SAFETY: devices of this driver; the pointer is good for an int.
        let code = unsafe { sys::cuDeviceCanAccessPeer(&mut can, peer, own) };
        check(code, "cuDeviceCanAccessPeer")?;
        if can != 0 {
            // SAFETY: plain numbers, for which zeros are values.
            let mut access: sys::CUmemAccessDesc = unsafe { std::mem::zeroed() };
            access.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            access.location.id = peer;
            access.flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            peers.push(access);
        }
    }
    let mut pool = std::ptr::null_mut();
    // SAFETY: the pointer is good for a pool.
    let code = unsafe { sys::cuDeviceGetMemPool(&mut pool, own) };
    check(code, "cuDeviceGetMemPool")?;
    // SAFETY: the list is as long as it is said to be.
    let code = unsafe { sys::cuMemPoolSetAccess(pool, peers.as_ptr(), peers.len()) };
    check(code, "cuMemPoolSetAccess")
}

fn attribute(device: i32, which: Attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: a device of this driver; the pointer is good for an int.
    let code = unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) };
    check(code, "cuDeviceGetAttribute")?;
    Ok(value)
}

fn properties(device: i32) -> Result<Properties> {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is as long as it is said to be; the driver ends the name with a zero byte.
    let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device) };
    check(code, "cuDeviceGetName")?;
    let length = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let mut memory_bytes = 0;
    // SAFETY: the pointer is good for a size.
    let code = unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, device) };
    check(code, "cuDeviceTotalMem")?;
    Ok(Properties {
        name: String::from_utf8_lossy(&name[..length]).into_owned(),
        major: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        multiprocessors: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        shared_bytes: attribute(
            device,
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        memory_bytes,
    })
}
