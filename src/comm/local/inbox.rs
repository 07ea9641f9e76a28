//! Everything on its way to one rank.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::lane::{Lane, Message};

/// One lock and one condition for each receiving rank: ranks only meet where one sends to the other.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// By sender. Empty when the inbox is closed.
    lanes: Vec<Lane>,
    /// (sender, message number) that threads of this rank sleep for. Senders wake nobody else, so a rank that waits
    /// for 63 others does not wake 63 times.
    awaited: Vec<(usize, u64)>,
}

/// What a wait came to.
#[derive(Debug)]
pub(super) enum Wait {
    /// The message.
    Arrived(Message),
    /// The sender left before it sent the message.
    Lost,
    /// The inbox was closed.
    Closed,
    /// The deadline passed.
    TimedOut,
}

impl Inbox {
    pub fn new(size: usize) -> Inbox {
        let state = State {
            lanes: (0..size).map(|_| Lane::default()).collect(),
            awaited: Vec::new(),
        };
        Inbox {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Numbers the next receive from each of `from`; `None` when the inbox is closed.
    pub fn post(&self, from: impl Iterator<Item = usize>) -> Option<Vec<u64>> {
        let mut state = self.state.lock();
        from.map(|sender| state.lanes.get_mut(sender).map(Lane::post))
            .collect()
    }

    /// Delivers a message from `sender`; false when the inbox is closed.
    pub fn push(&self, sender: usize, message: Message) -> bool {
        let mut state = self.state.lock();
        let Some(lane) = state.lanes.get_mut(sender) else {
            return false;
        };
        let number = lane.push(message);
        if state.awaited.contains(&(sender, number)) {
            self.changed.notify_all();
        }
        true
    }

    /// Waits for message `number` of `sender` until `deadline`.
    pub fn wait(&self, sender: usize, number: u64, deadline: Instant) -> Wait {
        let mut state = self.state.lock();
        loop {
            let Some(lane) = state.lanes.get_mut(sender) else {
                return Wait::Closed;
            };
            if let Some(message) = lane.take(number) {
                return Wait::Arrived(message);
            }
            if lane.is_lost(number) {
                return Wait::Lost;
            }
            if Instant::now() >= deadline {
                return Wait::TimedOut;
            }
            state.awaited.push((sender, number));
            self.changed.wait_until(&mut state, deadline);
            if let Some(at) = state.awaited.iter().position(|&a| a == (sender, number)) {
                state.awaited.swap_remove(at);
            }
        }
    }

    /// Frees message `number` of `sender`, now or when it arrives.
    pub fn give_up(&self, sender: usize, number: u64) {
        let message = {
            let mut state = self.state.lock();
            state.lanes.get_mut(sender).and_then(|lane| lane.give_up(number))
        };
        // Large buffers are freed after the lock was released.
        drop(message);
    }

    /// Nothing more comes from `sender`.
    pub fn close_lane(&self, sender: usize) {
        let mut state = self.state.lock();
        if let Some(lane) = state.lanes.get_mut(sender) {
            lane.closed = true;
        }
        if state.awaited.iter().any(|&(from, _)| from == sender) {
            self.changed.notify_all();
        }
    }

    /// Frees every message, refuses new ones and wakes whoever waits.
    pub fn close(&self) {
        let lanes = {
            let mut state = self.state.lock();
            self.changed.notify_all();
            std::mem::take(&mut state.lanes)
        };
        drop(lanes);
    }
}
