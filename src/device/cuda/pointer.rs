//! Where memory lies.

use std::ffi::c_void;

use cudarc::driver::sys::{self, CUpointer_attribute_enum as Attribute, CUresult};

use super::driver::{self, check};
use crate::types::Result;

const DEVICE_MEMORY: u32 = 2;

/// The device whose memory `at` points into; `None` for host memory, pinned or not. Managed memory counts as the
/// device's.
pub fn device_of(at: *const u8) -> Result<Option<i32>> {
    driver::init()?;
    let mut kind = 0u32;
    match query(
        at,
        Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
        (&raw mut kind).cast(),
    ) {
        CUresult::CUDA_SUCCESS if kind == DEVICE_MEMORY => (),
        // The driver has never heard of plain host memory.
        CUresult::CUDA_SUCCESS | CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(None),
        code => check(code, "cuPointerGetAttribute")?,
    }
    let mut ordinal = 0i32;
    let code = query(
        at,
        Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        (&raw mut ordinal).cast(),
    );
    check(code, "cuPointerGetAttribute")?;
    Ok(Some(ordinal))
}

fn query(at: *const u8, which: Attribute, into: *mut c_void) -> CUresult {
    // SAFETY: the driver was started, only looks the address up, and `into` is good for four bytes, which both
    // attributes asked for take.
    unsafe { sys::cuPointerGetAttribute(into, which, at as u64) }
}
