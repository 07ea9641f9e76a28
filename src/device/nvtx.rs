//! Named ranges for profilers that follow NVTX. Without its library there are none, and nothing fails.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::places::{Wanted, places};

/// CUDA 12 and earlier have the first, later wheels the other.
const NAMES: [&str; 2] = ["libnvToolsExt.so.1", "libnvtx3interop.so.1"];

const WANTED: Wanted = Wanted {
    names: &NAMES,
    wheels: &["nvidia/nvtx/lib", "nvidia/cu13/lib"],
    usual: "/usr/local/cuda/lib64",
};

/// What is called of it.
struct Functions {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
}

/// Looked for once per process, when the first range is asked for.
fn functions() -> Option<&'static Functions> {
    static FOUND: OnceLock<Option<Functions>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let mut libraries = places(&WANTED).into_iter().filter_map(|p| p.open(&NAMES));
            libraries.find_map(functions_of)
        })
        .as_ref()
}

fn functions_of(library: *mut c_void) -> Option<Functions> {
    let symbol = |name: &CStr| {
        // SAFETY: a handle of dlopen that is never closed.
        let at = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!at.is_null()).then_some(at)
    };
    let (push, pop) = (symbol(c"nvtxRangePushA")?, symbol(c"nvtxRangePop")?);
    // SAFETY: the types of these functions in every version of NVTX.
    unsafe {
        Some(Functions {
            push: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*const c_char) -> c_int>(push),
            pop: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(pop),
        })
    }
}

/// A range of this thread's, from where it is made to where it is dropped. Ranges nest.
#[must_use = "a range ends where it is dropped"]
pub struct NvtxRange {
    functions: Option<&'static Functions>,
    /// Ranges belong to a thread.
    thread: PhantomData<*const ()>,
}

impl NvtxRange {
    /// Begins one; `name` is not asked for without NVTX.
    pub fn begin(name: impl FnOnce() -> String) -> NvtxRange {
        let named = functions().and_then(|f| CString::new(name()).ok().map(|name| (f, name)));
        if let Some((functions, name)) = &named {
            // SAFETY: the text ends with a zero byte; NVTX copies it.
            unsafe { (functions.push)(name.as_ptr()) };
        }
        NvtxRange {
            functions: named.map(|(functions, _)| functions),
            thread: PhantomData,
        }
    }
}

impl Drop for NvtxRange {
    fn drop(&mut self) {
        if let Some(functions) = self.functions {
            // SAFETY: ends the range that `begin` began on this thread; those inside it ended before.
            unsafe { (functions.pop)() };
        }
    }
}
