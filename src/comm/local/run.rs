//! A thread for every rank.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::comm::{LocalComm, create};
use crate::comm::Communicator;
use crate::device::fault;
use crate::types::{Error, Result, Status};

/// Makes a communicator of `world_size` ranks (1 to 64), calls `f(rank, comm)` on a thread for each rank, and waits
/// for all of them. A rank that returns an error or panics ends the communicator, so that the others wake at once.
///
/// Returns the error of the rank that failed first, not one that a peer got because of it; a panic is
/// `Status::Internal` with its text. When the system refuses a thread the result is `Status::ResourceExhausted` and
/// `f` was called on no rank. When `f` returns, the rank has left the communicator.
pub fn run<F>(world_size: usize, f: F) -> Result<()>
where
    F: Fn(usize, Arc<LocalComm>) -> Result<()> + Sync,
{
    let comms = create(world_size)?;
    let gate = Gate::default();
    let outcomes = Outcomes::default();
    thread::scope(|scope| {
        // Dropped on every way out of this closure, also by a panic: threads never wait for a gate nobody opens.
        let guard = GateGuard(&gate);
        for comm in &comms {
            let rank = comm.rank();
            fault::point("local.spawn", rank)?;
            let (f, gate, outcomes) = (&f, &gate, &outcomes);
            thread::Builder::new()
                .name(format!("magi-rank-{rank}"))
                .spawn_scoped(scope, move || {
                    if gate.wait() {
                        let result = call(f, comm);
                        outcomes.record(comm, result);
                        comm.leave();
                    }
                })
                .map_err(|error| {
                    let message = format!("thread of rank {rank} of {world_size} was refused: {error}");
                    Error::new(Status::ResourceExhausted, message)
                })?;
        }
        guard.open();
        Ok(())
    })?;
    outcomes.first(&comms[0])
}

/// Calls `f` for the rank of `comm`; a panic becomes an error.
fn call<F>(f: &F, comm: &Arc<LocalComm>) -> Result<()>
where
    F: Fn(usize, Arc<LocalComm>) -> Result<()>,
{
    let rank = comm.rank();
    let body = || fault::point("local.rank", rank).and_then(|()| f(rank, Arc::clone(comm)));
    // The closure is not used again, and what other ranks share with it is the caller's business.
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        Err(Error::internal(format!(
            "rank {rank} panicked: {}",
            text(payload.as_ref())
        )))
    })
}

/// What the panic said.
fn text(payload: &(dyn Any + Send)) -> &str {
    let literal = payload.downcast_ref::<&str>().copied();
    literal
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a payload that is no text)")
}

/// Holds every rank back until all have their thread.
#[derive(Default)]
struct Gate {
    /// `Some(true)`: go; `Some(false)`: go home.
    decided: Mutex<Option<bool>>,
    changed: Condvar,
}

impl Gate {
    fn decide(&self, go: bool) {
        self.decided.lock().get_or_insert(go);
        self.changed.notify_all();
    }

    fn wait(&self) -> bool {
        let mut decided = self.decided.lock();
        loop {
            match *decided {
                Some(go) => return go,
                None => self.changed.wait(&mut decided),
            }
        }
    }
}

struct GateGuard<'a>(&'a Gate);

impl GateGuard<'_> {
    fn open(&self) {
        self.0.decide(true);
    }
}

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        // Without effect after `open`.
        self.0.decide(false);
    }
}

/// The errors of the ranks in the order they came.
#[derive(Default)]
struct Outcomes(Mutex<Vec<(Instant, usize, Error)>>);

impl Outcomes {
    /// Notes the result of a rank, and ends the communicator if it is an error.
    fn record(&self, comm: &LocalComm, result: Result<()>) {
        if let Err(error) = result {
            self.0.lock().push((Instant::now(), comm.rank(), error.clone()));
            comm.fail(&error);
        }
    }

    /// The error that the others follow from.
    fn first(&self, comm: &LocalComm) -> Result<()> {
        let errors = self.0.lock();
        let Some((when, _, first)) = errors.first() else {
            return Ok(());
        };
        // A rank that found the cause inside the communicator (a timeout, say) may return after a peer it woke.
        let cause = comm
            .world()
            .verdict()
            .filter(|(ended, _)| ended <= when)
            .and_then(|(_, verdict)| errors.iter().find(|(_, rank, _)| *rank == verdict.rank));
        Err(cause.map_or(first, |(_, _, error)| error).clone())
    }
}
