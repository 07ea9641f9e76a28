//! Compiled kernels on a device.

use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute_enum as Attribute, CUmodule};

use super::Gpu;
use super::driver::check;
use crate::types::{Error, Result};

/// A cubin that was loaded on a device; unloaded when dropped.
#[derive(Debug)]
pub struct Module {
    gpu: Arc<Gpu>,
    module: CUmodule,
}

// SAFETY: the driver takes modules from any thread; the pointer is never dereferenced here.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// A kernel of a module, good while the module is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(CUfunction);

// SAFETY: as for Module.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

fn c_string(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::internal(format!("a zero byte in the name {name:?}")))
}

impl Module {
    /// Loads a cubin. Allocates, and may wait for the device.
    pub fn load(gpu: &Arc<Gpu>, image: &[u8]) -> Result<Module> {
        let _current = gpu.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: an ELF image says itself how long it is, and the callers' images were compiled or checked whole.
        let code = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
        check(code, "cuModuleLoadData")?;
        Ok(Module {
            gpu: gpu.clone(),
            module,
        })
    }

    /// The kernel with this name, ready to be launched.
    pub fn function(&self, name: &str) -> Result<Function> {
        let _current = self.gpu.enter()?;
        let text = c_string(name)?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero byte.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) };
        check(code, &format!("kernel {name}"))?;
        let function = Function(function);
        // Modules are loaded lazily: asking for an attribute loads the kernel now and not at its first launch, which
        // may be recorded into a graph.
        function.local_bytes()?;
        Ok(function)
    }

    /// Address and bytes of a `__device__` or `__constant__` variable.
    pub fn global(&self, name: &str) -> Result<(u64, usize)> {
        let _current = self.gpu.enter()?;
        let text = c_string(name)?;
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: as in `function`; the pointers are good for what is written.
        let code = unsafe { sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, self.module, text.as_ptr()) };
        check(code, &format!("variable {name}"))?;
        Ok((address, bytes))
    }
}

impl Module {
    /// The integers that a `__device__ int` array was compiled with. Waits for the copy.
    pub fn read_ints<const N: usize>(&self, name: &str) -> Result<[i32; N]> {
        let (address, bytes) = self.global(name)?;
        let mut ints = [0i32; N];
        if bytes != size_of_val(&ints) {
            return Err(Error::internal(format!(
                "{name} has {bytes} bytes; {N} integers were expected"
            )));
        }
        let _current = self.gpu.enter()?;
        // SAFETY: both sides have `bytes` bytes; the call returns when the copy is done.
        let code = unsafe { sys::cuMemcpyDtoH_v2(ints.as_mut_ptr().cast(), address, bytes) };
        check(code, &format!("variable {name}"))?;
        Ok(ints)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: loaded by `load` and unloaded once.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

impl Function {
    /// The driver's handle.
    pub(super) fn handle(self) -> CUfunction {
        self.0
    }

    fn attribute(self, which: Attribute) -> Result<i32> {
        let mut value = 0;
        // SAFETY: the module is loaded; the pointer is good for an int.
        let code = unsafe { sys::cuFuncGetAttribute(&mut value, which, self.0) };
        check(code, "cuFuncGetAttribute")?;
        Ok(value)
    }

    /// Registers of a thread.
    pub fn registers(self) -> Result<i32> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)
    }

    /// Bytes of stack and spilled registers of a thread.
    pub fn local_bytes(self) -> Result<i32> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)
    }

    /// Bytes of shared memory that the kernel declares itself.
    pub fn static_shared(self) -> Result<i32> {
        self.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
    }

    /// Allows launches with up to `bytes` of shared memory; more than 48 KiB need that. Once, after loading.
    pub fn set_max_shared(self, bytes: u32) -> Result<()> {
        let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded.
        let code = unsafe { sys::cuFuncSetAttribute(self.0, which, bytes as i32) };
        check(code, &format!("{bytes} bytes of shared memory"))
    }
}
