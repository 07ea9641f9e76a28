//! One rank of a local communicator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::lane::{Kind, Message};
use super::verdict::Verdict;
use super::world::{Deadline, Receive, World, destroyed};
use crate::comm::counter::Counter;
use crate::comm::transport::check_ops;
use crate::comm::{Communicator, DEFAULT_TIMEOUT, MAX_TIMEOUT, RecvOp, SendOp, Ticket, Traffic};
use crate::device::{Stream, fault, process};
use crate::types::{Device, Error, Result, Status};

/// Most ranks of a local communicator.
pub const MAX_WORLD_SIZE: usize = 64;

/// One rank. Sends copy and never wait, so no order of exchanges can lock the ranks up against each other.
#[derive(Debug)]
pub struct LocalComm {
    world: Arc<World>,
    rank: usize,
    timeout_ns: AtomicU64,
    left: AtomicBool,
    counter: Counter,
}

/// Makes a communicator of `world_size` ranks (1 to 64, else `Status::InvalidArgument`), by rank.
pub fn create(world_size: usize) -> Result<Vec<Arc<LocalComm>>> {
    process::check()?;
    if !(1..=MAX_WORLD_SIZE).contains(&world_size) {
        return Err(Error::argument(format!(
            "world_size is {world_size}; it must be 1 to {MAX_WORLD_SIZE}"
        )));
    }
    let world = Arc::new(World::new(world_size));
    let comm = |rank| {
        Arc::new(LocalComm {
            world: Arc::clone(&world),
            rank,
            timeout_ns: AtomicU64::new(DEFAULT_TIMEOUT.as_nanos() as u64),
            left: AtomicBool::new(false),
            counter: Counter::default(),
        })
    };
    Ok((0..world_size).map(comm).collect())
}

/// The receives of an exchange that `finish` has not taken yet.
struct Pending {
    world: Arc<World>,
    rank: usize,
    /// Last one first, so that the next one can be popped.
    receives: Vec<(Receive, RecvOp)>,
}

// SAFETY: the destinations are valid until the ticket is finished or dropped, on whatever thread (`start`).
unsafe impl Send for Pending {}

impl Drop for Pending {
    fn drop(&mut self) {
        // In a forked child the lock may be held by a thread that does not exist.
        if self.receives.is_empty() || process::check().is_err() {
            return;
        }
        for (receive, _) in &self.receives {
            self.world.inboxes[self.rank].give_up(receive.peer, receive.number);
        }
    }
}

impl LocalComm {
    pub(super) fn world(&self) -> &World {
        &self.world
    }

    /// Fails if this rank can make no collective call any more.
    fn check(&self) -> Result<()> {
        process::check()?;
        if self.left.load(Ordering::Acquire) {
            return Err(destroyed(self.rank));
        }
        self.world.error_for(self.rank).map_or(Ok(()), Err)
    }
}

