//! One rank of an NCCL communicator.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::{IN_PROGRESS, SUCCESS};
use super::create;
use super::engine::Engine;
use super::exchange::{Events, Exchange};
use super::link::destroyed;
use crate::comm::counter::Counter;
use crate::comm::transport::check_ops;
use crate::comm::{Communicator, RecvOp, SendOp, Ticket, Traffic};
use crate::device::cuda::{DeviceMemory, Event, stream};
use crate::device::{Stream, fault, process};
use crate::types::{Device, Error, Result, Status};

/// How long a rank that leaves waits for what it sent to arrive, once the device has come to it.
const GRACE: Duration = Duration::from_secs(10);

/// One rank with its CUDA device. Exchanges are grouped sends and receives straight from and into tensors, on a stream of
/// the communicator's own; other streams wait for them by events, and the host for nothing.
#[derive(Debug)]
pub struct NcclComm {
    engine: Arc<Engine>,
    watchdog: Mutex<Option<JoinHandle<()>>>,
    /// Ranks to which the way is open.
    connected: Mutex<BTreeSet<usize>>,
    left: AtomicBool,
    counter: Counter,
}

impl NcclComm {
    /// Starts the watchdog.
    pub(super) fn start(engine: Engine) -> Result<Arc<NcclComm>> {
        let engine = Arc::new(engine);
        let guarded = Arc::clone(&engine);
        let thread = thread::Builder::new()
            .name(format!("magi-watch-{}", engine.link.rank()))
            .spawn(move || guarded.guard())
            .map_err(|e| {
                let message = format!("the watchdog's thread was refused: {e}");
                engine.fail(&Error::new(Status::ResourceExhausted, message))
            })?;
        Ok(Arc::new(NcclComm {
            engine,
            watchdog: Mutex::new(Some(thread)),
            connected: Mutex::new(BTreeSet::new()),
            left: AtomicBool::new(false),
            counter: Counter::default(),
        }))
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Fails if this rank can make no collective call any more.
    pub(super) fn check(&self) -> Result<()> {
        process::check()?;
        if self.left.load(Ordering::Acquire) {
            return Err(destroyed(self.rank()));
        }
        self.engine.link.verdict().map_or(Ok(()), Err)
    }

    /// Exchanges a byte with each of `peers` and waits for it.
    fn shake_hands(&self, peers: &[usize]) -> Result<()> {
        let e = &*self.engine;
        let count = peers.len();
        let memory = DeviceMemory::new(&e.gpu, 2 * count)?;
        let at = |i: usize| memory.as_ptr().wrapping_add(i);
        let send = |(i, &peer): (usize, &usize)| SendOp {
            peer,
            data: at(i).cast_const(),
            bytes: 1,
        };
        let recv = |(i, &peer): (usize, &usize)| RecvOp {
            peer,
            data: at(count + i),
            bytes: 1,
        };
        let sends: Vec<SendOp> = peers.iter().enumerate().map(send).collect();
        let recvs: Vec<RecvOp> = peers.iter().enumerate().map(recv).collect();
        let done = Event::new(&e.gpu)?;
        let until = Instant::now() + e.timeout();
        let shaken = self
            .enqueue(&sends, &recvs)
            .and_then(|()| done.record(e.stream.as_stream()))
            .and_then(|()| self.wait_for(&done, peers, until));
        if shaken.is_err() {
            // The exchange may still write there: the memory stays with the process.
            std::mem::forget(memory);
        }
        shaken
    }

    fn wait_for(&self, done: &Event, peers: &[usize], until: Instant) -> Result<()> {
        while !done.is_done()? {
            self.engine.link.verdict().map_or(Ok(()), Err)?;
            if Instant::now() >= until {
                let (rank, timeout) = (self.rank(), self.timeout());
                let message = format!("rank {rank} waited {timeout:?} for a way to one of ranks {peers:?}");
                return Err(Error::new(Status::Timeout, message));
            }
            thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Ends the communicator because of `error`, in a call that peers may be part of; what the call returns.
    fn broken(&self, error: Error) -> Error {
        let e = &self.engine;
        match e.link.verdict() {
            Some(verdict) => verdict,
            None if error.status == Status::Timeout => {
                let others = format!("rank {} ended the communicator: {error}", self.rank());
                e.link.end(&error, &Error::new(Status::CommFailed, others));
                error
            }
            None => e.fail(&error),
        }
    }

    /// Enqueues the operations as one group and waits until NCCL has put them on the stream, which it does in the
    /// background. Peers are waited for only where `connect` has not opened the way.
    fn enqueue(&self, sends: &[SendOp], recvs: &[RecvOp]) -> Result<()> {
        let e = &*self.engine;
        let on = e.stream.as_stream().as_ptr();
        e.handle.call("NCCL sends and receives", |nccl, comm| {
            // SAFETY: the communicator lives while the call has its turn, the stream as long as the engine; memory is the
            // promise of `start`.
            unsafe {
                let opened = (nccl.functions.group_start)();
                if opened != SUCCESS {
                    return opened;
                }
                let sends = sends
                    .iter()
                    .filter(|op| op.bytes != 0)
                    .map(|op| nccl.send(op.data, op.bytes, op.peer, comm, on));
                let recvs = recvs
                    .iter()
                    .filter(|op| op.bytes != 0)
                    .map(|op| nccl.recv(op.data, op.bytes, op.peer, comm, on));
                // Up to the first that is refused.
                let refused = sends
                    .chain(recvs)
                    .find(|&code| code != SUCCESS && code != IN_PROGRESS);
                // A group that was opened must be closed, whatever came of it.
                let closed = (nccl.functions.group_end)();
                refused.unwrap_or(closed)
            }
        })?;
        let until = Instant::now() + e.timeout();
        e.handle.settle("an exchange", until, &|| e.link.verdict())
    }
}

/// An exchange of one communicator.
struct Pending {
    engine: Arc<Engine>,
    /// `None` where nothing travels and nobody waits.
    exchange: Option<Arc<Exchange>>,
    finished: bool,
}

impl Pending {
    fn events(&self) -> Option<&Events> {
        self.exchange.as_ref().and_then(|e| e.loan.events())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Memory may be used again after this, so the exchange must be over. The watchdog sees to it that it ends.
        let until = Instant::now() + self.engine.timeout() + GRACE;
        while let Some(exchange) = self.exchange.as_ref().filter(|_| !self.finished) {
            if process::check().is_err() || Instant::now() >= until {
                return;
            }
            match exchange.is_done() {
                Ok(false) => thread::sleep(Duration::from_millis(1)),
                Ok(true) | Err(_) => return,
            }
        }
    }
}

impl Communicator for NcclComm {
    fn rank(&self) -> usize {
        self.engine.link.rank()
    }

    fn size(&self) -> usize {
        self.engine.link.world()
    }

    fn device(&self) -> Device {
        Device::Cuda(self.engine.gpu.ordinal())
    }

    fn own_stream(&self) -> Option<Stream> {
        Some(self.engine.stream.as_stream())
    }

    unsafe fn start(&self, sends: &[SendOp], recvs: &[RecvOp], stream: Stream) -> Result<Ticket> {
        self.check()?;
        check_ops(sends, recvs, self.size())?;
        let e = &self.engine;
        stream::expect_on(&e.gpu, stream)?;
        if stream::is_capturing(&e.gpu, stream)? {
            // A rank alone exchanges nothing, and what it computes may be captured.
            if self.size() == 1
                && !sends
                    .iter()
                    .map(|op| op.bytes)
                    .chain(recvs.iter().map(|op| op.bytes))
                    .any(|n| n != 0)
            {
                return Ok(Ticket::new(Pending {
                    engine: e.clone(),
                    exchange: None,
                    finished: true,
                }));
            }
            let message = "stream is being captured; exchanges between ranks cannot be part of a graph";
            return Err(Error::new(Status::NotSupported, message));
        }
        fault::point("comm.start", self.rank())?;
        let loan = e.pool.take()?;
        let events = loan
            .events()
            .ok_or_else(|| Error::internal("a loan without events"))?;
        // From here on peers may have begun: a failure is the end.
        let mut peers: Vec<usize> = sends
            .iter()
            .filter(|op| op.bytes != 0)
            .map(|op| op.peer)
            .collect();
        peers.extend(recvs.iter().filter(|op| op.bytes != 0).map(|op| op.peer));
        peers.sort_unstable();
        peers.dedup();
        peers.retain(|&p| p != self.rank());
        let peers = e.count(peers);
        e.look_for_the_gone(&peers);
        let own = e.stream.as_stream();
        let enqueued = events
            .ready
            .record(stream)
            .and_then(|()| events.ready.wait(own))
            .and_then(|()| events.reached.record(own))
            .and_then(|()| self.enqueue(sends, recvs))
            .and_then(|()| events.done.record(own));
        enqueued.map_err(|error| self.broken(error))?;
        let exchange = Arc::new(Exchange {
            loan,
            peers,
            begun: Mutex::new(None),
        });
        self.counter.count(self.rank(), sends, recvs);
        e.watch(exchange.clone());
        Ok(Ticket::new(Pending {
            engine: e.clone(),
            exchange: Some(exchange),
            finished: false,
        }))
    }

    fn finish(&self, ticket: Ticket, stream: Stream) -> Result<()> {
        let mut pending = ticket
            .into_inner::<Pending>()
            .filter(|p| Arc::ptr_eq(&p.engine, &self.engine))
            .ok_or_else(|| Error::argument("ticket is one of another communicator or rank"))?;
        self.check()?;
        fault::point("comm.finish", self.rank())?;
        if let Some(events) = pending.events() {
            events.done.wait(stream)?;
        }
        pending.finished = true;
        Ok(())
    }

    fn hold(&self, ticket: &Ticket, stream: Stream) -> Result<()> {
        let pending = ticket
            .inner::<Pending>()
            .filter(|p| Arc::ptr_eq(&p.engine, &self.engine))
            .ok_or_else(|| Error::argument("ticket is one of another communicator or rank"))?;
        match pending.events() {
            Some(events) => events.reached.wait(stream),
            None => Ok(()),
        }
    }

    fn connect(&self, peers: &[usize]) -> Result<()> {
        self.check()?;
        let mut connected = self.connected.lock();
        let new: Vec<usize> = peers.iter().copied().filter(|p| !connected.contains(p)).collect();
        if let Some(peer) = new.iter().find(|&&p| p >= self.size()) {
            let size = self.size();
            return Err(Error::argument(format!("peer is rank {peer} of {size} ranks")));
        }
        if !new.is_empty() {
            self.shake_hands(&new).map_err(|error| self.broken(error))?;
            connected.extend(new);
        }
        Ok(())
    }

    fn all_gather(&self, mine: &[u8], _stream: Stream) -> Result<Vec<Vec<u8>>> {
        self.check()?;
        fault::point("comm.all_gather", self.rank())?;
        self.engine.link.gather(mine, self.timeout())
    }

    fn split(&self, members: &[usize]) -> Result<Arc<dyn Communicator>> {
        let split: Arc<dyn Communicator> = create::split(self, members)?;
        Ok(split)
    }

    fn set_timeout(&self, timeout: Duration) {
        self.engine.set_timeout(timeout);
    }

    fn timeout(&self) -> Duration {
        self.engine.timeout()
    }

    fn traffic(&self) -> Traffic {
        self.counter.traffic()
    }

    fn async_error(&self) -> Option<Error> {
        process::check().err().or_else(|| self.engine.link.verdict())
    }

    fn abort(&self, why: &str) {
        if process::check().is_ok() {
            let message = format!("rank {} aborted the communicator: {why}", self.rank());
            let error = Error::new(Status::Aborted, message);
            self.engine.link.end(&error, &error);
        }
    }

    fn fail(&self, error: &Error) {
        if process::check().is_ok() {
            self.engine.fail(error);
        }
    }

    fn leave(&self) {
        if process::check().is_err() || self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        let e = &self.engine;
        let patience = e.timeout().min(GRACE);
        let quiet = e.drain(patience);
        e.stop();
        if let Some(watchdog) = self.watchdog.lock().take() {
            // It ends at once; a panic of its own was told to the log.
            let _ = watchdog.join();
        }
        // The others learn of it before this rank waits for them in turn.
        e.link.leave(e.exchanges());
        if e.link.verdict().is_some() || !quiet {
            e.handle.abort();
        } else {
            e.handle.finish(Instant::now() + patience, &|| e.link.verdict());
        }
        e.link.close();
    }
}

impl Drop for NcclComm {
    fn drop(&mut self) {
        self.leave();
    }
}
