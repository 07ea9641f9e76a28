//! Named points where the test-only build of the library can be made to fail.
//!
//! Points: `arena.reserve` (a block is about to be allocated), `comm.start`, `comm.finish`, `comm.all_gather`
//! (nothing was sent or taken yet), `cuda.open` (the device with the rank's number is about to be opened), `local.spawn`
//! (a rank's thread is about to be made), `local.rank` (a rank's thread is about to call its function), `key_create`,
//! `calc_attn_forward`, `calc_attn_backward`, `group_cast`, `group_reduce` (arguments are checked, plans compared, nothing
//! has begun).

#[cfg(feature = "fault")]
pub use set_up::{Action, clear, point, set};

/// Does nothing: only the test-only build fails on purpose.
#[cfg(not(feature = "fault"))]
#[inline(always)]
pub fn point(_name: &str, _rank: usize) -> crate::types::Result<()> {
    Ok(())
}

#[cfg(feature = "fault")]
mod set_up {
    use parking_lot::Mutex;

    use crate::types::{Error, Result, Status};

    /// What happens at a point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Action {
        /// The point panics.
        Panic,
        /// The point returns an error of this status.
        Error(Status),
    }

    struct Fault {
        point: String,
        rank: i64,
        action: Action,
        skip: u32,
    }

    static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());

    /// Makes `point` do `action` on `rank` (-1: any rank) from its hit number `after` (counted from 0) until
    /// `clear`. Replaces what was set for the same point and rank.
    pub fn set(point: &str, rank: i64, action: Action, after: u32) {
        let mut faults = FAULTS.lock();
        faults.retain(|f| f.point != point || f.rank != rank);
        faults.push(Fault {
            point: point.to_owned(),
            rank,
            action,
            skip: after,
        });
    }

    /// Makes every point harmless again.
    pub fn clear() {
        FAULTS.lock().clear();
    }

    /// A place that fails when a test has asked for it; `Ok` otherwise.
    pub fn point(name: &str, rank: usize) -> Result<()> {
        // The lock is released before anything panics or allocates a message.
        match hit(name, rank) {
            None => Ok(()),
            Some(Action::Panic) => panic!("panic asked for at {name} on rank {rank}"),
            Some(Action::Error(status)) => Err(Error::new(
                status,
                format!("failure asked for at {name} on rank {rank}"),
            )),
        }
    }

    fn hit(name: &str, rank: usize) -> Option<Action> {
        let mut faults = FAULTS.lock();
        let fault = faults
            .iter_mut()
            .find(|f| f.point == name && (f.rank == -1 || f.rank == rank as i64))?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        Some(fault.action)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        // One test, because `clear` clears for the whole process.
        #[test]
        fn fires_where_and_when_it_was_set() {
            point("unit.a", 0).unwrap();
            set("unit.a", 2, Action::Error(Status::OutOfMemory), 1);
            set("unit.b", -1, Action::Panic, 0);
            point("unit.a", 1).unwrap();
            point("unit.a", 2).unwrap();
            let error = point("unit.a", 2).unwrap_err();
            assert_eq!(error.status, Status::OutOfMemory);
            assert!(
                error.message.contains("unit.a") && error.message.contains("rank 2"),
                "{error}"
            );
            assert!(point("unit.a", 2).is_err(), "it fires until cleared");
            let text = std::panic::catch_unwind(|| point("unit.b", 7)).unwrap_err();
            assert!(text.downcast_ref::<String>().unwrap().contains("unit.b"));
            set("unit.a", 2, Action::Error(Status::Internal), 0);
            assert_eq!(point("unit.a", 2).unwrap_err().status, Status::Internal);
            clear();
            point("unit.a", 2).unwrap();
            point("unit.b", 7).unwrap();
        }
    }
}
