//! NCCL's own communicator, held so that an abort from another thread is always possible.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::api::{IN_PROGRESS, Nccl, RawComm, RawConfig, RawId, SUCCESS};
use crate::device::cuda::Gpu;
use crate::device::process;
use crate::types::{Error, Result, Status};

/// Between two questions whether a call has come to its end.
const PAUSE: Duration = Duration::from_micros(50);

/// An exchange is put on its stream in less than this, so until then nobody sleeps.
const SOON: Duration = Duration::from_micros(300);

/// How long an abort waits for a call that another thread makes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whose the communicator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This library's: it is destroyed with its handle.
    Library,
    /// Somebody else's, who destroys it; `abort` says whether it may be aborted here.
    Caller {
        /// It may be aborted.
        abort: bool,
    },
}

/// An `ncclComm_t`. Its calls return at once unless the caller who made it chose blocking calls.
#[derive(Debug)]
pub struct Handle {
    nccl: &'static Nccl,
    gpu: Arc<Gpu>,
    /// Null once it was aborted, destroyed or given back.
    raw: AtomicPtr<c_void>,
    /// Held in every call, because NCCL takes one at a time.
    turn: Mutex<()>,
    owner: Owner,
}

impl Handle {
    /// Takes `raw`, which is on `gpu`.
    pub fn new(nccl: &'static Nccl, gpu: &Arc<Gpu>, raw: RawComm, owner: Owner) -> Handle {
        Handle {
            nccl,
            gpu: gpu.clone(),
            raw: AtomicPtr::new(raw),
            turn: Mutex::new(()),
            owner,
        }
    }

    /// Begins making this rank's part of a communicator; `settle` waits for it.
    pub fn init(
        nccl: &'static Nccl,
        gpu: &Arc<Gpu>,
        id: RawId,
        (rank, world): (usize, usize),
        mut config: RawConfig,
    ) -> Result<Handle> {
        let _current = gpu.enter()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointers are good for what they say, and the device is current.
        let code = unsafe { (nccl.functions.init)(&mut raw, world as c_int, id, rank as c_int, &mut config) };
        // It is there to be aborted also where it failed.
        let handle = Handle::new(nccl, gpu, raw, Owner::Library);
        nccl.check(code, "ncclCommInitRankConfig")?;
        Ok(handle)
    }

    /// Makes a communicator of the ranks that give the same `color`, in the order of `key`; waits as `settle`. After an error
    /// this communicator must be aborted.
    pub fn split(
        &self,
        (color, key): (usize, usize),
        mut config: RawConfig,
        until: Instant,
        over: &dyn Fn() -> Option<Error>,
    ) -> Result<Handle> {
        const WHAT: &str = "splitting a communicator";
        // NCCL writes there when it is done, in the background.
        let slot = Box::into_raw(Box::new(AtomicPtr::<c_void>::new(std::ptr::null_mut())));
        let split = self.call("ncclCommSplit", |nccl, comm| {
            // SAFETY: the communicator lives while the call has its turn; the config is read before the call returns, and
            // the slot stays until NCCL is done with it.
            unsafe {
                (nccl.functions.split)(comm, color as c_int, key as c_int, (*slot).as_ptr(), &mut config)
            }
        });
        // Where that fails NCCL may still write: the slot, a pointer's size, stays with the process.
        split.and_then(|()| self.settle(WHAT, until, over))?;
        // SAFETY: made above, and NCCL has written it.
        let raw = unsafe { Box::from_raw(slot) }.load(Ordering::Acquire);
        let handle = Handle::new(self.nccl, &self.gpu, raw, Owner::Library);
        handle.settle(WHAT, until, over)?;
        Ok(handle)
    }

