//! Exchanges on their way, and the events that tell where they are.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::device::cuda::{Event, Gpu};
use crate::types::Result;

/// Sets of events that a communicator has from the start: as many exchanges as a pass over a plan has at once.
const SETS: usize = 32;

/// Events for one exchange.
#[derive(Debug)]
pub(super) struct Events {
    /// Sources and destinations are ready.
    pub ready: Event,
    /// It is this exchange's turn on the communicator's stream.
    pub reached: Event,
    /// Everything has come and gone.
    pub done: Event,
}

impl Events {
    fn new(gpu: &Arc<Gpu>) -> Result<Events> {
        Ok(Events {
            ready: Event::new(gpu)?,
            reached: Event::new(gpu)?,
            done: Event::new(gpu)?,
        })
    }
}

/// Sets that nobody uses.
#[derive(Debug)]
pub(super) struct Pool {
    gpu: Arc<Gpu>,
    free: Mutex<Vec<Events>>,
}

impl Pool {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Arc<Pool>> {
        let free = (0..SETS).map(|_| Events::new(gpu)).collect::<Result<_>>()?;
        Ok(Arc::new(Pool {
            gpu: gpu.clone(),
            free: Mutex::new(free),
        }))
    }

    /// A set; a new one only where all are in use.
    pub fn take(self: &Arc<Pool>) -> Result<Loan> {
        let free = self.free.lock().pop();
        let events = free.map_or_else(|| Events::new(&self.gpu), Ok)?;
        Ok(Loan {
            pool: self.clone(),
            events: Some(events),
        })
    }
}

/// A set that goes back to its pool.
#[derive(Debug)]
pub(super) struct Loan {
    pool: Arc<Pool>,
    events: Option<Events>,
}

impl Loan {
    pub fn events(&self) -> Option<&Events> {
        self.events.as_ref()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.pool.free.lock().extend(self.events.take());
    }
}

/// An exchange that was enqueued.
#[derive(Debug)]
pub(super) struct Exchange {
    pub loan: Loan,
    /// Ranks that take part, each once, with how many exchanges with them came before it.
    pub peers: Vec<(usize, u64)>,
    /// When it could begin: nothing else was under way, and its tensors were ready.
    pub begun: Mutex<Option<Instant>>,
}

impl Exchange {
    /// Whether it is over. The first time it is asked when it could have begun, that is noted.
    pub fn is_done(&self) -> Result<bool> {
        let Some(events) = self.loan.events() else {
            return Ok(true);
        };
        if events.done.is_done()? {
            return Ok(true);
        }
        let mut begun = self.begun.lock();
        if begun.is_none() && events.ready.is_done()? {
            *begun = Some(Instant::now());
        }
        Ok(false)
    }
}
