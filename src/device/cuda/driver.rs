//! The driver's library: whether it is there, and what its errors mean.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUevent, CUresult};

use crate::types::{Error, Result, Status};

/// Oldest driver interface that is enough: CUDA 12.0 brought tensor maps.
const OLDEST: i32 = 12_000;

/// Every function of the driver that this crate calls: calling one that the library lacks would be a panic.
const NEEDED: &[&CStr] = &[
    c"cuCtxGetStreamPriorityRange",
    c"cuCtxPopCurrent_v2",
    c"cuCtxPushCurrent_v2",
    c"cuCtxSynchronize",
    c"cuDeviceCanAccessPeer",
    c"cuDeviceGet",
    c"cuDeviceGetAttribute",
    c"cuDeviceGetCount",
    c"cuDeviceGetMemPool",
    c"cuDeviceGetName",
    c"cuDevicePrimaryCtxRetain",
    c"cuDeviceTotalMem_v2",
    c"cuDriverGetVersion",
    c"cuEventCreate",
    c"cuEventDestroy_v2",
    c"cuEventQuery",
    c"cuEventRecord",
    c"cuEventSynchronize",
    c"cuFuncGetAttribute",
    c"cuFuncSetAttribute",
    c"cuGetErrorName",
    c"cuGetErrorString",
    c"cuInit",
    c"cuLaunchKernelEx",
    c"cuMemAllocAsync",
    c"cuMemAlloc_v2",
    c"cuMemFreeAsync",
    c"cuMemFree_v2",
    c"cuMemHostAlloc",
    c"cuMemPoolSetAccess",
    c"cuMemcpyDtoH_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemsetD32Async",
    c"cuModuleGetFunction",
    c"cuModuleGetGlobal_v2",
    c"cuModuleLoadData",
    c"cuModuleUnload",
    c"cuPointerGetAttribute",
    c"cuStreamCreateWithPriority",
    c"cuStreamDestroy_v2",
    c"cuStreamGetCtx",
    c"cuStreamGetId",
    c"cuStreamIsCapturing",
    c"cuStreamSynchronize",
    c"cuStreamWaitEvent",
    c"cuTensorMapEncodeTiled",
    c"cuThreadExchangeStreamCaptureMode",
];

/// Finds and starts the driver, once per process. `Status::NoDevice` says what was looked for; the answer of the first
/// call stands.
pub fn init() -> Result<()> {
    static STATE: OnceLock<Result<()>> = OnceLock::new();
    STATE.get_or_init(start).clone()
}

fn no_device(message: String) -> Error {
    Error::new(Status::NoDevice, message)
}

fn start() -> Result<()> {
    // SAFETY: loading the driver's library runs its initialisers, which is what a caller who has CUDA tensors expects.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_device(not_found(std::env::var_os("LD_LIBRARY_PATH"))));
    }
    // SAFETY: the library is there, so this returns and does not panic.
    let library = unsafe { sys::culib() };
    let lacks = |name: &&&CStr| {
        // SAFETY: the symbol is only looked for, never called with this type.
        unsafe { library.get::<unsafe extern "C" fn()>(name.to_bytes_with_nul()) }.is_err()
    };
    if let Some(name) = NEEDED.iter().find(lacks) {
        return Err(no_device(format!(
            "the CUDA driver is too old: libcuda lacks {}; a driver for CUDA 12.0 or later is needed",
            name.to_string_lossy()
        )));
    }
    // SAFETY: the symbol is there; 0 is the only value for flags.
    let code = unsafe { sys::cuInit(0) };
    if code != CUresult::CUDA_SUCCESS {
        return Err(no_device(format!(
            "libcuda was found, but cuInit gives {}",
            describe(code)
        )));
    }
    let mut version = 0;
    // SAFETY: the symbol is there and the pointer is good for an int.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    check(code, "cuDriverGetVersion")?;
    if version < OLDEST {
        return Err(no_device(format!(
            "the CUDA driver is too old: it is for CUDA {}.{}; 12.0 or later is needed",
            version / 1000,
            version % 1000 / 10
        )));
    }
    Ok(())
}

