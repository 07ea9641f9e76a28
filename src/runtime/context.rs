//! One rank's communicator with what its keys share: backend, workspace, cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::cache::Cache;
use super::key::KeyData;
use crate::backend::{Backend, CpuBackend};
use crate::comm::Communicator;
use crate::device::Arena;
use crate::types::{Error, Result, Status};

/// What one rank's keys share. One call at a time; `abort`, `fail` and `async_error` from any thread at any time.
pub struct Context {
    comm: Arc<dyn Communicator>,
    backend: Box<dyn Backend>,
    closed: AtomicBool,
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
pub struct Session<'a> {
    context: &'a Context,
    pub(super) state: MutexGuard<'a, State>,
}

impl Context {
    /// The context of `comm`, with the backend of its device.
    pub fn new(comm: Arc<dyn Communicator>) -> Arc<Context> {
        let state = State {
            arena: Arena::new(comm.rank()),
            cache: Cache::new(),
            last: None,
            comparisons: 0,
        };
        Arc::new(Context {
            comm,
            backend: Box::new(CpuBackend::new()),
            closed: AtomicBool::new(false),
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

    /// Moves this rank's bytes.
    pub fn comm(&self) -> &dyn Communicator {
        self.comm.as_ref()
    }

    /// Computes on this rank's device.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Sets how long waits for peers last, from the next wait on.
    pub fn set_timeout(&self, timeout: Duration) -> Result<()> {
        self.check_open()?;
        self.comm.set_timeout(timeout);
        Ok(())
    }

    /// What ended the communicator, if something did.
    pub fn async_error(&self) -> Option<Error> {
        self.comm.async_error()
    }

    /// Ends the communicator on purpose.
    pub fn abort(&self, reason: &str) {
        self.comm.abort(reason);
    }

    /// Ends the communicator because this rank failed.
    pub fn fail(&self, why: &str) {
        self.comm.fail(&Error::internal(why));
    }

    /// Gives up this rank's part: keys of this context refuse further calls, workspace and cache are freed.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.comm.leave();
        let mut state = self.state.lock();
        state.arena = Arena::new(self.comm.rank());
        state.cache.clear();
        state.last = None;
    }

    /// Fails with `Status::CommDestroyed` once `close` was called.
    pub fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            let message = "the communicator was destroyed; keys made on it can only be destroyed";
            return Err(Error::new(Status::CommDestroyed, message));
        }
        Ok(())
    }

    /// Starts a call. Fails with `Status::CommDestroyed`, with what ended the communicator, or with
    /// `Status::HandleBusy` while another call runs.
    pub fn enter(&self) -> Result<Session<'_>> {
        self.check_open()?;
        let state = self.state.try_lock().ok_or_else(|| {
            let message =
                "another call on this communicator or one of its keys is running; calls must take turns";
            Error::new(Status::HandleBusy, message)
        })?;
        self.async_error().map_or(Ok(()), Err)?;
        Ok(Session { context: self, state })
    }
}

impl Session<'_> {
    /// Whose call this is.
    pub fn context(&self) -> &Context {
        self.context
    }
}
