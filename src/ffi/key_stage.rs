//! What a key says about the stages of its passes.

use super::guard::guard_handle;
use super::input;
use super::key::magi_key;
use crate::plan::{Stats, Timeline};
use crate::types::{Error, Result, Status};

/// Forward or backward.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum magi_pass {
    /// From q, k and v to out.
    Forward = 0,
    /// From out and its gradient to those of q, k and v.
    Backward = 1,
}

/// One stage of one rank. Token counts are of keys; times are predicted by the config's rates, in nanoseconds from the
/// start of the pass, and end where they start when there is nothing to do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_stage_stats {
    /// sizeof(magi_stage_stats), set by the caller.
    pub size: usize,
    /// Cells that the rank computes in the stage.
    pub area: i64,
    /// Keys that it receives for it.
    pub tokens_received: i64,
    /// Keys that it sends for the same stage of others, each counted once for every rank that it goes to.
    pub tokens_sent: i64,
    /// Its keys, and queries of other ranks, start to come in.
    pub fetch_start_ns: i64,
    /// They are there.
    pub fetch_end_ns: i64,
    /// Its cells start to be computed.
    pub compute_start_ns: i64,
    /// They are computed.
    pub compute_end_ns: i64,
    /// Backward: the gradients of its keys start to go back. Where queries travel: results of its queries too, also forward.
    pub reduce_start_ns: i64,
    /// They are back.
    pub reduce_end_ns: i64,
    /// How long the rank computes nothing before the stage.
    pub wait_ns: i64,
    /// Queries of other ranks that it receives for it; 0 unless queries travel.
    pub queries_received: i64,
    /// Queries that it sends for the same stage of others, each counted once for every rank that it goes to.
    pub queries_sent: i64,
}

/// 0 forward, 1 backward.
pub(super) fn pass_of(pass: i32) -> Result<usize> {
    match pass {
        0 | 1 => Ok(pass as usize),
        _ => Err(Error::new(
            Status::InvalidEnum,
            format!("pass is {pass}; it must be 0 (forward) or 1 (backward)"),
        )),
    }
}

fn timeline(pass: i32, stats: &Stats) -> Result<&Timeline> {
    Ok([&stats.forward, &stats.backward][pass_of(pass)?])
}

/// Fills `stats`, whose `size` the caller has set, with the figures of `rank` in stage `stage` of `pass` (a magi_pass). Forward,
/// stage 0 is the host stage, which fetches nothing; backward, bwd_hide_tail_reduce says where it is. With a degree of 0 there is
/// one stage, which is both. magi_key_get_stats tells how many stages there are.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ENUM, INVALID_ARGUMENT, COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `stats` must point to a magi_stage_stats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_get_stage_stats(
    key: Option<&magi_key>,
    pass: i32,
    rank: i32,
    stage: i32,
    stats: *mut magi_stage_stats,
) -> Status {
    guard_handle("magi_key_get_stage_stats", "key", key, |k| {
        // SAFETY: the caller's promise.
        let size = unsafe { input::sized("stats", stats) }?.size;
        let all = k.key.stats()?;
        let timeline = timeline(pass, all)?;
        let r = input::index("rank", rank, all.area.len())?;
        let i = input::index("stage", stage, timeline.stages.len())?;
        let (s, times) = (timeline.stages[i][r], timeline.stages[i][r].times);
        let filled = magi_stage_stats {
            size,
            area: s.area,
            tokens_received: s.received,
            tokens_sent: s.sent,
            fetch_start_ns: times.fetch.start,
            fetch_end_ns: times.fetch.end,
            compute_start_ns: times.compute.start,
            compute_end_ns: times.compute.end,
            reduce_start_ns: times.reduce.start,
            reduce_end_ns: times.reduce.end,
            wait_ns: timeline.wait(r, i),
            queries_received: s.queries_received,
            queries_sent: s.queries_sent,
        };
        // SAFETY: the caller's promise.
        unsafe { input::write_out("stats", stats, filled) }
    })
}
