//! Who sits at a hub and what is to be said to whom: the hub's rules, without its sockets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::frame::{ARRIVAL, Down, Told};
use crate::types::{Error, Result, Status};

/// Most ranks of a communicator that meets at a hub.
pub const MOST_RANKS: usize = 4096;

/// One rank's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seat {
    #[default]
    Empty,
    Taken,
    /// It said goodbye.
    Left,
    /// Its connection broke.
    Lost,
}

#[derive(Default)]
pub(super) struct Table {
    seats: Vec<Seat>,
    /// How many all-gathers each rank has joined.
    joined: Vec<u64>,
    gathers: BTreeMap<u64, Vec<Option<Vec<u8>>>>,
    complete: bool,
    ended: bool,
    mail: Vec<(usize, Arc<Vec<u8>>)>,
}

fn list(ranks: &[usize]) -> String {
    let names: Vec<String> = ranks.iter().take(8).map(ToString::to_string).collect();
    let more = if ranks.len() > 8 { " and others" } else { "" };
    let plural = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{plural} {}{more}", names.join(", "))
}

impl Table {
    /// `world`: the number of ranks, where it is known before the first comes.
    pub fn new(world: Option<usize>) -> Table {
        let mut table = Table::default();
        table.set_world(world.unwrap_or(0));
        table
    }

