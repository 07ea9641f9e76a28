//! Calls on different streams, one after the other: they share workspace.

use std::sync::Arc;

use crate::device::Stream;
use crate::device::cuda::{Event, Gpu, stream};
use crate::types::Result;

/// Where the last call on a CUDA device ends.
#[derive(Default)]
pub(super) struct Order {
    /// Behind its work, with the number of its stream.
    last: Option<(Event, u64)>,
}

impl Order {
    /// Lets what comes next on `on` wait for the last call, and gives the stream's number. Calls that are captured into a
    /// graph are in nobody's order: `None`.
    pub fn begin(&mut self, gpu: &Arc<Gpu>, on: Stream) -> Result<Option<u64>> {
        if stream::is_capturing(gpu, on)? {
            return Ok(None);
        }
        let number = stream::id(gpu, on)?;
        match &self.last {
            None => self.last = Some((Event::new(gpu)?, number)),
            Some((event, last)) if *last != number => event.wait(on)?,
            Some(_) => {}
        }
        Ok(Some(number))
    }

    /// The call ends here on `on`, the stream of that number.
    pub fn end(&mut self, on: Stream, number: u64) -> Result<()> {
        match &mut self.last {
            None => Ok(()),
            Some((event, last)) => {
                *last = number;
                event.record(on)
            }
        }
    }
}
