//! Streams as the driver knows them: the caller's, and those that the library makes.

use std::sync::Arc;

use cudarc::driver::sys::{
    self, CUstream, CUstream_flags_enum as Flags, CUstreamCaptureMode_enum as Mode,
    CUstreamCaptureStatus_enum as Capture,
};

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

/// Lets this thread ask for events while another thread records a graph: the driver would otherwise take the question for
/// a mistake and spoil the recording.
pub fn allow_queries_while_others_capture(gpu: &Gpu) -> Result<()> {
    let _current = gpu.enter()?;
    let mut mode = Mode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the pointer is good for a mode, in and out.
    let code = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    check(code, "cuThreadExchangeStreamCaptureMode")
}

/// A stream of the library's own. It does not wait for the default stream, nor that one for it.
#[derive(Debug)]
pub struct OwnStream {
    gpu: Arc<Gpu>,
    stream: CUstream,
}

// SAFETY: the driver takes streams from any thread; the pointer is never dereferenced here.
unsafe impl Send for OwnStream {}
// SAFETY: as above.
unsafe impl Sync for OwnStream {}

impl OwnStream {
    /// A stream whose kernels get free multiprocessors before those of every other stream.
    pub fn urgent(gpu: &Arc<Gpu>) -> Result<OwnStream> {
        let _current = gpu.enter()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: both pointers are good for an int.
        let code = unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) };
        check(code, "cuCtxGetStreamPriorityRange")?;
        let mut stream = std::ptr::null_mut();
        let flags = Flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is good for a stream.
        let code = unsafe { sys::cuStreamCreateWithPriority(&mut stream, flags, greatest) };
        check(code, "cuStreamCreateWithPriority")?;
        Ok(OwnStream {
            gpu: gpu.clone(),
            stream,
        })
    }

    /// The handle; good while `self` lives.
    pub fn as_stream(&self) -> Stream {
        Stream::new(self.stream.cast())
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: made by `urgent` and destroyed once; the driver finishes what is on it first, without waiting here.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
    }
}
