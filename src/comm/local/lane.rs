//! Messages from one rank to one other, numbered in the order they were sent.

use std::collections::VecDeque;
use std::sync::Arc;

/// What made a message. Both ends must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A grouped exchange.
    Exchange,
    /// An all-gather.
    Gather,
}

/// Bytes on their way.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub kind: Kind,
    /// Shared, because an all-gather sends the same bytes to everybody.
    pub bytes: Arc<Vec<u8>>,
}

/// Receives may be taken in any order, so the lane is a queue of slots and not of messages: slot `number - first`
/// belongs to message `number`.
#[derive(Debug, Default)]
pub(super) struct Lane {
    slots: VecDeque<Slot>,
    first: u64,
    sent: u64,
    posted: u64,
    /// The sender has left: nothing comes after message `sent`.
    pub closed: bool,
}

#[derive(Debug)]
enum Slot {
    /// Not sent yet.
    Empty,
    Arrived(Message),
    /// Given up before it was sent.
    Unwanted,
    /// Taken, or given up after it was sent.
    Done,
}

impl Lane {
    /// Numbers the next receive.
    pub fn post(&mut self) -> u64 {
        self.posted += 1;
        self.posted - 1
    }

    /// Adds the next message and returns its number.
    pub fn push(&mut self, message: Message) -> u64 {
        let number = self.sent;
        self.sent += 1;
        if let Some(slot) = self.slot(number) {
            *slot = match slot {
                Slot::Unwanted => Slot::Done,
                _ => Slot::Arrived(message),
            };
        }
        self.trim();
        number
    }

    /// Takes message `number` if it is here.
    pub fn take(&mut self, number: u64) -> Option<Message> {
        let slot = self.slot(number)?;
        match std::mem::replace(slot, Slot::Done) {
            Slot::Arrived(message) => {
                self.trim();
                Some(message)
            }
            other => {
                *slot = other;
                None
            }
        }
    }

    /// Gives up message `number`, which nobody will take. The message is returned if it is here already.
    pub fn give_up(&mut self, number: u64) -> Option<Message> {
        let message = self.take(number);
        if message.is_none()
            && let Some(slot @ Slot::Empty) = self.slot(number)
        {
            *slot = Slot::Unwanted;
        }
        message
    }

    /// Whether message `number` can never arrive.
    pub fn is_lost(&self, number: u64) -> bool {
        self.closed && number >= self.sent
    }

    /// `None` when the message was taken long ago.
    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        while self.slots.len() <= index {
            self.slots.push_back(Slot::Empty);
        }
        self.slots.get_mut(index)
    }

    fn trim(&mut self) {
        while let Some(Slot::Done) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(byte: u8) -> Message {
        Message {
            kind: Kind::Exchange,
            bytes: Arc::new(vec![byte]),
        }
    }

    fn byte(message: Option<Message>) -> Option<u8> {
        message.map(|m| m.bytes[0])
    }

    #[test]
    fn matches_by_number_in_any_order() {
        let mut lane = Lane::default();
        let receives: Vec<u64> = (0..4).map(|_| lane.post()).collect();
        assert_eq!(byte(lane.take(receives[1])), None);
        for b in 0..4 {
            assert_eq!(lane.push(message(b)), u64::from(b));
        }
        for i in [2, 0, 3, 1] {
            assert_eq!(byte(lane.take(receives[i])), Some(i as u8));
            assert_eq!(byte(lane.take(receives[i])), None, "taken once");
        }
        assert!(lane.slots.is_empty(), "taken messages leave nothing behind");
    }

    #[test]
    fn given_up_messages_are_freed_whether_sent_before_or_after() {
        let mut lane = Lane::default();
        let (a, b, c) = (lane.post(), lane.post(), lane.post());
        let bytes = Arc::new(vec![7]);
        let sent = Message {
            kind: Kind::Exchange,
            bytes: Arc::clone(&bytes),
        };
        lane.push(sent.clone());
        assert_eq!(byte(lane.give_up(a)), Some(7));
        assert!(lane.give_up(b).is_none());
        lane.push(sent);
        assert_eq!(Arc::strong_count(&bytes), 1, "no copy is kept");
        lane.push(message(9));
        assert_eq!(byte(lane.take(c)), Some(9));
        assert!(lane.slots.is_empty());
    }

    #[test]
    fn a_closed_lane_loses_only_what_was_not_sent() {
        let mut lane = Lane::default();
        let (a, b) = (lane.post(), lane.post());
        lane.push(message(1));
        assert!(!lane.is_lost(b));
        lane.closed = true;
        assert!(!lane.is_lost(a) && lane.is_lost(b));
    }
}
