//! NVRTC, CUDA's compiler as a library, loaded where it is found.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::nvrtc_places::{self, Place};
use crate::types::{Error, Result, Status};

/// Oldest version that knows compute capability 9.0 with all its instructions.
const OLDEST: (i32, i32) = (12, 0);

type Program = *mut c_void;

/// The compiler's functions.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

/// A loaded compiler. Stays loaded to the end of the process.
pub struct Nvrtc {
    functions: Functions,
    version: (i32, i32),
    path: String,
}

/// What a compilation gave.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The kernels.
    pub cubin: Vec<u8>,
    /// What the compiler said.
    pub log: String,
}

impl Nvrtc {
    /// The compiler of this process, looked for at the first call. `Status::CompileFailed` lists what was tried; the answer
    /// of the first call stands.
    pub fn get() -> Result<&'static Nvrtc> {
        static FOUND: OnceLock<Result<Nvrtc>> = OnceLock::new();
        let found = FOUND.get_or_init(|| Nvrtc::load(&nvrtc_places::places()));
        found.as_ref().map_err(Clone::clone)
    }

    /// The first compiler among `places` that loads and is new enough.
    pub fn load(places: &[Place]) -> Result<Nvrtc> {
        let mut tried = Vec::new();
        for place in places {
            match place.open(&nvrtc_places::NAMES) {
                Some(handle) => match Nvrtc::of(handle, place.to_string()) {
                    Ok(nvrtc) => return Ok(nvrtc),
                    Err(why) => tried.push(format!("{place} ({why})")),
                },
                None => tried.push(place.to_string()),
            }
        }
        let message = format!(
            "kernels have to be compiled at run time, and NVRTC was not found; tried {}. Install it (pip install \
             nvidia-cuda-nvrtc), set CUDA_HOME or LD_LIBRARY_PATH, or build the library where nvcc is",
            tried.join(", ")
        );
        Err(Error::new(Status::CompileFailed, message))
    }

    fn of(handle: *mut c_void, path: String) -> std::result::Result<Nvrtc, String> {
        let symbol = |name: &CStr| {
            // SAFETY: `handle` is that of a loaded library.
            let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if at.is_null() {
                return Err(format!("lacks {}", name.to_string_lossy()));
            }
            Ok(at)
        };
        // SAFETY: these are NVRTC's functions, and the types are those of nvrtc.h, unchanged since CUDA 11.1.
        let functions = unsafe {
            Functions {
                version: function(symbol(c"nvrtcVersion")?),
                error_string: function(symbol(c"nvrtcGetErrorString")?),
                create: function(symbol(c"nvrtcCreateProgram")?),
                destroy: function(symbol(c"nvrtcDestroyProgram")?),
                compile: function(symbol(c"nvrtcCompileProgram")?),
                log_size: function(symbol(c"nvrtcGetProgramLogSize")?),
                log: function(symbol(c"nvrtcGetProgramLog")?),
                cubin_size: function(symbol(c"nvrtcGetCUBINSize")?),
                cubin: function(symbol(c"nvrtcGetCUBIN")?),
            }
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are good for an int.
        let code = unsafe { (functions.version)(&mut major, &mut minor) };
        if code != 0 || (major, minor) < OLDEST {
            return Err(format!("version {major}.{minor} is too old"));
        }
        nvrtc_places::load_builtins(functions.version as *const c_void, (major, minor));
        Ok(Nvrtc {
            functions,
            version: (major, minor),
            path,
        })
    }

    /// Version, such as (13, 0).
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Where it was found.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn explain(&self, code: c_int) -> String {
        // SAFETY: gives a static string for every number.
        let text = unsafe { CStr::from_ptr((self.functions.error_string)(code)) };
        text.to_string_lossy().into_owned()
    }

    /// Compiles `text`, called `name` in messages. `Status::CompileFailed` holds what the compiler said.
    pub fn compile(&self, name: &str, text: &str, options: &[String]) -> Result<Compiled> {
        let failed = |message: String| Error::new(Status::CompileFailed, message);
        let c_text = |text: &str| {
            CString::new(text).map_err(|_| Error::internal(format!("a zero byte in kernel {name}")))
        };
        let (c_name, source) = (c_text(name)?, c_text(text)?);
        let options: Vec<CString> = options.iter().map(|o| c_text(o)).collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = Unit {
            nvrtc: self,
            program: std::ptr::null_mut(),
        };
        let f = &self.functions;
        // SAFETY: the strings end with zero bytes and live; there are no headers.
        let code = unsafe {
            (f.create)(
                &mut program.program,
                source.as_ptr(),
                c_name.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        if code != 0 {
            return Err(failed(format!("kernel {name}: NVRTC: {}", self.explain(code))));
        }
        // SAFETY: the program was made above; as many options as said.
        let code = unsafe { (f.compile)(program.program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = program.log();
        if code != 0 {
            let message = format!("kernel {name}: NVRTC: {}\n{log}", self.explain(code));
            return Err(failed(message));
        }
        let cubin = program
            .cubin()
            .ok_or_else(|| failed(format!("kernel {name}: NVRTC gave no cubin\n{log}")))?;
        Ok(Compiled { cubin, log })
    }
}

/// The symbol at `at` as a function.
///
/// # Safety
/// `F` is a pointer to a function with the symbol's type.
unsafe fn function<F: Copy>(at: *mut c_void) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) }
    // SAFETY: both are pointers; the caller's promise.
    unsafe { std::mem::transmute_copy(&at) }
}

/// A program of the compiler's.
struct Unit<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Unit<'_> {
    fn log(&self) -> String {
        let f = &self.nvrtc.functions;
        let text = self.bytes(f.log_size, f.log).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .trim_end_matches('\0')
            .trim()
            .to_owned()
    }

    fn cubin(&self) -> Option<Vec<u8>> {
        let f = &self.nvrtc.functions;
        self.bytes(f.cubin_size, f.cubin).filter(|c| !c.is_empty())
    }

    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Option<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the program lives; the pointer is good for a size.
        if unsafe { size(self.program, &mut length) } != 0 {
            return None;
        }
        let mut bytes = vec![0u8; length];
        // SAFETY: the buffer has the length that was just asked for.
        (unsafe { get(self.program, bytes.as_mut_ptr().cast()) } == 0).then_some(bytes)
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: made by `create` and destroyed once.
            unsafe { (self.nvrtc.functions.destroy)(&mut self.program) };
        }
    }
}