    fn set_world(&mut self, world: usize) {
        self.seats.resize(world, Seat::Empty);
        self.joined.resize(world, 0);
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn is_seated(&self, rank: usize) -> bool {
        self.seats[rank] == Seat::Taken
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What is to be sent to which rank.
    pub fn take_mail(&mut self) -> Vec<(usize, Arc<Vec<u8>>)> {
        std::mem::take(&mut self.mail)
    }

    fn tell(&mut self, ranks: impl Iterator<Item = usize>, down: &Down) {
        let frame = down.to_bytes();
        for rank in ranks {
            if self.seats[rank] == Seat::Taken {
                self.mail.push((rank, Arc::clone(&frame)));
            }
        }
    }

    fn tell_all(&mut self, down: &Down) {
        self.tell(0..self.seats.len(), down);
    }

    /// Gives `rank` of `world` its seat; the error that it gets instead.
    pub fn seat(&mut self, rank: usize, world: usize) -> Result<()> {
        if self.seats.is_empty() && world <= MOST_RANKS {
            self.set_world(world);
        }
        let size = self.seats.len();
        let refusal = if world != size {
            format!("rank {rank} has a world_size of {world}, and others have {size}")
        } else if rank >= size {
            format!("rank {rank} is not one of {size} ranks")
        } else if self.seats[rank] != Seat::Empty {
            format!("two processes or threads are rank {rank} of {size}")
        } else if self.ended {
            "the communicator ended before all ranks had come".to_owned()
        } else {
            self.seats[rank] = Seat::Taken;
            return Ok(());
        };
        let error = Error::new(Status::CommFailed, refusal);
        // They would wait for a rank that never comes.
        self.end_all(&error);
        Err(error)
    }

    /// Tells all ranks when the last one has come.
    pub fn welcome(&mut self) {
        if !self.complete && self.seats.iter().all(|&s| s == Seat::Taken) {
            self.complete = true;
            self.tell_all(&Down::Welcome);
        }
    }

    /// The part of `rank` in all-gather `number`.
    pub fn gather(&mut self, rank: usize, number: u64, bytes: Vec<u8>) {
        if !self.complete || number != self.joined[rank] {
            return self.confused(rank);
        }
        self.joined[rank] += 1;
        let size = self.seats.len();
        let parts = self.gathers.entry(number).or_insert_with(|| vec![None; size]);
        parts[rank] = Some(bytes);
        if parts.iter().all(Option::is_some) {
            let parts = self.gathers.remove(&number).unwrap_or_default();
            let parts = parts.into_iter().flatten().collect();
            return self.tell_all(&Down::Gathered { number, parts });
        }
        self.look_for_the_gone();
    }

    /// Ends the communicator when a rank waits for one that will not come.
    fn look_for_the_gone(&mut self) {
        let waits = self.gathers.values().find_map(|parts| {
            let gone = (0..parts.len()).find(|&r| parts[r].is_none() && self.seats[r] == Seat::Left)?;
            let waiting = parts.iter().position(Option::is_some)?;
            Some((gone, waiting))
        });
        if let Some((gone, waiting)) = waits {
            let message =
                format!("rank {gone} left the communicator while rank {waiting} was waiting for it");
            self.end_all(&Error::new(Status::CommFailed, message));
        }
    }

    /// `rank` gave up waiting.
    pub fn late(&mut self, rank: usize, number: u64, waited: Duration) {
        let message = if number == ARRIVAL && !self.complete {
            let absent: Vec<usize> = (0..self.seats.len())
                .filter(|&r| self.seats[r] != Seat::Taken)
                .collect();
            let (absent, size) = (list(&absent), self.seats.len());
            format!("rank {rank} of {size} waited {waited:?} for {absent} to come")
        } else if let Some(parts) = self.gathers.get(&number) {
            let silent: Vec<usize> = (0..parts.len()).filter(|&r| parts[r].is_none()).collect();
            format!(
                "rank {rank} waited {waited:?} for {}, which sent nothing",
                list(&silent)
            )
        } else {
            // What it waited for is on its way.
            return;
        };
        self.end_for(
            rank,
            &Error::new(Status::Timeout, message.clone()),
            &Error::new(
                Status::CommFailed,
                format!("rank {rank} ended the communicator: {message}"),
            ),
        );
    }

    /// `rank` ends the communicator and knows why; the others are `told`.
    pub fn end(&mut self, rank: usize, told: Told) {
        if !std::mem::replace(&mut self.ended, true) {
            let others = (0..self.seats.len()).filter(|&r| r != rank).collect::<Vec<_>>();
            self.tell(others.into_iter(), &Down::Ended(told));
        }
    }

    /// `rank` goes as it should, after so many exchanges with each rank; with those not named, none.
    pub fn leave(&mut self, rank: usize, exchanges: &[u64]) {
        self.seats[rank] = Seat::Left;
        if !self.complete {
            let message = format!("rank {rank} left before all ranks had come");
            return self.end_all(&Error::new(Status::CommFailed, message));
        }
        for other in 0..self.seats.len() {
            let left = Down::Left {
                rank: rank as u32,
                exchanges: exchanges.get(other).copied().unwrap_or(0),
            };
            self.tell(std::iter::once(other), &left);
        }
        self.look_for_the_gone();
    }

    /// The connection to `rank` is over.
    pub fn lost(&mut self, rank: usize) {
        if self.seats[rank] != Seat::Taken {
            return;
        }
        if !self.complete {
            // It may come again.
            self.seats[rank] = Seat::Empty;
            return;
        }
        self.seats[rank] = Seat::Lost;
        let message =
            format!("rank {rank} was lost: its process ended without leaving, or its host is unreachable");
        self.end_all(&Error::new(Status::CommFailed, message));
    }

    /// `rank` said something that no rank says.
    pub fn confused(&mut self, rank: usize) {
        let message =
            format!("rank {rank} runs another version of the library, or its messages were damaged");
        self.end_all(&Error::new(Status::CommFailed, message));
        self.seats[rank] = Seat::Lost;
    }

    fn end_all(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.ended, true) {
            self.tell_all(&Down::Ended(Told::of(error)));
        }
    }

    fn end_for(&mut self, rank: usize, own: &Error, others: &Error) {
        if !self.ended {
            self.tell([rank].into_iter(), &Down::Ended(Told::of(own)));
            self.end(rank, Told::of(others));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{self, Next};
    use super::*;

    fn seated(world: usize) -> Table {
        let mut table = Table::new(Some(world));
        for rank in 0..world {
            table.seat(rank, world).unwrap();
            table.welcome();
        }
        let mail = read(&mut table);
        assert!(mail.iter().all(|(_, down)| *down == Down::Welcome) && mail.len() == world);
        table
    }

    fn read(table: &mut Table) -> Vec<(usize, Down)> {
        let open = |(rank, bytes): (usize, Arc<Vec<u8>>)| {
            let Next::Frame { kind, length } = frame::next(&bytes, frame::MAX_BODY) else {
                panic!()
            };
            (rank, Down::read(kind, frame::body(&bytes, length)).unwrap())
        };
        table.take_mail().into_iter().map(open).collect()
    }

    /// What each rank was told of the end.
    fn ends(table: &mut Table) -> Vec<(usize, Status, String)> {
        let told = read(table).into_iter().filter_map(|(rank, down)| match down {
            Down::Ended(told) => Some((rank, told.error().status, told.message)),
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn gathers_are_handed_out_when_all_parts_are_there() {
        let mut table = seated(3);
        for rank in [2, 0] {
            table.gather(rank, 0, vec![rank as u8]);
            assert_eq!(read(&mut table), []);
        }
        table.gather(0, 1, vec![9]);
        table.gather(1, 0, vec![]);
        let parts = vec![vec![0], vec![], vec![2]];
        let want = Down::Gathered { number: 0, parts };
        assert_eq!(read(&mut table), [0, 1, 2].map(|rank| (rank, want.clone())));
    }

    #[test]
    fn a_rank_that_left_is_no_loss_until_somebody_waits_for_it() {
        let mut table = seated(3);
        table.leave(1, &[5, 0]);
        let left = |exchanges| Down::Left { rank: 1, exchanges };
        assert_eq!(read(&mut table), [(0, left(5)), (2, left(0))]);
        table.lost(1);
        assert!(!table.has_ended());
        table.gather(2, 0, vec![]);
        let told = ends(&mut table);
        assert_eq!(told.len(), 2);
        assert!(told[0].2.contains("rank 1 left") && told[0].2.contains("rank 2 was waiting"));
    }

    #[test]
    fn who_is_late_hears_for_whom_it_waited() {
        let mut table = seated(4);
        table.gather(0, 0, vec![]);
        table.gather(2, 0, vec![]);
        table.late(0, 7, Duration::from_millis(100));
        assert!(!table.has_ended(), "what it waited for has come");
        table.late(0, 0, Duration::from_millis(100));
        let told = ends(&mut table);
        let text = "rank 0 waited 100ms for ranks 1, 3, which sent nothing";
        assert_eq!(told[0], (0, Status::Timeout, text.to_owned()));
        for (i, rank) in [1, 2, 3].into_iter().enumerate() {
            let want = format!("rank 0 ended the communicator: {text}");
            assert_eq!(told[i + 1], (rank, Status::CommFailed, want));
        }
        table.lost(3);
        assert_eq!(ends(&mut table), [], "the first cause stands");
    }

    #[test]
    fn ranks_that_do_not_fit_together_end_the_meeting() {
        let refuse = |rank, world, part: &str| {
            let mut table = Table::new(None);
            table.seat(0, 3).unwrap();
            let error = table.seat(rank, world).unwrap_err();
            assert!(error.message.contains(part), "{error}");
            assert_eq!(ends(&mut table), [(0, Status::CommFailed, error.message)]);
        };
        refuse(1, 4, "world_size of 4, and others have 3");
        refuse(0, 3, "two processes or threads are rank 0");
        refuse(3, 3, "rank 3 is not one of 3");
        assert!(Table::new(None).seat(0, MOST_RANKS + 1).is_err());

        let mut table = Table::new(Some(2));
        table.seat(1, 2).unwrap();
        table.lost(1);
        table.seat(1, 2).unwrap();
        table.late(1, ARRIVAL, Duration::from_secs(5));
        let told = ends(&mut table);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].2, "rank 1 of 2 waited 5s for rank 0 to come");
    }

    #[test]
    fn numbers_out_of_order_and_losses_end_it() {
        let mut table = seated(2);
        table.gather(0, 1, vec![]);
        assert!(ends(&mut table)[0].2.contains("rank 0 runs another version"));
        let mut table = seated(2);
        table.lost(1);
        assert!(ends(&mut table)[0].2.contains("rank 1 was lost"));
        let mut table = seated(3);
        let why = Error::new(Status::Aborted, "rank 2 aborted the communicator: stop");
        table.end(2, Told::of(&why));
        let told = ends(&mut table);
        assert_eq!(told.len(), 2);
        assert_eq!(
            told[1],
            (
                1,
                Status::Aborted,
                "rank 2 aborted the communicator: stop".to_owned()
            )
        );
    }
}
