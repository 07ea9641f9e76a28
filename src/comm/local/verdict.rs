//! Why a communicator ended.

use crate::types::{Error, Status};

/// The first cause, as the rank that it came from and the others see it.
#[derive(Debug)]
pub(super) struct Verdict {
    /// Where it came from.
    pub rank: usize,
    own: Error,
    others: Error,
}

impl Verdict {
    /// `rank` aborted the communicator.
    pub fn aborted(rank: usize, why: &str) -> Verdict {
        Verdict::same(
            rank,
            Status::Aborted,
            format!("rank {rank} aborted the communicator: {why}"),
        )
    }

    /// `rank` failed outside the communicator.
    pub fn failed(rank: usize, error: &Error) -> Verdict {
        let message = format!("rank {rank} failed with {:?}: {error}", error.status);
        Verdict::same(rank, Status::CommFailed, message)
    }

    /// `rank` waited `waited` for a message of `peer`.
    pub fn timed_out(rank: usize, peer: usize, waited: std::time::Duration) -> Verdict {
        let message = format!("rank {rank} waited {waited:?} for rank {peer}, which sent nothing");
        Verdict {
            rank,
            others: Error::new(
                Status::CommFailed,
                format!("rank {rank} ended the communicator: {message}"),
            ),
            own: Error::new(Status::Timeout, message),
        }
    }

    /// A cause that `rank` found and that everybody sees alike.
    pub fn same(rank: usize, status: Status, message: String) -> Verdict {
        let own = Error::new(status, message);
        Verdict {
            rank,
            others: own.clone(),
            own,
        }
    }

    /// The cause as `rank` sees it.
    pub fn seen_by(&self, rank: usize) -> Error {
        if rank == self.rank {
            self.own.clone()
        } else {
            self.others.clone()
        }
    }
}
