//! How well a placement serves a mask.

use super::balance;
use super::chunks::areas;
use super::needs::Needs;
use super::placement::Placement;
use super::side::SidePlacement;
use super::staging::Staging;
use super::timeline::Timeline;
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
    /// Remote stages of the forward pass: the config's, or what the planner chose.
    pub degree_forward: i32,
    /// Remote stages of the backward pass, likewise.
    pub degree_backward: i32,
    /// Predicted time of the forward pass on each rank, in nanoseconds, by the config's rates. A stage's transfer
    /// takes what the rank receives, not what it sends.
    pub forward_ns: Vec<i64>,
    /// The same of the backward pass.
    pub backward_ns: Vec<i64>,
    /// The forward pass stage by stage.
    pub forward: Timeline,
    /// The backward pass, likewise.
    pub backward: Timeline,
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
        let [first, second] = &stagings;
        let [mut forward, mut backward] = Staging::timelines(&stagings, mask, placement, &needs.remote);
        fill_sent(&mut forward, first, k);
        if first.degree == second.degree && first.groups == second.groups {
            for (to, from) in backward.stages.iter_mut().zip(&forward.stages) {
                to.iter_mut().zip(from).for_each(|(t, f)| t.sent = f.sent);
            }
        } else {
            fill_sent(&mut backward, second, k);
        }
        let ends = |t: &Timeline| (0..world).map(|r| t.end(r)).collect();
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
            // Every token is fetched in one of the stages.
            sent: (0..world)
                .map(|r| forward.stages.iter().map(|s| s[r].sent).sum())
                .collect(),
            degree_forward: first.degree,
            degree_backward: second.degree,
            forward_ns: ends(&forward),
            backward_ns: ends(&backward),
            forward,
            backward,
            received,
            ideal_volume,
            all_gather_volume: k.total() * (world as i64 - 1),
        })
    }
}

/// Adds what each rank sends for each remote stage.
fn fill_sent(timeline: &mut Timeline, staging: &Staging, keys: &SidePlacement) {
    let host = timeline.stages.len() - staging.groups.first().map_or(0, Vec::len);
    for (i, stage) in timeline.stages.iter_mut().skip(host).enumerate() {
        let fetched: Vec<&Ranges> = staging.groups.iter().map(|g| &g[i]).collect();
        let sent = sent(keys, &fetched);
        stage.iter_mut().zip(sent).for_each(|(s, tokens)| s.sent = tokens);
    }
}

/// Tokens that each rank sends when the rank (or host) of each list fetches it. A sweep over the ends of all fetched ranges: ranks times runs would be too many steps at
/// a thousand ranks.
pub(super) fn sent(keys: &SidePlacement, fetched: &[&Ranges]) -> Vec<i64> {
    // A plain loop: nested iterators of arrays compile to code that memory checkers take for a read of what was never
    // written.
    let mut ends: Vec<(i64, i64)> = Vec::new();
    for x in fetched.iter().flat_map(|f| f.iter()) {
        ends.push((x.start, 1));
        ends.push((x.end, -1));
    }
    ends.sort_unstable();
    let mut sent = vec![0; keys.world()];
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
