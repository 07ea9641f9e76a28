//! A word of host memory that kernels write and the host reads without waiting.

use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{self, CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE};

use super::Gpu;
use super::driver::check;
use crate::types::Result;

/// 64 bits in pinned host memory, at the same address on the device; kept to the end of the process, because a captured
/// graph may write them at any time.
#[derive(Clone, Copy, Debug)]
pub struct HostWord(&'static AtomicU64);

impl HostWord {
    /// A word that is 0. Prepare time: allocates.
    pub fn new(gpu: &Gpu) -> Result<HostWord> {
        let _current = gpu.enter()?;
        let mut at = std::ptr::null_mut();
        let flags = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the pointer is good for an address. With unified addresses, which all 64-bit systems have, the device
        // knows the memory by the same one.
        let code = unsafe { sys::cuMemHostAlloc(&mut at, size_of::<u64>(), flags) };
        check(code, "cuMemHostAlloc")?;
        // SAFETY: 8 bytes, aligned to a page, never freed. The device writes them with one store.
        let word: &'static AtomicU64 = unsafe {
            at.cast::<u64>().write(0);
            &*at.cast::<AtomicU64>()
        };
        Ok(HostWord(word))
    }

    /// Where kernels write.
    pub fn as_ptr(&self) -> *mut u64 {
        self.0.as_ptr()
    }

    /// What was written last, and 0 in its place.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::AcqRel)
    }
}
