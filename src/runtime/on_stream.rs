//! The arithmetic of one call, in the order of its stream.

use crate::backend::{Backend, CpuBackend, CudaBackend};
use crate::device::Stream;
use crate::device::cuda::Gpu;
use crate::types::{Device, Error, Result};

/// Computes on a rank's device, on the stream of one call.
pub(super) enum OnStream {
    /// Host memory; every call has finished when it returns.
    Cpu(CpuBackend),
    /// A CUDA device.
    Cuda(CudaBackend),
}

impl OnStream {
    /// For tensors on `device`. The first call for a CUDA device loads kernels. `Status::DeviceMismatch` for a stream of
    /// another device, `Status::InvalidArgument` for a stream with host memory.
    pub fn new(device: Device, cpu: CpuBackend, stream: Stream) -> Result<OnStream> {
        match device {
            Device::Cpu => expect_none(stream).map(|()| OnStream::Cpu(cpu)),
            Device::Cuda(ordinal) => CudaBackend::new(&Gpu::open(ordinal)?, stream).map(OnStream::Cuda),
        }
    }

    /// Arithmetic.
    pub fn backend(&self) -> &dyn Backend {
        match self {
            OnStream::Cpu(backend) => backend,
            OnStream::Cuda(backend) => backend,
        }
    }

    /// The CUDA device's, with what only it can do.
    pub fn cuda(&self) -> Option<&CudaBackend> {
        match self {
            OnStream::Cpu(_) => None,
            OnStream::Cuda(backend) => Some(backend),
        }
    }
}

/// The CPU has no streams.
pub(super) fn expect_none(stream: Stream) -> Result<()> {
    if stream.is_null() {
        return Ok(());
    }
    Err(Error::argument(
        "stream is not NULL; calls on host memory take no stream",
    ))
}
