//! Before the first transfer: do all ranks mean the same plan, and does each have its workspace?

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::context::Session;
use super::gather::{Purpose, gather};
use super::key::Key;
use super::profile;
use crate::device::Stream;
use crate::types::{Error, Result, Status};

/// What each rank tells the others: number of the comparison, hash of the plan, status of its reservation.
const MESSAGE: usize = 24;

/// One rank's message.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word {
    comparison: u64,
    hash: u64,
    reserved: i64,
}

impl Word {
    fn to_bytes(self) -> [u8; MESSAGE] {
        let mut bytes = [0; MESSAGE];
        bytes[..8].copy_from_slice(&self.comparison.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.hash.to_le_bytes());
        bytes[16..].copy_from_slice(&self.reserved.to_le_bytes());
        bytes
    }

    /// `bytes` are those of `to_bytes` on another rank: as many, as `gather` checked.
    fn from_bytes(bytes: &[u8]) -> Word {
        let part = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[i..i + 8]);
            word
        };
        Word {
            comparison: u64::from_le_bytes(part(0)),
            hash: u64::from_le_bytes(part(8)),
            reserved: i64::from_le_bytes(part(16)),
        }
    }
}

/// Makes what a device needs, takes workspace and compares plans with every rank. Fails on all ranks alike, with the communicator still
/// good: `Status::PlanMismatch` when plans or call numbers differ, `Status::OutOfMemory` when one rank has no workspace.
/// Then opens the ways that the plan takes.
pub(super) fn run(session: &mut Session<'_>, key: &Key, stream: Stream) -> Result<()> {
    let data = key.data();
    let reserved = key
        .workspace_on(stream)
        .and_then(|bytes| session.state.arena.reserve(bytes, data.request.config.allocator))
        .and_then(|()| profile::reserve(key, session.on()));
    let mine = Word {
        comparison: session.state.comparisons + 1,
        hash: data.plan.hash,
        reserved: reserved.as_ref().err().map_or(0, |e| e.status as i64),
    };
    // The reservation's outcome travels along, so that no rank waits for one that had to give up.
    let all = gather(session, Purpose::ComparePlans, &mine.to_bytes(), stream)?;
    // Only now: a gather that failed before it sent anything leaves the communicator good, and is repeated.
    session.state.comparisons += 1;
    let words: Vec<Word> = all.iter().map(|b| Word::from_bytes(b)).collect();
    if words
        .iter()
        .any(|w| (w.comparison, w.hash) != (mine.comparison, mine.hash))
    {
        return Err(mismatch(&words));
    }
    everybody_has_workspace(reserved, words.iter().map(|w| w.reserved))?;
    let peers = data.plan.peers();
    session.in_step(|| session.context().comm().connect(&peers))?;
    data.prepared.store(true, Ordering::Release);
    Ok(())
}

/// This rank's reservation, and then every rank's, by rank: a status, or 0 where all is well. `Status::OutOfMemory` when
/// another rank has none.
pub(super) fn everybody_has_workspace(mine: Result<()>, all: impl Iterator<Item = i64>) -> Result<()> {
    mine?;
    match all.enumerate().find(|(_, status)| *status != 0) {
        None => Ok(()),
        Some((peer, status)) => {
            let message = format!("rank {peer} could not take its workspace (status {status})");
            Err(Error::new(Status::OutOfMemory, message))
        }
    }
}

/// Names each plan and the ranks that have it.
fn mismatch(words: &[Word]) -> Error {
    let mut message = String::from("ranks disagree on the plan or on the order of calls:");
    let mut told: Vec<(u64, u64)> = Vec::new();
    for w in words {
        if told.contains(&(w.comparison, w.hash)) {
            continue;
        }
        told.push((w.comparison, w.hash));
        let ranks: Vec<String> = (0..words.len())
            .filter(|&r| (words[r].comparison, words[r].hash) == (w.comparison, w.hash))
            .map(|r| r.to_string())
            .collect();
        let plural = if ranks.len() == 1 { "rank" } else { "ranks" };
        let separator = if told.len() == 1 { "" } else { ";" };
        let (list, call) = (ranks.join(", "), w.comparison);
        // Writing to a String cannot fail.
        let _ = write!(
            message,
            "{separator} {plural} {list} compared plan {:#018x} as number {call}",
            w.hash
        );
    }
    Error::new(Status::PlanMismatch, message)
}
