//! The fault hook: only in the test-only build, and in no header.

use std::ffi::{CStr, c_char};

use super::guard::guard;
use super::input;
use crate::device::fault;
use crate::types::{Error, Status};

/// Makes the point named `point` fail on `rank` (-1: any) after `after` harmless hits: with a panic when `status` is 0,
/// else with that status. Declared by the C tests themselves.
///
/// # Safety
/// `point` must be a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_test_fault_set(
    point: *const c_char,
    rank: i64,
    status: i32,
    after: u32,
) -> Status {
    guard("magi_test_fault_set", || {
        if point.is_null() {
            return Err(input::null("point"));
        }
        // SAFETY: not NULL, and the caller's promise.
        let point = unsafe { CStr::from_ptr(point) }.to_string_lossy();
        let action = match Status::from_i32(status) {
            Some(Status::Ok) => fault::Action::Panic,
            Some(status) => fault::Action::Error(status),
            None => return Err(Error::argument(format!("status is {status}, which is none"))),
        };
        fault::set(&point, rank, action, after);
        Ok(())
    })
}

/// Forgets all faults.
#[unsafe(no_mangle)]
pub extern "C" fn magi_test_fault_clear() {
    fault::clear();
}