    /// Makes a call with the device current. `Status::Aborted` once the communicator is gone.
    pub fn call(&self, what: &str, f: impl FnOnce(&Nccl, RawComm) -> c_int) -> Result<()> {
        let _current = self.gpu.enter()?;
        let _turn = self.turn.lock();
        let raw = self.raw.load(Ordering::Acquire);
        if raw.is_null() {
            return Err(Error::new(Status::Aborted, format!("{what}: NCCL was aborted")));
        }
        self.nccl.check(f(self.nccl, raw), what)
    }

    /// One number that NCCL knows about the communicator.
    fn number(&self, what: &str, get: unsafe extern "C" fn(RawComm, *mut c_int) -> c_int) -> Result<usize> {
        let mut value = 0;
        // SAFETY: the communicator lives while the call has its turn; the pointer is good for an int.
        self.call(what, |_, comm| unsafe { get(comm, &mut value) })?;
        usize::try_from(value)
            .map_err(|_| Error::new(Status::InvalidArgument, format!("{what} gives {value}")))
    }

    /// This rank and the number of ranks.
    pub fn place(&self) -> Result<(usize, usize)> {
        let f = &self.nccl.functions;
        Ok((
            self.number("ncclCommUserRank", f.rank)?,
            self.number("ncclCommCount", f.count)?,
        ))
    }

    /// What went wrong in the background; `Ok(true)` while a call goes on there.
    pub fn poll(&self) -> Result<bool> {
        let mut state = SUCCESS;
        self.call("ncclCommGetAsyncError", |nccl, comm| {
            // SAFETY: as in `number`.
            unsafe { (nccl.functions.async_error)(comm, &mut state) }
        })?;
        self.nccl.check(state, "NCCL")?;
        Ok(state == IN_PROGRESS)
    }

    /// Waits until the call before has come to its end. `Status::Timeout` after `until`; `over` says why to stop earlier.
    pub fn settle(&self, what: &str, until: Instant, over: &dyn Fn() -> Option<Error>) -> Result<()> {
        let begun = Instant::now();
        while self.poll()? {
            if let Some(error) = over() {
                return Err(error);
            }
            if Instant::now() >= until {
                let message = format!("{what} did not end within {:?}", begun.elapsed());
                return Err(Error::new(Status::Timeout, message));
            }
            if begun.elapsed() < SOON {
                thread::yield_now();
            } else {
                thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    /// Ends everything that is under way, from whatever thread. What somebody else owns is only aborted where that is
    /// allowed, and stays his.
    pub fn abort(&self) {
        let raw = self.raw.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if raw.is_null() || self.owner == (Owner::Caller { abort: false }) {
            return;
        }
        let Ok(_current) = self.gpu.enter() else {
            return;
        };
        // A call that blocks holds its turn: an abort is what ends it.
        let _turn = self.turn.try_lock_for(PATIENCE);
        // SAFETY: taken out of `raw`, so this is the last call with it.
        let _ = unsafe { (self.nccl.functions.abort)(raw) };
    }

    /// Lets what is under way come to its end, then frees the communicator; aborts it when that takes longer than until
    /// `until` or `over` says why not to wait.
    pub fn finish(&self, until: Instant, over: &dyn Fn() -> Option<Error>) {
        if self.owner != Owner::Library {
            self.raw.store(std::ptr::null_mut(), Ordering::Release);
            return;
        }
        // SAFETY: the communicator lives while the call has its turn.
        let flushed = self
            .call("ncclCommFinalize", |nccl, comm| unsafe {
                (nccl.functions.finalize)(comm)
            })
            .and_then(|()| self.settle("ncclCommFinalize", until, over));
        if flushed.is_err() {
            return self.abort();
        }
        let Ok(_current) = self.gpu.enter() else {
            return;
        };
        let _turn = self.turn.lock();
        let raw = self.raw.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if !raw.is_null() {
            // SAFETY: taken out of `raw`, so this is the last call with it.
            let _ = unsafe { (self.nccl.functions.destroy)(raw) };
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // In a forked child the device is not there.
        if self.owner == Owner::Library && process::check().is_ok() {
            self.abort();
        }
    }
}
