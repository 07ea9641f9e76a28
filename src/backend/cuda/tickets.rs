//! Which counters a launch works in. Launches that may run at the same time must not share them.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::device::Stream;
use crate::device::cuda::{Gpu, stream};
use crate::types::Result;

/// Streams that launches may be under way on at once.
pub const STREAMS: usize = 64;

/// Captured launches that may be under way at once.
pub const CAPTURED: usize = 448;

/// Numbers that `Tickets` gives: 0 up to this.
pub const COUNT: usize = STREAMS + CAPTURED;

/// Launches on one stream follow each other, so they share a ticket for as long as the stream is among the last
/// `STREAMS` that were used. A captured launch runs again whenever its graph does, on whatever stream: it has a ticket that
/// no stream gets, and shares it only with the captured launch `CAPTURED` before it.
#[derive(Debug, Default)]
pub struct Tickets {
    /// Index: the ticket.
    streams: Mutex<Vec<LastUse>>,
    captured: AtomicUsize,
}

#[derive(Clone, Copy, Debug)]
struct LastUse {
    stream: u64,
    /// The larger the later.
    when: u64,
}

impl Tickets {
    /// For a launch on `on`, which may be captured.
    pub fn next(&self, gpu: &Gpu, on: Stream) -> Result<usize> {
        if stream::is_capturing(gpu, on)? {
            return Ok(self.captured());
        }
        Ok(self.on_stream(stream::id(gpu, on)?))
    }

    /// For a launch on the stream of this number, which no other stream of the process ever has.
    pub fn on_stream(&self, stream: u64) -> usize {
        let mut streams = self.streams.lock();
        let when = streams.iter().map(|s| s.when).max().map_or(0, |last| last + 1);
        let known = streams.iter().position(|s| s.stream == stream);
        let ticket = known.unwrap_or_else(|| {
            if streams.len() < STREAMS {
                return streams.len();
            }
            let oldest = (0..STREAMS).min_by_key(|&i| streams[i].when);
            oldest.unwrap_or(0)
        });
        let used = LastUse { stream, when };
        match streams.get_mut(ticket) {
            Some(place) => *place = used,
            None => streams.push(used),
        }
        ticket
    }

    /// For a launch that is being captured.
    pub fn captured(&self) -> usize {
        STREAMS + self.captured.fetch_add(1, Ordering::Relaxed) % CAPTURED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_keeps_its_ticket_while_it_is_used() {
        let tickets = Tickets::default();
        let first: Vec<usize> = (0..STREAMS as u64).map(|s| tickets.on_stream(s)).collect();
        assert_eq!(first, (0..STREAMS).collect::<Vec<_>>());
        for _ in 0..1000 {
            assert_eq!(tickets.on_stream(7), 7);
            assert_eq!(tickets.on_stream(9), 9);
        }
        assert_eq!(tickets.on_stream(0), 0);
        // A stream too many takes the place of that which was used longest ago.
        assert_eq!(tickets.on_stream(5000), 1);
        assert_eq!(tickets.on_stream(0), 0);
        assert_eq!(tickets.on_stream(1), 2);
    }

    #[test]
    fn captured_launches_have_tickets_of_their_own() {
        let tickets = Tickets::default();
        let given: Vec<usize> = (0..CAPTURED).map(|_| tickets.captured()).collect();
        for _ in 0..2 * COUNT {
            assert!(!given.contains(&tickets.on_stream(3)));
        }
        assert_eq!(given, (STREAMS..COUNT).collect::<Vec<_>>());
        assert_eq!(tickets.captured(), STREAMS);
    }
}
