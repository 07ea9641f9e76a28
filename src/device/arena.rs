//! Workspace of one communicator on one device.

use std::alloc::Layout;
use std::ffi::c_void;

use super::cuda::{DeviceMemory, Gpu};
use super::{ALIGNMENT, fault};
use crate::types::{Allocator, Device, Error, Result, Status};

/// One block of workspace that only grows. Contents are undefined, also after it has grown.
#[derive(Debug)]
pub struct Arena {
    rank: usize,
    device: Device,
    block: Option<Block>,
}

#[derive(Debug)]
struct Block {
    base: *mut u8,
    bytes: usize,
    device: Device,
    owner: Owner,
}

/// Who made a block, and so who takes it back.
#[derive(Debug)]
enum Owner {
    Hook(Allocator),
    System,
    /// It goes when this is dropped.
    Device(#[expect(dead_code, reason = "held, not read")] DeviceMemory),
}

// SAFETY: a Block owns the memory it points to; an Allocator may be called from any thread.
unsafe impl Send for Block {}
// SAFETY: a shared Block gives out copies of the address only.
unsafe impl Sync for Block {}

impl Arena {
    /// An arena in host memory, without any yet; `rank` is for messages and fault points.
    pub fn new(rank: usize) -> Arena {
        Arena::on(rank, Device::Cpu)
    }

    /// As `new`, in the memory of `device`.
    pub fn on(rank: usize, device: Device) -> Arena {
        Arena {
            rank,
            device,
            block: None,
        }
    }

    /// Makes the block at least `bytes` long. Where it is that long already nothing happens; otherwise `allocator`
    /// (`None`: the system) makes a new block and the old one goes back to whoever made it. Fails with
    /// `Status::OutOfMemory` when the allocator returns null and with `Status::InvalidArgument` when its pointer
    /// is not aligned to 256; then the old block stays as it was.
    pub fn reserve(&mut self, bytes: usize, allocator: Option<Allocator>) -> Result<()> {
        if bytes <= self.bytes() {
            return Ok(());
        }
        fault::point("arena.reserve", self.rank)?;
        let block = Block::allocate(self.rank, self.device, bytes, allocator)?;
        self.block = Some(block);
        Ok(())
    }

    /// First byte, aligned to 256; null while nothing was reserved.
    pub fn base(&self) -> *mut u8 {
        self.block.as_ref().map_or(std::ptr::null_mut(), |b| b.base)
    }

    /// Length of the block in bytes.
    pub fn bytes(&self) -> usize {
        self.block.as_ref().map_or(0, |b| b.bytes)
    }
}

impl Block {
    fn allocate(rank: usize, device: Device, bytes: usize, allocator: Option<Allocator>) -> Result<Block> {
        let (base, owner, who) = match (allocator, device) {
            // SAFETY: whoever installed the allocator promises that `alloc` may be called with `userdata`.
            (Some(a), _) => (
                unsafe { (a.alloc)(bytes, a.userdata) }.cast::<u8>(),
                Owner::Hook(a),
                "the caller's allocator",
            ),
            (None, Device::Cpu) => (system_allocate(bytes), Owner::System, "the system"),
            (None, Device::Cuda(ordinal)) => {
                let memory = DeviceMemory::new(&Gpu::open(ordinal)?, bytes)?;
                (memory.as_ptr(), Owner::Device(memory), "the device")
            }
        };
        if base.is_null() {
            let message = format!("workspace of {bytes} bytes for rank {rank} was refused by {who}");
            return Err(Error::new(Status::OutOfMemory, message));
        }
        let block = Block {
            base,
            bytes,
            device,
            owner,
        };
        if !(base as usize).is_multiple_of(ALIGNMENT) {
            // Dropping the block returns it to the allocator that made it.
            return Err(Error::argument(format!(
                "allocator hook returned {base:p} for {bytes} bytes; the pointer must be aligned to {ALIGNMENT}"
            )));
        }
        Ok(block)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // Calls return while the device still works in the block. The device's own allocator waits for it; a hook may give
        // the block to somebody else at once.
        if let (Owner::Hook(_), Device::Cuda(ordinal)) = (&self.owner, self.device)
            && let Ok(gpu) = Gpu::open(ordinal)
        {
            // An error: the device has failed, and nothing runs there any more.
            let _ = gpu.synchronize();
        }
        match self.owner {
            // SAFETY: `base` came from this allocator's `alloc` with the same size, and is freed once: a Block is
            // neither Clone nor Copy.
            Owner::Hook(a) => unsafe { (a.free)(self.base.cast::<c_void>(), self.bytes, a.userdata) },
            Owner::Device(_) => {}
            Owner::System => {
                if let Ok(layout) = Layout::from_size_align(self.bytes, ALIGNMENT) {
                    // SAFETY: `base` came from `system_allocate` with the same layout, and is freed once.
                    unsafe { std::alloc::dealloc(self.base, layout) }
                }
            }
        }
    }
}

/// `bytes` (not 0) aligned bytes from the system, or null.
fn system_allocate(bytes: usize) -> *mut u8 {
    match Layout::from_size_align(bytes, ALIGNMENT) {
        // SAFETY: `reserve` only gets here with more bytes than the arena has, so the size is not 0.
        Ok(layout) => unsafe { std::alloc::alloc(layout) },
        Err(_) => std::ptr::null_mut(),
    }
}
