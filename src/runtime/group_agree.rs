//! Before the first transfer of a group: does every rank expect what the others send, and have its workspace?

use std::sync::atomic::Ordering;

use super::context::Session;
use super::gather::{Purpose, gather};
use super::group_lists::{GroupTensor, Traffic};
use super::group_plan::GroupPlan;
use super::prepare;
use crate::device::Stream;
use crate::plan::Hasher;
use crate::types::{Error, Result, Status};

/// What one rank tells the others. As many words on every rank.
struct Account {
    /// Number of the comparison.
    comparison: u64,
    /// Status of the reservation.
    reserved: i64,
    /// Of the tensors and of what they will be used for.
    tensors: u64,
    /// For each rank what goes to it and what comes from it.
    pairs: Vec<[Traffic; 2]>,
}

impl Account {
    fn to_bytes(&self) -> Vec<u8> {
        let head = [self.comparison, self.reserved as u64, self.tensors];
        let words = |t: &Traffic| [t.pieces as u64, t.rows as u64, t.hash];
        let pairs = self.pairs.iter().flatten().flat_map(words);
        head.into_iter().chain(pairs).flat_map(u64::to_le_bytes).collect()
    }

    /// `bytes` are those of `to_bytes` on another rank: as many, as `gather` checked.
    fn from_bytes(bytes: &[u8]) -> Account {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()))
            .collect();
        let traffic = |w: &[u64]| Traffic {
            pieces: w[0] as i64,
            rows: w[1] as i64,
            hash: w[2],
        };
        Account {
            comparison: words[0],
            reserved: words[1] as i64,
            tensors: words[2],
            pairs: words[3..]
                .chunks_exact(6)
                .map(|w| [traffic(&w[..3]), traffic(&w[3..])])
                .collect(),
        }
    }
}

/// Takes the workspace of `plan` and compares it with every rank. Fails on all ranks alike, with the communicator still
/// good: `Status::PlanMismatch` when they do not fit together, `Status::OutOfMemory` when one rank has no workspace.
pub(super) fn run(session: &mut Session<'_>, plan: &GroupPlan, stream: Stream) -> Result<()> {
    let reserved = session.state.arena.reserve(plan.bytes, plan.allocator);
    let mine = Account {
        comparison: session.state.comparisons + 1,
        reserved: reserved.as_ref().err().map_or(0, |e| e.status as i64),
        tensors: hash(&plan.tensors, plan.reduce),
        pairs: plan.lists.pairs.clone(),
    };
    let all = gather(session, Purpose::CompareGroups, &mine.to_bytes(), stream)?;
    session.state.comparisons += 1;
    let accounts: Vec<Account> = all.iter().map(|b| Account::from_bytes(b)).collect();
    if let Some(what) = mismatch(&accounts) {
        let message = format!("ranks disagree on the group: {what}");
        return Err(Error::new(Status::PlanMismatch, message));
    }
    prepare::everybody_has_workspace(reserved, accounts.iter().map(|a| a.reserved))?;
    plan.prepared.store(true, Ordering::Release);
    Ok(())
}

fn hash(tensors: &[GroupTensor], reduce: bool) -> u64 {
    let mut hasher = Hasher::new();
    hasher.words([i64::from(reduce), tensors.len() as i64]);
    for t in tensors {
        hasher.words([t.row_elements, t.dtype as i64]);
    }
    hasher.finish()
}

/// The first thing that does not fit, the same on every rank.
fn mismatch(all: &[Account]) -> Option<String> {
    let first = &all[0];
    if let Some(r) = all.iter().position(|a| a.comparison != first.comparison) {
        return Some(format!(
            "rank 0 compared it as number {}, rank {r} as number {}: calls are in another order",
            first.comparison, all[r].comparison
        ));
    }
    if let Some(r) = all.iter().position(|a| a.tensors != first.tensors) {
        return Some(format!(
            "rank {r} has other tensors or flags than rank 0 (their number, row_elements, dtypes, MAGI_GROUP_REDUCE)"
        ));
    }
    for (from, sender) in all.iter().enumerate() {
        for (to, receiver) in all.iter().enumerate() {
            let (sent, expected) = (sender.pairs[to][0], receiver.pairs[from][1]);
            if sent == expected {
                continue;
            }
            let lengths = if (sent.pieces, sent.rows) == (expected.pieces, expected.rows) {
                " of other lengths"
            } else {
                ""
            };
            return Some(format!(
                "rank {from} sends {} rows in {} pieces to rank {to}, which expects {} in {}{lengths}",
                sent.rows, sent.pieces, expected.rows, expected.pieces
            ));
        }
    }
    None
}
