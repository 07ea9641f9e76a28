//! Section 1 of the header: which version this is.

use std::ffi::c_char;

/// Major version of this header. With major version 0, a new minor version may change the ABI.
pub const MAGI_VERSION_MAJOR: i32 = 0;
/// Minor version of this header.
pub const MAGI_VERSION_MINOR: i32 = 1;
/// Patch version of this header.
pub const MAGI_VERSION_PATCH: i32 = 0;
/// Version of this header as one number, `major * 10000 + minor * 100 + patch`.
pub const MAGI_VERSION: i32 = MAGI_VERSION_MAJOR * 10000 + MAGI_VERSION_MINOR * 100 + MAGI_VERSION_PATCH;

/// Version of the library that was loaded, as one number to compare with `MAGI_VERSION`.
///
/// Thread-safe; never fails.
#[unsafe(no_mangle)]
pub extern "C" fn magi_version() -> i32 {
    MAGI_VERSION
}

/// Version of the library that was loaded, as text such as "0.1.0". Static: never freed.
///
/// Thread-safe; never fails.
#[unsafe(no_mangle)]
pub extern "C" fn magi_version_string() -> *const c_char {
    const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    TEXT.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn header_and_crate_agree() {
        let crate_version = env!("CARGO_PKG_VERSION");
        let macros = format!("{MAGI_VERSION_MAJOR}.{MAGI_VERSION_MINOR}.{MAGI_VERSION_PATCH}");
        assert_eq!(macros, crate_version);
        let mut number = 0;
        for part in crate_version.split('.') {
            number = number * 100 + part.parse::<i32>().unwrap();
        }
        assert_eq!(magi_version(), number);
        // SAFETY: the function returns a static string that ends with a NUL.
        let text = unsafe { CStr::from_ptr(magi_version_string()) };
        assert_eq!(text.to_str().unwrap(), crate_version);
    }
}
