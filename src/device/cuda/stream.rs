//! The caller's stream, as the driver knows it.

use cudarc::driver::sys::{self, CUstream, CUstreamCaptureStatus_enum as Capture};

use super::Gpu;
use super::driver::check;
use crate::device::Stream;
use crate::types::{Error, Result, Status};

/// The driver's handle. Null is the device's default stream.
pub(super) fn handle(stream: Stream) -> CUstream {
    stream.as_ptr().cast()
}

/// Whether the calls on `stream` are being recorded into a graph. Allocation and waiting would spoil the recording.
pub fn is_capturing(gpu: &Gpu, stream: Stream) -> Result<bool> {
    let _current = gpu.enter()?;
    let mut status = Capture::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller's stream; the pointer is good for a status.
    let code = unsafe { sys::cuStreamIsCapturing(handle(stream), &mut status) };
    check(code, "cuStreamIsCapturing")?;
    Ok(status != Capture::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// A number that no other stream of the process has or will have; a handle is given again once its stream is destroyed.
pub fn id(gpu: &Gpu, stream: Stream) -> Result<u64> {
    let _current = gpu.enter()?;
    let mut id = 0;
    // SAFETY: the caller's stream; the pointer is good for a number.
    let code = unsafe { sys::cuStreamGetId(handle(stream), &mut id) };
    check(code, "cuStreamGetId")?;
    Ok(id)
}

/// Fails with `Status::DeviceMismatch` unless `stream` belongs to the device's primary context; the default stream
/// belongs to every context.
pub fn expect_on(gpu: &Gpu, stream: Stream) -> Result<()> {
    let _current = gpu.enter()?;
    let mut context = std::ptr::null_mut();
    // SAFETY: the caller's stream; the pointer is good for a context.
    let code = unsafe { sys::cuStreamGetCtx(handle(stream), &mut context) };
    check(code, "cuStreamGetCtx")?;
    if context == gpu.context() {
        return Ok(());
    }
    let message = format!(
        "stream {:p} does not belong to the primary context of CUDA device {}, on which the tensors lie",
        stream.as_ptr(),
        gpu.ordinal()
    );
    Err(Error::new(Status::DeviceMismatch, message))
}

/// Waits until everything on `stream` is done. Never in a call that only enqueues.
pub fn synchronize(gpu: &Gpu, stream: Stream) -> Result<()> {
    let _current = gpu.enter()?;
    // SAFETY: the caller's stream.
    check(
        unsafe { sys::cuStreamSynchronize(handle(stream)) },
        "cuStreamSynchronize",
    )
}
