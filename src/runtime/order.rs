//! Calls on different streams, one after the other: they share workspace.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::Stream;
use crate::device::cuda::{Event, Gpu, stream};
use crate::types::Result;

/// Where the last call on a CUDA device ends.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Behind its work, with the number of its stream.
    last: Mutex<Option<(Arc<Event>, u64)>>,
}

impl Order {
    /// Lets what comes next on `on` wait for the last call, and gives the stream's number. Calls that are captured into a
    /// graph are in nobody's order: `None`.
    pub fn begin(&self, gpu: &Arc<Gpu>, on: Stream) -> Result<Option<u64>> {
        if stream::is_capturing(gpu, on)? {
            return Ok(None);
        }
        let number = stream::id(gpu, on)?;
        let mut last = self.last.lock();
        match last.as_ref() {
            None => *last = Some((Arc::new(Event::new(gpu)?), number)),
            Some((event, before)) if *before != number => event.wait(on)?,
            Some(_) => {}
        }
        Ok(Some(number))
    }

    /// The call ends here on `on`, the stream of that number.
    pub fn end(&self, on: Stream, number: u64) -> Result<()> {
        match self.last.lock().as_mut() {
            None => Ok(()),
            Some((event, last)) => {
                *last = number;
                event.record(on)
            }
        }
    }

    /// Behind every call so far; `None` before the first.
    pub fn last(&self) -> Option<Arc<Event>> {
        self.last.lock().as_ref().map(|(event, _)| event.clone())
    }
}
