//! Exchanges on their way, and the events that tell where they are.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::device::cuda::{Event, Gpu};
use crate::types::Result;

/// Pairs of events that a communicator has from the start: as many exchanges as a pass over a plan has at once.
const PAIRS: usize = 32;

/// Events for one exchange.
#[derive(Debug)]
pub(super) struct Pair {
    /// Sources and destinations are ready.
    pub ready: Event,
    /// Everything has come and gone.
    pub done: Event,
}

impl Pair {
    fn new(gpu: &Arc<Gpu>) -> Result<Pair> {
        Ok(Pair {
            ready: Event::new(gpu)?,
            done: Event::new(gpu)?,
        })
    }
}

/// Pairs that nobody uses.
#[derive(Debug)]
pub(super) struct Pool {
    gpu: Arc<Gpu>,
    free: Mutex<Vec<Pair>>,
}

impl Pool {
    pub fn new(gpu: &Arc<Gpu>) -> Result<Arc<Pool>> {
        let free = (0..PAIRS).map(|_| Pair::new(gpu)).collect::<Result<_>>()?;
        Ok(Arc::new(Pool {
            gpu: gpu.clone(),
            free: Mutex::new(free),
        }))
    }

    /// A pair; a new one only where all are in use.
    pub fn take(self: &Arc<Pool>) -> Result<Loan> {
        let free = self.free.lock().pop();
        let pair = free.map_or_else(|| Pair::new(&self.gpu), Ok)?;
        Ok(Loan {
            pool: self.clone(),
            pair: Some(pair),
        })
    }
}

/// A pair that goes back to its pool.
#[derive(Debug)]
pub(super) struct Loan {
    pool: Arc<Pool>,
    pair: Option<Pair>,
}

impl Loan {
    pub fn pair(&self) -> Option<&Pair> {
        self.pair.as_ref()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.pool.free.lock().extend(self.pair.take());
    }
}

/// An exchange that was enqueued.
#[derive(Debug)]
pub(super) struct Exchange {
    pub loan: Loan,
    /// How many came before it on this rank.
    pub number: u64,
    /// Ranks that take part, each once.
    pub peers: Vec<usize>,
    /// When it could begin: nothing else was under way, and its tensors were ready.
    pub begun: Mutex<Option<Instant>>,
}

impl Exchange {
    /// Whether it is over. The first time it is asked when it could have begun, that is noted.
    pub fn is_done(&self) -> Result<bool> {
        let Some(pair) = self.loan.pair() else {
            return Ok(true);
        };
        if pair.done.is_done()? {
            return Ok(true);
        }
        let mut begun = self.begun.lock();
        if begun.is_none() && pair.ready.is_done()? {
            *begun = Some(Instant::now());
        }
        Ok(false)
    }
}