/// What was looked for in vain.
fn not_found(search_path: Option<std::ffi::OsString>) -> String {
    let names = cudarc::get_lib_name_candidates("cuda");
    let (first, last) = (
        names.first().map_or("", String::as_str),
        names.last().map_or("", String::as_str),
    );
    let path = match search_path {
        Some(path) => format!("LD_LIBRARY_PATH={}", path.to_string_lossy()),
        None => "LD_LIBRARY_PATH is not set".to_owned(),
    };
    format!(
        "no CUDA driver: neither {last} nor {first} was found by the dynamic loader ({path}); install the NVIDIA driver, \
         or hand in tensors in host memory"
    )
}

/// The type of cuEventElapsedTime.
pub(super) type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// Looked for by hand, and only by who measures: the bindings name a successor that drivers before CUDA 12.8 lack.
pub(super) fn elapsed_time() -> Result<ElapsedTime> {
    init()?;
    // SAFETY: `init` found the library, and the type is that of the function in every driver.
    unsafe {
        let found = sys::culib().get::<ElapsedTime>(b"cuEventElapsedTime\0");
        found.map(|f| *f).map_err(|e| {
            let message = format!("the CUDA driver cannot measure: {e}");
            Error::new(Status::CudaFailed, message)
        })
    }
}

/// Number of CUDA devices.
pub fn device_count() -> Result<i32> {
    init()?;
    let mut count = 0;
    // SAFETY: the driver is there and the pointer is good for an int.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "cuDeviceGetCount")?;
    Ok(count)
}

/// Name and meaning of a driver error.
pub fn describe(code: CUresult) -> String {
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut at = std::ptr::null();
        // SAFETY: whoever has a code has a driver; it sets the pointer to a static string or to null.
        unsafe { get(code, &mut at) };
        // SAFETY: as above.
        (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned())
    };
    match (text(sys::cuGetErrorName), text(sys::cuGetErrorString)) {
        (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
        _ => format!("CUDA error {}", code as i32),
    }
}

/// `Ok` for success. A lack of memory is `Status::OutOfMemory`, everything else `Status::CudaFailed`; `what` names the
/// call.
pub fn check(code: CUresult, what: &str) -> Result<()> {
    match code {
        CUresult::CUDA_SUCCESS => Ok(()),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Error::new(
            Status::OutOfMemory,
            format!("{what}: the device is out of memory"),
        )),
        code => Err(Error::new(
            Status::CudaFailed,
            format!("{what}: {}", describe(code)),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_looked_for() {
        let text = not_found(Some("/opt/drivers".into()));
        for part in ["libcuda.so.1", "libcuda.so", "LD_LIBRARY_PATH=/opt/drivers"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(not_found(None).contains("is not set"));
    }

    #[test]
    fn every_function_that_is_called_was_looked_for() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda");
        let mut called = std::collections::BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for (at, _) in text.match_indices("sys::cu") {
                let name = &text[at + "sys::".len()..];
                let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                called.insert(name[..end.unwrap_or(name.len())].to_owned());
            }
        }
        called.retain(|name| name[2..].starts_with(|c: char| c.is_ascii_uppercase()));
        let needed: Vec<_> = NEEDED.iter().map(|n| n.to_string_lossy().into_owned()).collect();
        assert_eq!(needed, called.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn without_a_driver_the_answer_is_no_device() {
        // SAFETY: as in `start`.
        if unsafe { sys::is_culib_present() } {
            println!("skipped: this machine has a driver");
            return;
        }
        for _ in 0..2 {
            assert_eq!(init().unwrap_err().status, Status::NoDevice);
        }
        assert_eq!(device_count().unwrap_err().status, Status::NoDevice);
    }
}
