//! How well a placement serves a mask.

use super::balance;
use super::chunks::areas;
use super::needs::Needs;
use super::placement::Placement;
use super::side::SidePlacement;
use super::staging::Staging;
use crate::types::{AttnShape, Config, Mask, Ranges, Result, Side};

/// Figures of all ranks for one mask on one placement. Tokens are key tokens of the forward pass: one counts for its
/// K and V rows together.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Visible cells that each rank computes.
    pub area: Vec<i64>,
    /// Largest area over mean area; 1 when nothing is visible.
    pub balance: f64,
    /// No placement of these chunks in equal counts has a lower balance. The true minimum may be higher.
    pub balance_bound: f64,
    /// Query tokens that each rank stores.
    pub tokens_q: Vec<i64>,
    /// Key tokens that each rank stores.
    pub tokens_k: Vec<i64>,
    /// Tokens that each rank sends, counted once for every rank they go to.
    pub sent: Vec<i64>,
    /// Tokens that each rank receives.
    pub received: Vec<i64>,
    /// The same by stage: `[stages of the forward pass][ranks]`, the host stage with zeros.
    pub received_by_stage: Vec<Vec<i64>>,
    /// Tokens sent, likewise.
    pub sent_by_stage: Vec<Vec<i64>>,
    /// Remote stages of the forward pass: the config's, or what the planner chose.
    pub degree_forward: i32,
    /// Remote stages of the backward pass, likewise.
    pub degree_backward: i32,
    /// Predicted time of the forward pass on each rank, in nanoseconds, by the config's rates. A stage's transfer
    /// takes what the rank receives, not what it sends.
    pub forward_ns: Vec<i64>,
    /// The same of the backward pass.
    pub backward_ns: Vec<i64>,
    /// Tokens that all ranks must receive on this placement: what their queries see and they do not own, each
    /// once. The plan moves exactly these.
    pub ideal_volume: i64,
    /// Tokens that all ranks would receive if every key went to every other rank.
    pub all_gather_volume: i64,
}

impl Stats {
    /// The figures of `mask` on `placement` for attention of `shape`. `Status::InvalidArgument` when totals differ
    /// or a degree is outside -1 to 8.
    pub fn new(mask: &Mask, placement: &Placement, shape: &AttnShape, config: &Config) -> Result<Stats> {
        placement.check_mask(mask)?;
        let (q, k) = (placement.side(Side::Q), placement.side(Side::K));
        let world = placement.world();
        let chunk_areas = areas(mask, q.bounds());
        let mut area = vec![0; world];
        for (&a, &owner) in chunk_areas.iter().zip(q.owners()) {
            area[owner as usize] += a;
        }
        let needs = Needs::new(mask, placement, None);
        let stagings = Staging::both(mask, placement, &needs.remote, shape, config)?;
        let [forward, backward] = &stagings;
        let times = |s: &Staging| s.times(mask, placement, &needs.remote);
        let received: Vec<i64> = needs.remote.iter().map(Ranges::tokens).collect();
        let ideal_volume = received.iter().sum();
        let over_mean = |most: i64| {
            let total: i64 = area.iter().sum();
            if total == 0 {
                1.0
            } else {
                most as f64 * world as f64 / total as f64
            }
        };
        Ok(Stats {
            balance: over_mean(area.iter().copied().max().unwrap_or(0)),
            balance_bound: over_mean(balance::bound(&chunk_areas, world)),
            area,
            tokens_q: (0..world).map(|r| q.tokens(r)).collect(),
            tokens_k: (0..world).map(|r| k.tokens(r)).collect(),
            sent: sent(k, &needs.remote),
            received_by_stage: by_stage(forward, |groups| groups.iter().map(Ranges::tokens).collect()),
            sent_by_stage: by_stage(forward, |groups| sent(k, groups)),
            degree_forward: forward.degree,
            degree_backward: backward.degree,
            forward_ns: times(forward),
            backward_ns: times(backward),
            received,
            ideal_volume,
            all_gather_volume: k.total() * (world as i64 - 1),
        })
    }
}

/// A figure of every rank in every stage, from what all ranks fetch in it.
fn by_stage(staging: &Staging, figures: impl Fn(&[Ranges]) -> Vec<i64>) -> Vec<Vec<i64>> {
    let world = staging.groups.len();
    let host = (staging.degree > 0).then(|| vec![0; world]);
    let remote = (0..staging.degree.max(1) as usize).map(|i| {
        let groups: Vec<Ranges> = staging.groups.iter().map(|g| g[i].clone()).collect();
        figures(&groups)
    });
    host.into_iter().chain(remote).collect()
}

/// Tokens sent by each rank. A sweep over the ends of all fetched ranges: ranks times runs would be too many steps at
/// a thousand ranks.
fn sent(keys: &SidePlacement, remote: &[Ranges]) -> Vec<i64> {
    // A plain loop: nested iterators of arrays compile to code that memory checkers take for a read of what was never
    // written.
    let mut ends: Vec<(i64, i64)> = Vec::new();
    for x in remote.iter().flat_map(Ranges::iter) {
        ends.push((x.start, 1));
        ends.push((x.end, -1));
    }
    ends.sort_unstable();
    let mut sent = vec![0; remote.len()];
    let (mut next, mut readers) = (0, 0);
    for run in keys.all_runs() {
        let mut at = run.tokens.start;
        while at < run.tokens.end {
            while next < ends.len() && ends[next].0 <= at {
                readers += ends[next].1;
                next += 1;
            }
            let until = ends.get(next).map_or(run.tokens.end, |e| e.0.min(run.tokens.end));
            sent[run.owner as usize] += readers * (until - at);
            at = until;
        }
    }
    sent
}
