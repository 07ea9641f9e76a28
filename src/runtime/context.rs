//! One rank's communicator with what its keys share: backend, workspace, cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::cache::Cache;
use super::key::KeyData;
use super::on_stream::OnStream;
use super::order::Order;
use super::profile::Tape;
use super::watch::Watch;
use crate::backend::{Backend, CpuBackend};
use crate::comm::Communicator;
use crate::device::{Arena, Stream};
use crate::types::{Device, Error, Mesh, Result, Status};

/// What one rank's keys share. One call at a time; `abort`, `fail` and `async_error` from any thread at any time.
pub struct Context {
    comm: Arc<dyn Communicator>,
    cpu: CpuBackend,
    /// On a CUDA device: calls on different streams follow each other.
    order: Arc<Order>,
    closed: AtomicBool,
    mesh: Mutex<Option<Mesh>>,
    state: Mutex<State>,
}

/// What a running call holds alone.
pub(super) struct State {
    /// Workspace, as large as the largest prepared key needs.
    pub arena: Arena,
    /// Plans made for this communicator.
    pub cache: Cache,
    /// The plan of the key that was made last, kept whatever the cache drops.
    pub last: Option<Arc<KeyData>>,
    /// Number of comparisons of plans so far; equal on ranks that make the same calls.
    pub comparisons: u64,
}

/// The right to run one call on a communicator. Others are refused while it lives.
pub struct Turn<'a> {
    context: &'a Context,
    pub(super) state: MutexGuard<'a, State>,
}

/// A turn, with arithmetic on the stream of its call.
pub struct Session<'a> {
    context: &'a Context,
    pub(super) state: MutexGuard<'a, State>,
    on: OnStream,
    /// Number of the call's stream, where it has a place in the order.
    number: Option<u64>,
    /// Measures the call.
    watch: Option<Watch>,
}

impl Context {
    /// The context of `comm`, with the backend of its device. Ranks of one process share its processors: each computes
    /// with its part of them. Results do not depend on it.
    pub fn new(comm: Arc<dyn Communicator>) -> Arc<Context> {
        let threads = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .div_ceil(comm.size());
        let state = State {
            arena: Arena::on(comm.rank(), comm.device()),
            cache: Cache::new(),
            last: None,
            comparisons: 0,
        };
        Arc::new(Context {
            comm,
            cpu: CpuBackend::with_threads(threads),
            order: Arc::default(),
            closed: AtomicBool::new(false),
            mesh: Mutex::new(None),
            state: Mutex::new(state),
        })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// Where this rank's tensors lie.
    pub fn device(&self) -> Device {
        self.comm.device()
    }

    /// Moves this rank's bytes.
    pub fn comm(&self) -> &dyn Communicator {
        self.comm.as_ref()
    }

    /// In which calls follow each other.
    pub(super) fn order(&self) -> &Arc<Order> {
        &self.order
    }

    /// Computes on this rank's device, in the order of `stream`. Errors as `OnStream::new`.
    pub(super) fn on(&self, stream: Stream) -> Result<OnStream> {
        OnStream::new(self.device(), self.cpu, stream)
    }

    /// Sets how long waits for peers last, from the next wait on.
    pub fn set_timeout(&self, timeout: Duration) -> Result<()> {
        self.check_open()?;
        self.comm.set_timeout(timeout);
        Ok(())
    }

    /// Says that rank `r` is number `r % intra` on host `r / intra`. Keys and group plans made later with
    /// `config.hierarchical_comm` move rows accordingly. `Status::InvalidArgument` unless the two multiply to the number of ranks.
    pub fn set_mesh(&self, inter: usize, intra: usize) -> Result<()> {
        self.check_open()?;
        *self.mesh.lock() = Some(self.mesh_of(inter, intra)?);
        Ok(())
    }

    fn mesh_of(&self, inter: usize, intra: usize) -> Result<Mesh> {
        if inter.checked_mul(intra) != Some(self.size()) || intra == 0 {
            let size = self.size();
            let message =
                format!("inter_size {inter} times intra_size {intra} must be the number of ranks, {size}");
            return Err(Error::argument(message));
        }
        Ok(Mesh { inter, intra })
    }

    /// How ranks lie on hosts, if somebody said so.
    pub fn mesh(&self) -> Option<Mesh> {
        *self.mesh.lock()
    }

    /// The mesh that rows go over: none unless `hierarchical_comm` asks for it, and none for one rank. `Status::InvalidArgument`
    /// where it does and nobody has set one.
    pub(super) fn mesh_for(&self, hierarchical_comm: bool) -> Result<Option<Mesh>> {
        let mesh = self.mesh().filter(|_| hierarchical_comm);
        if hierarchical_comm && mesh.is_none() && self.size() > 1 {
            let message = "config.hierarchical_comm is set, but nothing says which ranks share a host: set the mesh of the \
                           communicator first (magi_comm_set_mesh; one host of all ranks goes straight), or give a config without it";
            return Err(Error::argument(message));
        }
        Ok(mesh)
    }

    /// What ended the communicator, if something did.
    pub fn async_error(&self) -> Option<Error> {
        self.comm.async_error()
    }

    /// Ends the communicator on purpose.
    pub fn abort(&self, reason: &str) {
        self.comm.abort(reason);
    }

    /// Ends the communicator because this rank failed with `error`.
    pub fn fail(&self, error: &Error) {
        self.comm.fail(error);
    }

    /// Gives up this rank's part: keys of this context refuse further calls, workspace and cache are freed.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.comm.leave();
        let mut state = self.state.lock();
        state.arena = Arena::on(self.comm.rank(), self.comm.device());
        state.cache.clear();
        state.last = None;
    }

