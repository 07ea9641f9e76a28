//! Where NVRTC may lie on a user's machine.

use std::ffi::{CStr, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::device::places::{self, Wanted, open};

pub use crate::device::places::Place;

/// The library's file names, newest first.
pub const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Every place, in the order of trying.
pub fn places() -> Vec<Place> {
    places::places(&Wanted {
        names: &NAMES,
        wheels: &["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cu12/lib"],
        usual: "/usr/local/cuda/lib64",
    })
}

/// Loads the compiler's second library from the folder of the first, the one that holds the code at `inside`: the compiler
/// asks the loader for it by its name alone, and the loader does not know that folder. Where it is not there the loader
/// may know better.
pub(super) fn load_builtins(inside: *const c_void, (major, minor): (i32, i32)) {
    // SAFETY: all zero bytes are a value of this struct of pointers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: only looks the address up; the struct is good for what is written.
    if unsafe { libc::dladdr(inside, &mut info) } == 0 || info.dli_fname.is_null() {
        return;
    }
    // SAFETY: the loader's own string, good while the library is loaded.
    let file = unsafe { CStr::from_ptr(info.dli_fname) };
    let folder = Path::new(OsStr::from_bytes(file.to_bytes())).parent();
    let name = format!("libnvrtc-builtins.so.{major}.{minor}");
    if let Some(path) = folder.map(|f| f.join(name)).filter(|p| p.exists()) {
        open(&path);
    }
}
