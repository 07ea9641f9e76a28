//! Launching kernels.

use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::sys::{
    self, CUlaunchAttribute, CUlaunchAttributeID_enum as Id, CUlaunchAttributeValue_union as Value,
    CUlaunchAttributeValue_union__bindgen_ty_1 as Cluster, CUlaunchConfig,
};

use super::driver::check;
use super::{Function, Gpu, stream};
use crate::device::Stream;
use crate::types::Result;

/// Most parameters of a kernel.
const MOST: usize = 16;

/// Addresses of a kernel's parameters, in its order.
#[derive(Debug)]
pub struct Arguments<'a> {
    addresses: [*mut c_void; MOST],
    count: usize,
    values: PhantomData<&'a ()>,
}

impl Default for Arguments<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Arguments<'a> {
    /// None yet.
    pub fn new() -> Arguments<'a> {
        Arguments {
            addresses: [std::ptr::null_mut(); MOST],
            count: 0,
            values: PhantomData,
        }
    }

    /// The next parameter. Its bytes are copied when the kernel is launched. Panics after 16.
    pub fn push<T: Copy>(&mut self, value: &'a T) -> &mut Self {
        self.addresses[self.count] = std::ptr::from_ref(value).cast_mut().cast();
        self.count += 1;
        self
    }
}

/// Shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Thread blocks; without any the launch does nothing.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory; above 48 KiB `Function::set_max_shared` comes first.
    pub shared_bytes: u32,
    /// Blocks of a cluster; all 1 is none.
    pub cluster: [u32; 3],
    /// The kernel may start while the one before it on the stream ends; it must wait (griddepcontrol.wait) before it
    /// touches what that one reads or writes.
    pub overlap_previous: bool,
}

impl Launch {
    /// `blocks` blocks of `threads` threads, in one dimension.
    pub fn linear(blocks: u32, threads: u32) -> Launch {
        Launch {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared_bytes: 0,
            cluster: [1; 3],
            overlap_previous: false,
        }
    }

    /// Enqueues the kernel. Neither allocates nor waits.
    ///
    /// # Safety
    /// `arguments` are the kernel's parameters, in number, order and type; the memory they point to is good until the
    /// kernel has run.
    pub unsafe fn run(
        &self,
        gpu: &Gpu,
        function: Function,
        stream: Stream,
        arguments: &mut Arguments<'_>,
    ) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        let mut attributes = [attribute(Id::CU_LAUNCH_ATTRIBUTE_IGNORE, Value { pad: [0; 64] }); 2];
        let mut count = 0;
        if self.cluster != [1; 3] {
            let [x, y, z] = self.cluster;
            let clusters = Value {
                clusterDim: Cluster { x, y, z },
            };
            attributes[count] = attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, clusters);
            count += 1;
        }
        if self.overlap_previous {
            let id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            let allowed = Value {
                programmaticStreamSerializationAllowed: 1,
            };
            attributes[count] = attribute(id, allowed);
            count += 1;
        }
        let config = CUlaunchConfig {
            gridDimX: self.grid[0],
            gridDimY: self.grid[1],
            gridDimZ: self.grid[2],
            blockDimX: self.block[0],
            blockDimY: self.block[1],
            blockDimZ: self.block[2],
            sharedMemBytes: self.shared_bytes,
            hStream: stream::handle(stream),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        let _current = gpu.enter()?;
        // SAFETY: the caller's promise; configuration and parameters are read before the call returns.
        let code = unsafe {
            sys::cuLaunchKernelEx(
                &config,
                function.handle(),
                arguments.addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(code, "cuLaunchKernelEx")
    }
}

fn attribute(id: Id, value: Value) -> CUlaunchAttribute {
    CUlaunchAttribute {
        id,
        pad: [0; 4],
        value,
    }
}
