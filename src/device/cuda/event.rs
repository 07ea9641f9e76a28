//! Events: points in a stream that other streams wait for.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent, CUevent_flags_enum as Flags, CUresult};

use super::driver::{check, elapsed_time};
use super::{Gpu, stream};
use crate::device::Stream;
use crate::types::Result;

/// An event; without a time, which is the cheapest kind, unless `timed`.
#[derive(Debug)]
pub struct Event {
    gpu: Arc<Gpu>,
    event: CUevent,
}

// SAFETY: the driver takes events from any thread; the pointer is never dereferenced here.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new event. Allocates: make it ahead of the calls that use it.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Event> {
        Event::of_kind(gpu, Flags::CU_EVENT_DISABLE_TIMING)
    }

    /// One that keeps the time at which the device came to it.
    pub fn timed(gpu: &Arc<Gpu>) -> Result<Event> {
        Event::of_kind(gpu, Flags::CU_EVENT_DEFAULT)
    }

    fn of_kind(gpu: &Arc<Gpu>, kind: Flags) -> Result<Event> {
        let _current = gpu.enter()?;
        let mut event = std::ptr::null_mut();
        let flags = kind as u32;
        // SAFETY: the pointer is good for an event.
        check(unsafe { sys::cuEventCreate(&mut event, flags) }, "cuEventCreate")?;
        Ok(Event {
            gpu: gpu.clone(),
            event,
        })
    }

    /// Puts the event behind everything that is on `stream` now.
    pub fn record(&self, stream: Stream) -> Result<()> {
        let _current = self.gpu.enter()?;
        // SAFETY: the event lives, and the stream is the caller's.
        let code = unsafe { sys::cuEventRecord(self.event, stream::handle(stream)) };
        check(code, "cuEventRecord")
    }

    /// Lets everything that comes on `stream` from now on wait for the event.
    pub fn wait(&self, stream: Stream) -> Result<()> {
        let _current = self.gpu.enter()?;
        // SAFETY: as in `record`.
        let code = unsafe { sys::cuStreamWaitEvent(stream::handle(stream), self.event, 0) };
        check(code, "cuStreamWaitEvent")
    }

    /// Whether everything before the event is done.
    pub fn is_done(&self) -> Result<bool> {
        let _current = self.gpu.enter()?;
        // SAFETY: the event lives.
        match unsafe { sys::cuEventQuery(self.event) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check(code, "cuEventQuery").map(|()| true),
        }
    }

    /// Waits on the host until everything before the event is done.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.gpu.enter()?;
        // SAFETY: the event lives.
        check(
            unsafe { sys::cuEventSynchronize(self.event) },
            "cuEventSynchronize",
        )
    }

    /// Nanoseconds from `earlier` to this event, less than 0 if it came first. Both are timed, of one device, and done.
    pub fn ns_since(&self, earlier: &Event) -> Result<i64> {
        let elapsed_time = elapsed_time()?;
        let _current = self.gpu.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both events live, and the pointer is good for a number.
        let code = unsafe { elapsed_time(&mut milliseconds, earlier.event, self.event) };
        check(code, "cuEventElapsedTime")?;
        Ok((f64::from(milliseconds) * 1e6).round() as i64)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.gpu.enter() {
            // SAFETY: made by `new` and destroyed once; the driver keeps what still waits for it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
        }
    }
}
