//! What the ranks of one local communicator share.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::inbox::{Inbox, Wait};
use super::lane::{Kind, Message};
use super::verdict::Verdict;
use crate::types::{Error, Result, Status};

#[derive(Debug)]
pub(super) struct World {
    /// By receiving rank.
    pub inboxes: Vec<Inbox>,
    verdict: OnceLock<(Instant, Verdict)>,
    parts: Mutex<Vec<Part>>,
}

/// What the first of some ranks made for all of them, until the last has taken it.
#[derive(Debug)]
struct Part {
    members: Vec<usize>,
    taken: Vec<bool>,
    world: Arc<World>,
}

/// One receive that was posted: message `number` of `peer`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receive {
    pub peer: usize,
    pub number: u64,
}

/// How long one call waits: the timeout it began with, and when that has passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    timeout: Duration,
    at: Instant,
}

impl Deadline {
    pub fn begin(timeout: Duration) -> Deadline {
        Deadline {
            timeout,
            at: Instant::now() + timeout,
        }
    }
}

impl World {
    pub fn new(size: usize) -> World {
        World {
            inboxes: (0..size).map(|_| Inbox::new(size)).collect(),
            verdict: OnceLock::new(),
            parts: Mutex::new(Vec::new()),
        }
    }

    /// The world of `members`, taken by number `place` of them. Each of them takes it once.
    pub fn part(&self, members: &[usize], place: usize) -> Arc<World> {
        let mut parts = self.parts.lock();
        let open = |p: &Part| p.members == members && !p.taken[place];
        let at = parts.iter().position(open).unwrap_or_else(|| {
            parts.push(Part {
                members: members.to_vec(),
                taken: vec![false; members.len()],
                world: Arc::new(World::new(members.len())),
            });
            parts.len() - 1
        });
        parts[at].taken[place] = true;
        let world = Arc::clone(&parts[at].world);
        if parts[at].taken.iter().all(|&t| t) {
            parts.remove(at);
        }
        world
    }

    /// Ends the communicator unless it has ended already. The verdict stands before any inbox is closed, so whoever
    /// finds a closed inbox finds the reason too.
    pub fn end(&self, verdict: Verdict) {
        if self.verdict.set((Instant::now(), verdict)).is_ok() {
            self.inboxes.iter().for_each(Inbox::close);
        }
    }

    /// The cause and when it came, if the communicator has ended.
    pub fn verdict(&self) -> Option<&(Instant, Verdict)> {
        self.verdict.get()
    }

    /// The cause as `rank` sees it, if the communicator has ended.
    pub fn error_for(&self, rank: usize) -> Option<Error> {
        self.verdict().map(|(_, verdict)| verdict.seen_by(rank))
    }

    /// Ends the communicator for a cause that everybody sees alike; the error that `rank` returns.
    fn end_alike(&self, rank: usize, status: Status, message: String) -> Error {
        self.end(Verdict::same(rank, status, message));
        self.reason(rank)
    }

    /// Why `rank` cannot go on: the communicator has ended, or the rank has left it.
    pub fn reason(&self, rank: usize) -> Error {
        self.error_for(rank).unwrap_or_else(|| destroyed(rank))
    }

    /// Delivers a message. Never waits.
    pub fn send(&self, rank: usize, peer: usize, message: Message) -> Result<()> {
        if self.inboxes[peer].push(rank, message) {
            return Ok(());
        }
        if self.verdict().is_some() || peer == rank {
            return Err(self.reason(rank));
        }
        let message = format!("rank {peer} left the communicator while rank {rank} was sending to it");
        Err(self.end_alike(rank, Status::CommFailed, message))
    }

    /// Numbers receives of `rank`, one from each of `peers`.
    pub fn post(&self, rank: usize, peers: impl Iterator<Item = usize> + Clone) -> Result<Vec<Receive>> {
        let numbers = self.inboxes[rank]
            .post(peers.clone())
            .ok_or_else(|| self.reason(rank))?;
        let receive = |(peer, number)| Receive { peer, number };
        Ok(peers.zip(numbers).map(receive).collect())
    }

    /// Waits for a message of `kind`.
    pub fn receive(&self, rank: usize, from: Receive, kind: Kind, deadline: Deadline) -> Result<Message> {
        let peer = from.peer;
        match self.inboxes[rank].wait(peer, from.number, deadline.at) {
            Wait::Arrived(message) if message.kind == kind => Ok(message),
            Wait::Arrived(message) => {
                let message = format!(
                    "rank {peer} called {} while rank {rank} called {}: ranks disagree on the order of calls",
                    name(message.kind),
                    name(kind)
                );
                Err(self.end_alike(rank, Status::CommFailed, message))
            }
            Wait::Lost => {
                let message =
                    format!("rank {peer} left the communicator while rank {rank} was waiting for it");
                Err(self.end_alike(rank, Status::CommFailed, message))
            }
            Wait::Closed => Err(self.reason(rank)),
            Wait::TimedOut => {
                self.end(Verdict::timed_out(rank, peer, deadline.timeout));
                Err(self.reason(rank))
            }
        }
    }

    /// Ends the communicator because `peer` sent `got` bytes where `rank` expects `want`.
    pub fn length_mismatch(&self, rank: usize, peer: usize, got: usize, want: usize) -> Error {
        let message = format!("rank {peer} sent {got} bytes where rank {rank} expects {want}");
        self.end_alike(rank, Status::CommFailed, message)
    }
}

/// What a rank gets that uses a communicator after it left.
pub(super) fn destroyed(rank: usize) -> Error {
    Error::new(
        Status::CommDestroyed,
        format!("rank {rank} has destroyed this communicator"),
    )
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Exchange => "an exchange",
        Kind::Gather => "all_gather",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &Arc<Vec<u8>>) -> Message {
        Message {
            kind: Kind::Exchange,
            bytes: Arc::clone(bytes),
        }
    }

    #[test]
    fn queued_messages_are_freed_at_the_end_and_none_are_queued_after() {
        let world = World::new(3);
        let bytes = Arc::new(vec![1u8; 10]);
        for peer in 0..3 {
            world.send(0, peer, message(&bytes)).unwrap();
        }
        assert_eq!(Arc::strong_count(&bytes), 4);
        world.end(Verdict::aborted(2, "stop"));
        assert_eq!(Arc::strong_count(&bytes), 1);
        assert_eq!(
            world.send(0, 1, message(&bytes)).unwrap_err().status,
            Status::Aborted
        );
        assert_eq!(Arc::strong_count(&bytes), 1);
        assert_eq!(
            world.post(1, [0].into_iter()).unwrap_err().status,
            Status::Aborted
        );
    }

    #[test]
    fn the_first_cause_wins_and_each_rank_sees_its_side() {
        let world = World::new(2);
        let deadline = Deadline::begin(Duration::from_millis(1));
        let from = world.post(1, [0].into_iter()).unwrap()[0];
        let error = world.receive(1, from, Kind::Exchange, deadline).unwrap_err();
        assert_eq!(error.status, Status::Timeout);
        world.end(Verdict::aborted(0, "too late"));
        assert_eq!(world.error_for(1).unwrap(), error);
        let other = world.error_for(0).unwrap();
        assert_eq!(other.status, Status::CommFailed);
        assert!(other.message.contains(&error.message), "{other}");
    }
}