impl Communicator for LocalComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.world.inboxes.len()
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    unsafe fn start(&self, sends: &[SendOp], recvs: &[RecvOp], _stream: Stream) -> Result<Ticket> {
        self.check()?;
        check_ops(sends, recvs, self.size())?;
        fault::point("comm.start", self.rank)?;
        // Everything is copied before anything is posted, so that a call that ran out of memory can be repeated.
        let messages = sends
            .iter()
            .map(|op| {
                let source: &[u8] = match op.bytes {
                    0 => &[],
                    // SAFETY: the caller promises that `bytes` bytes are readable at `data`, which is not null.
                    bytes => unsafe { std::slice::from_raw_parts(op.data, bytes) },
                };
                Ok(Message {
                    kind: Kind::Exchange,
                    bytes: Arc::new(copy(source)?),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let numbered = self.world.post(self.rank, recvs.iter().map(|op| op.peer))?;
        let pending = Pending {
            world: Arc::clone(&self.world),
            rank: self.rank,
            receives: numbered.into_iter().zip(recvs.iter().copied()).rev().collect(),
        };
        for (op, message) in sends.iter().zip(messages) {
            self.world.send(self.rank, op.peer, message)?;
        }
        self.counter.count(self.rank, sends, recvs);
        Ok(Ticket::new(pending))
    }

    fn finish(&self, ticket: Ticket, _stream: Stream) -> Result<()> {
        self.check()?;
        fault::point("comm.finish", self.rank)?;
        let mut pending = ticket
            .into_inner::<Pending>()
            .filter(|p| p.rank == self.rank && Arc::ptr_eq(&p.world, &self.world))
            .ok_or_else(|| Error::argument("ticket is one of another communicator or rank"))?;
        let deadline = Deadline::begin(self.timeout());
        while let Some((receive, op)) = pending.receives.pop() {
            let message = self.world.receive(self.rank, receive, Kind::Exchange, deadline)?;
            let got = message.bytes.len();
            if got != op.bytes {
                return Err(self.world.length_mismatch(self.rank, op.peer, got, op.bytes));
            }
            if got != 0 {
                // SAFETY: whoever called `start` promised that `op.bytes` bytes are writable at `op.data` until the
                // ticket is finished; the message is the library's own memory and cannot overlap them.
                unsafe { std::ptr::copy_nonoverlapping(message.bytes.as_ptr(), op.data, got) };
            }
        }
        Ok(())
    }

    fn all_gather(&self, mine: &[u8], _stream: Stream) -> Result<Vec<Vec<u8>>> {
        self.check()?;
        fault::point("comm.all_gather", self.rank)?;
        let bytes = Arc::new(copy(mine)?);
        let peers = (0..self.size()).filter(|&peer| peer != self.rank);
        let receives = self.world.post(self.rank, peers.clone())?;
        for peer in peers {
            let message = Message {
                kind: Kind::Gather,
                bytes: Arc::clone(&bytes),
            };
            self.world.send(self.rank, peer, message)?;
        }
        let deadline = Deadline::begin(self.timeout());
        let mut all = vec![Vec::new(); self.size()];
        for receive in receives {
            let message = self.world.receive(self.rank, receive, Kind::Gather, deadline)?;
            all[receive.peer] = copy(&message.bytes).inspect_err(|error| self.fail(error))?;
        }
        all[self.rank] = copy(&bytes).inspect_err(|error| self.fail(error))?;
        Ok(all)
    }

    fn split(&self, members: &[usize]) -> Result<Arc<dyn Communicator>> {
        self.check()?;
        let place = members.iter().position(|&m| m == self.rank);
        let refuse = || {
            Error::argument(format!(
                "{members:?} must be different ranks of {}, rank {} among them",
                self.size(),
                self.rank
            ))
        };
        let place = place.ok_or_else(refuse)?;
        let twice = |(i, m): (usize, &usize)| *m >= self.size() || members[..i].contains(m);
        if members.iter().enumerate().any(twice) {
            return Err(refuse());
        }
        Ok(Arc::new(LocalComm {
            world: self.world.part(members, place),
            rank: place,
            timeout_ns: AtomicU64::new(self.timeout_ns.load(Ordering::Relaxed)),
            left: AtomicBool::new(false),
            counter: Counter::default(),
        }))
    }

    fn set_timeout(&self, timeout: Duration) {
        let ns = timeout.min(MAX_TIMEOUT).as_nanos() as u64;
        self.timeout_ns.store(ns, Ordering::Relaxed);
    }

    fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout_ns.load(Ordering::Relaxed))
    }

    fn traffic(&self) -> Traffic {
        self.counter.traffic()
    }

    fn async_error(&self) -> Option<Error> {
        process::check().err().or_else(|| self.world.error_for(self.rank))
    }

    fn abort(&self, why: &str) {
        if process::check().is_ok() {
            self.world.end(Verdict::aborted(self.rank, why));
        }
    }

    fn fail(&self, error: &Error) {
        if process::check().is_ok() {
            self.world.end(Verdict::failed(self.rank, error));
        }
    }

    fn leave(&self) {
        if process::check().is_err() || self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        self.world.inboxes[self.rank].close();
        for inbox in &self.world.inboxes {
            inbox.close_lane(self.rank);
        }
    }
}

impl Drop for LocalComm {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A copy that reports `Status::OutOfMemory` instead of ending the process.
fn copy(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    out.try_reserve_exact(bytes.len()).map_err(|_| {
        let message = format!("message of {} bytes was refused by the system", bytes.len());
        Error::new(Status::OutOfMemory, message)
    })?;
    out.extend_from_slice(bytes);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(comm: &LocalComm, peer: usize, bytes: &Arc<Vec<u8>>) {
        let message = Message {
            kind: Kind::Exchange,
            bytes: Arc::clone(bytes),
        };
        comm.world.send(comm.rank, peer, message).unwrap();
    }

    #[test]
    fn nothing_is_kept_for_a_dropped_ticket_or_a_rank_that_left() {
        let comms = create(2).unwrap();
        let mut destination = [0u8; 3];
        let recv = RecvOp {
            peer: 0,
            data: destination.as_mut_ptr(),
            bytes: 3,
        };
        let bytes = Arc::new(vec![1, 2, 3]);
        send(&comms[0], 1, &bytes);
        // SAFETY: `destination` outlives the ticket.
        let ticket = unsafe { comms[1].start(&[], &[recv, recv], Stream::NULL) }.unwrap();
        assert_eq!(Arc::strong_count(&bytes), 2);
        drop(ticket);
        assert_eq!(Arc::strong_count(&bytes), 1, "arrived before the drop");
        send(&comms[0], 1, &bytes);
        assert_eq!(Arc::strong_count(&bytes), 1, "arrived after it");
        assert_eq!(destination, [0; 3]);

        send(&comms[0], 1, &bytes);
        assert_eq!(Arc::strong_count(&bytes), 2);
        comms[1].leave();
        assert_eq!(Arc::strong_count(&bytes), 1);
    }
}
