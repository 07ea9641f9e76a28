//! What a rank's calls and its watchdog share, and the watchdog: it turns a peer that is silent, a failure inside NCCL and
//! the end of the communicator into an error, and sets the device free.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::exchange::{Exchange, Pool};
use super::handle::Handle;
use super::link::Link;
use crate::device::cuda::{Gpu, OwnStream, stream};
use crate::types::{Error, Result, Status};

/// How often the watchdog looks while exchanges are under way, and while none is.
const BUSY: Duration = Duration::from_millis(2);
const IDLE: Duration = Duration::from_millis(100);

/// How often NCCL is asked for failures of its own.
const ROUND: Duration = Duration::from_millis(100);

/// One rank.
#[derive(Debug)]
pub(super) struct Engine {
    pub link: Link,
    pub gpu: Arc<Gpu>,
    pub handle: Handle,
    /// The library's own, urgent: what travels is waited for.
    pub stream: OwnStream,
    pub pool: Arc<Pool>,
    pending: Mutex<VecDeque<Arc<Exchange>>>,
    /// How many exchanges with each rank there were. Ranks have different numbers of exchanges in all, but two have the same
    /// number with each other.
    exchanges: Mutex<Vec<u64>>,
    timeout_ns: AtomicU64,
    stop: AtomicBool,
}

impl Engine {
    pub fn new(link: Link, gpu: Arc<Gpu>, handle: Handle, timeout: Duration) -> Result<Engine> {
        let stream = OwnStream::urgent(&gpu)?;
        let pool = Pool::new(&gpu)?;
        let exchanges = Mutex::new(vec![0; link.world()]);
        let engine = Engine {
            link,
            gpu,
            handle,
            stream,
            pool,
            pending: Mutex::new(VecDeque::new()),
            exchanges,
            timeout_ns: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        };
        engine.set_timeout(timeout);
        Ok(engine)
    }

    pub fn set_timeout(&self, timeout: Duration) {
        let ns = timeout.min(crate::comm::MAX_TIMEOUT).as_nanos() as u64;
        self.timeout_ns.store(ns, Ordering::Relaxed);
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout_ns.load(Ordering::Relaxed))
    }

    /// Ends the communicator because this rank failed; the error it returns.
    pub fn fail(&self, error: &Error) -> Error {
        let rank = self.link.rank();
        let text = format!("rank {rank} failed with {:?}: {error}", error.status);
        let seen = Error::new(Status::CommFailed, text);
        self.link.end(&seen, &seen);
        self.link.verdict().unwrap_or(seen)
    }

    /// Ends the communicator for a cause that all ranks see alike, but for its status.
    fn end(&self, own: Status, message: String) {
        let rank = self.link.rank();
        let others = format!("rank {rank} ended the communicator: {message}");
        self.link
            .end(&Error::new(own, message), &Error::new(Status::CommFailed, others));
    }

    /// Hands an exchange to the watchdog.
    pub fn watch(&self, exchange: Arc<Exchange>) {
        let mut pending = self.pending.lock();
        pending.push_back(exchange);
        let first = pending.len() == 1;
        drop(pending);
        if first {
            self.link.wake();
        }
    }

    /// Counts an exchange with `peers`, each named once, and gives them with how many came before it.
    pub fn count(&self, peers: Vec<usize>) -> Vec<(usize, u64)> {
        let mut exchanges = self.exchanges.lock();
        let numbered = peers.into_iter().map(|peer| {
            exchanges[peer] += 1;
            (peer, exchanges[peer] - 1)
        });
        numbered.collect()
    }

    /// How many exchanges with each rank there were.
    pub fn exchanges(&self) -> Vec<u64> {
        self.exchanges.lock().clone()
    }

    /// Ends the communicator if one of the `peers` of an exchange, numbered as `count` does, left before it.
    pub fn look_for_the_gone(&self, peers: &[(usize, u64)]) {
        for &(peer, number) in peers {
            if self.link.left(peer).is_some_and(|took_part| took_part <= number) {
                let rank = self.link.rank();
                let message =
                    format!("rank {peer} left the communicator while rank {rank} was waiting for it");
                self.end(Status::CommFailed, message);
            }
        }
    }

    /// Lets the watchdog's thread end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.link.wake();
    }

    /// Waits until nothing is under way or the communicator has ended; false when an exchange that could begin does not end
    /// for so long. What the device computes before it takes the time that it takes.
    pub fn drain(&self, patience: Duration) -> bool {
        let mut until = Instant::now() + patience;
        while self.link.verdict().is_none() {
            let Some(first) = self.pending.lock().front().cloned() else {
                return true;
            };
            let now = Instant::now();
            if first.begun.lock().is_none() {
                until = now + patience;
            }
            if now >= until {
                return false;
            }
            std::thread::sleep(BUSY);
        }
        true
    }

    /// The watchdog's thread.
    pub fn guard(&self) {
        if let Err(e) = stream::allow_queries_while_others_capture(&self.gpu) {
            self.fail(&e);
        }
        let mut asked = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            if self.link.verdict().is_some() {
                // Kernels that wait for a peer end now, and the streams behind them go on.
                self.handle.abort();
                self.pending.lock().clear();
                self.link.wait_for_news(IDLE);
                continue;
            }
            let idle = self.pending.lock().is_empty();
            self.link.wait_for_news(if idle { IDLE } else { BUSY });
            if let Err(e) = self.look() {
                self.fail(&e);
            }
            if asked.elapsed() >= ROUND {
                asked = Instant::now();
                if let Err(e) = self.handle.poll()
                    && self.link.verdict().is_none()
                {
                    self.fail(&e);
                }
            }
        }
    }

    /// Looks where the oldest exchange is.
    fn look(&self) -> Result<()> {
        loop {
            let Some(exchange) = self.pending.lock().front().cloned() else {
                return Ok(());
            };
            if exchange.is_done()? {
                self.pending.lock().pop_front();
                continue;
            }
            self.look_for_the_gone(&exchange.peers);
            let timeout = self.timeout();
            if exchange.begun.lock().is_some_and(|b| b.elapsed() >= timeout) {
                let rank = self.link.rank();
                let message = format!(
                    "rank {rank} waited {timeout:?} for an exchange with {}",
                    name_all(&exchange.peers)
                );
                self.end(Status::Timeout, message);
            }
            return Ok(());
        }
    }
}

/// Ranks in words.
fn name_all(ranks: &[(usize, u64)]) -> String {
    let names: Vec<String> = ranks.iter().map(|(rank, _)| rank.to_string()).collect();
    let plural = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{plural} {}", names.join(", "))
}
