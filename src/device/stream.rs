//! The caller's stream.

use std::ffi::c_void;

/// The caller's `CUstream`, borrowed. Null on the CPU, where every call has finished when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(*mut c_void);

// SAFETY: an opaque handle that this type never dereferences; CUDA accepts a stream from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above; a shared Stream gives out copies of the handle only.
unsafe impl Sync for Stream {}

impl Stream {
    /// The stream of the CPU.
    pub const NULL: Stream = Stream(std::ptr::null_mut());

    /// Borrows the caller's `stream`, which may be null.
    pub fn new(stream: *mut c_void) -> Stream {
        Stream(stream)
    }

    /// Whether this is the null stream.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The caller's handle.
    pub fn as_ptr(self) -> *mut c_void {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_handle() {
        let handle = 0x40 as *mut c_void;
        assert_eq!(Stream::new(handle).as_ptr(), handle);
        assert!(!Stream::new(handle).is_null());
        assert!(Stream::NULL.is_null());
    }
}
