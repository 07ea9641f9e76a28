//! Cuts one block of workspace into aligned sub-blocks.

use crate::types::{Error, Result, Status};

/// Alignment in bytes of workspace and of every sub-block cut from it: what CUDA's own allocations promise.
pub const ALIGNMENT: usize = 256;

/// Hands out sub-blocks one after the other. The function that lays out a workspace runs twice: with
/// `Carver::measure` to learn how many bytes it needs, then with `Carver::over` to get the pointers; both take the
/// same path, so the size cannot disagree with the layout.
#[derive(Debug)]
pub struct Carver {
    /// Null while measuring.
    base: *mut u8,
    bytes: usize,
    used: usize,
}

impl Carver {
    /// A carver without memory: `take` returns null, `used` tells the size.
    pub fn measure() -> Carver {
        Carver {
            base: std::ptr::null_mut(),
            bytes: usize::MAX,
            used: 0,
        }
    }

    /// A carver over `bytes` bytes at `base`. Fails with `Status::InvalidArgument` when `base` is not aligned to
    /// 256, and with `Status::NullPointer` when it is null although `bytes` is not 0.
    pub fn over(base: *mut u8, bytes: usize) -> Result<Carver> {
        if base.is_null() && bytes != 0 {
            let message = format!("workspace is NULL but its size is {bytes} bytes");
            return Err(Error::new(Status::NullPointer, message));
        }
        if !(base as usize).is_multiple_of(ALIGNMENT) {
            return Err(Error::argument(format!(
                "workspace {base:p} is not aligned to {ALIGNMENT} bytes"
            )));
        }
        Ok(Carver { base, bytes, used: 0 })
    }

    /// The next `bytes` bytes, aligned to 256; null while measuring. A sub-block of 0 bytes uses nothing and must
    /// not be dereferenced. Fails with `Status::BufferTooSmall` when the block does not hold it (with
    /// `Status::OutOfMemory` while measuring: then no address space does), and hands out nothing.
    pub fn take(&mut self, bytes: usize) -> Result<*mut u8> {
        let end = bytes
            .checked_next_multiple_of(ALIGNMENT)
            .and_then(|rounded| self.used.checked_add(rounded));
        let start = self.used;
        match end {
            Some(end) if end <= self.bytes => self.used = end,
            _ => return Err(self.refuse(bytes)),
        }
        if self.base.is_null() {
            return Ok(std::ptr::null_mut());
        }
        Ok(self.base.wrapping_add(start))
    }

    /// Bytes handed out so far, each sub-block rounded up to 256. A block of this size is enough.
    pub fn used(&self) -> usize {
        self.used
    }

    fn refuse(&self, bytes: usize) -> Error {
        let used = self.used;
        if self.base.is_null() && self.bytes == usize::MAX {
            let message = format!("workspace of {used} bytes and another {bytes} exceeds the address space");
            return Error::new(Status::OutOfMemory, message);
        }
        let message = format!(
            "workspace of {} bytes is too small: {used} are in use and the next block needs {bytes}, rounded up to a multiple of {ALIGNMENT}",
            self.bytes
        );
        Error::new(Status::BufferTooSmall, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Arena;

    fn lay_out(carver: &mut Carver) -> Result<[*mut u8; 4]> {
        Ok([
            carver.take(1)?,
            carver.take(256)?,
            carver.take(0)?,
            carver.take(257)?,
        ])
    }

    #[test]
    fn measured_size_is_exactly_enough() {
        let mut measure = Carver::measure();
        assert!(lay_out(&mut measure).unwrap().iter().all(|p| p.is_null()));
        assert_eq!(measure.used(), 1024);

        let mut arena = Arena::new(0);
        arena.reserve(measure.used(), None).unwrap();
        let mut carver = Carver::over(arena.base(), measure.used()).unwrap();
        let blocks = lay_out(&mut carver).unwrap();
        let offsets = blocks.map(|p| p as usize - arena.base() as usize);
        assert_eq!(offsets, [0, 256, 512, 512]);
        assert_eq!(carver.used(), measure.used());
        assert_eq!(carver.take(1).unwrap_err().status, Status::BufferTooSmall);
        carver.take(0).unwrap();

        let mut small = Carver::over(arena.base(), measure.used() - 1).unwrap();
        let error = lay_out(&mut small).unwrap_err();
        assert_eq!(error.status, Status::BufferTooSmall);
        assert!(
            error.message.contains("1023") && error.message.contains("257"),
            "{error}"
        );
    }

    #[test]
    fn refuses_blocks_it_cannot_cut() {
        let misaligned = Carver::over(0x1080 as *mut u8, 512).unwrap_err();
        assert_eq!(misaligned.status, Status::InvalidArgument);
        assert!(misaligned.message.contains("0x1080"), "{misaligned}");
        let null = Carver::over(std::ptr::null_mut(), 512).unwrap_err();
        assert_eq!(null.status, Status::NullPointer);
        let mut empty = Carver::over(std::ptr::null_mut(), 0).unwrap();
        assert_eq!(empty.take(1).unwrap_err().status, Status::BufferTooSmall);
        let mut measure = Carver::measure();
        measure.take(256).unwrap();
        assert_eq!(
            measure.take(usize::MAX - 255).unwrap_err().status,
            Status::OutOfMemory
        );
        assert_eq!(measure.take(usize::MAX).unwrap_err().status, Status::OutOfMemory);
        assert_eq!(measure.used(), 256);
    }
}