    /// Fails with `Status::CommDestroyed` once `close` was called.
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            let message =
                "the communicator was destroyed; keys and group plans made on it can only be destroyed";
            return Err(Error::new(Status::CommDestroyed, message));
        }
        Ok(())
    }

    /// Splits a communicator whose ranks lie on hosts as `set_mesh` says: first the ranks with this one's number on all
    /// hosts, then those of this one's host. Collective.
    pub fn split_mesh(&self, inter: usize, intra: usize) -> Result<[Arc<Context>; 2]> {
        let _turn = self.enter()?;
        let mesh = self.mesh_of(inter, intra)?;
        let (rank, size) = (self.rank(), self.size());
        let across: Vec<usize> = (rank % mesh.intra..size).step_by(mesh.intra).collect();
        let first = rank / mesh.intra * mesh.intra;
        let inside: Vec<usize> = (first..first + mesh.intra).collect();
        let across = self.comm.split(&across)?;
        let inside = self.comm.split(&inside)?;
        Ok([Context::new(across), Context::new(inside)])
    }

    /// Starts a call. Fails with `Status::CommDestroyed`, with what ended the communicator, or with
    /// `Status::HandleBusy` while another call runs.
    pub fn enter(&self) -> Result<Turn<'_>> {
        self.check_open()?;
        let state = self.state.try_lock().ok_or_else(|| {
            let message =
                "another call on this communicator, its keys or its group plans is running; calls must take turns";
            Error::new(Status::HandleBusy, message)
        })?;
        // Again: `close` may have emptied the state since the first look, and it waits for the lock that is held now.
        self.check_open()?;
        self.async_error().map_or(Ok(()), Err)?;
        Ok(Turn { context: self, state })
    }

    /// Starts a call on `stream`. Errors as `enter`, and as `OnStream::new`.
    pub fn enter_on(&self, stream: Stream) -> Result<Session<'_>> {
        let Turn { context, state } = self.enter()?;
        let on = self.on(stream)?;
        let number = match on.cuda() {
            Some(cuda) => self.order.begin(cuda.gpu(), stream)?,
            None => None,
        };
        Ok(Session {
            context,
            state,
            on,
            number,
            watch: None,
        })
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let (Some(number), Some(cuda)) = (self.number, self.on.cuda()) {
            // A stream that fails here fails whatever comes next on it.
            let _ = self.context.order.end(cuda.stream(), number);
        }
    }
}

impl Session<'_> {
    /// Whose call this is.
    pub fn context(&self) -> &Context {
        self.context
    }

    /// Moves this rank's bytes, and is measured doing so where the call is.
    pub fn comm(&self) -> &dyn Communicator {
        match &self.watch {
            Some(watch) => watch,
            None => self.context.comm(),
        }
    }

    /// Measures the call from here on. Not while its stream is being captured: a graph has no times of its own.
    pub(super) fn record(&mut self, tape: Option<&Arc<Tape>>, stream: Stream) -> Result<()> {
        let captured = self.on.cuda().is_some() && self.number.is_none();
        if let Some(tape) = tape.filter(|_| !captured) {
            tape.begin(&self.on, stream)?;
            self.watch = Some(Watch {
                comm: Arc::clone(&self.context.comm),
                tape: Arc::clone(tape),
                stream,
            });
        }
        Ok(())
    }

    /// What measures the call.
    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Before anything of a collective call is done: `Status::NotSupported` where its stream is being captured, unless this
    /// rank is alone and `prepared`. Found later it would be a failure in the middle of the call.
    pub(super) fn expect_collective(&self, prepared: bool) -> Result<()> {
        let is_captured = self.on.cuda().is_some() && self.number.is_none();
        let why = match (is_captured, self.context.size() > 1, prepared) {
            (false, _, _) | (_, false, true) => return Ok(()),
            (_, true, _) => "exchanges between ranks cannot be part of a graph",
            (_, false, false) => "nothing is prepared for the call; make it once before, or prepare",
        };
        Err(Error::new(
            Status::NotSupported,
            format!("stream is being captured: {why}"),
        ))
    }

    /// Computes on the call's stream.
    pub fn backend(&self) -> &dyn Backend {
        self.on.backend()
    }

    /// Whether that is the processor or a device.
    pub(super) fn on(&self) -> &OnStream {
        &self.on
    }

    /// Runs the part of a collective call in which ranks move data. A failure in there leaves this rank out of step
    /// with its peers, who would pair a repeated call's messages with those of the first. So it ends the communicator,
    /// and a status that says that the call may be repeated becomes `Status::CommFailed`.
    pub(super) fn in_step(&self, f: impl FnOnce() -> Result<()>) -> Result<()> {
        f().map_err(|e| {
            let rank = self.context.rank();
            let error = match e.status {
                // Whoever turns it into a poisoned handle ends the communicator, with a better text.
                Status::Internal => return e,
                Status::CommFailed | Status::Timeout | Status::Aborted | Status::CommDestroyed => e,
                status => {
                    let message = format!(
                        "rank {rank} failed with {status:?} in the middle of a collective call: {}",
                        e.message
                    );
                    Error::new(Status::CommFailed, message)
                }
            };
            // Does nothing to a communicator that has ended, which is what brought most errors here.
            self.context.fail(&error);
            error
        })
    }
}
