//! How well a placement serves a mask.

use super::balance;
use super::chunks::areas;
use super::cost::{Cost, Direction};
use super::guests::Schedule;
use super::hosts::HostVolume;
use super::needs::Needs;
use super::placement::Placement;
use super::price::Price;
use super::sequence::Sequence;
use super::side::SidePlacement;
use super::staging::Staging;
use super::timeline::{StageStats, Timeline};
use super::volume::Volume;
use super::work::Work;
use crate::types::{AttnShape, Config, Mask, Ranges, Result, Side};
use std::sync::Arc;

/// Figures of all ranks for one mask on one placement. Tokens are key tokens of the forward pass: one counts for its
/// K and V rows together.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Visible cells that each rank computes in the forward pass.
    pub area: Vec<i64>,
    /// The same in the backward pass, where another part of the queries may travel.
    pub area_backward: Vec<i64>,
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
    /// Query tokens that each rank sends in the forward pass, counted once for every rank they go to; their outputs come
    /// back. Zeros where queries do not travel.
    pub queries_sent: Vec<i64>,
    /// Query tokens that each rank receives.
    pub queries_received: Vec<i64>,
    /// What travels in the forward and in the backward pass, in bytes.
    pub volume: [Volume; 2],
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
    /// Tokens that all ranks must receive on this placement while queries stay at home: what their queries see and they
    /// do not own, each once. The plan moves exactly these unless queries travel.
    pub ideal_volume: i64,
    /// Tokens that all ranks would receive if every key went to every other rank.
    pub all_gather_volume: i64,
    /// The work of the forward pass where queries travel.
    pub(super) work: Option<Arc<Work>>,
}

impl Stats {
    /// The figures of `mask` on `placement` for attention of `shape`. `Status::InvalidArgument` when totals differ
    /// or a degree is outside -1 to 8.
    pub fn new(mask: &Mask, placement: &Placement, shape: &AttnShape, config: &Config) -> Result<Stats> {
        placement.check_mask(mask)?;
        let (q, k) = (placement.side(Side::Q), placement.side(Side::K));
        let world = placement.world();
        let chunk_areas = areas(mask, q.bounds());
        let needs = Needs::new(mask, placement, None);
        let stagings = Staging::both(mask, placement, &needs.remote, shape, config)?;
        let work = Work::both(mask, placement, shape, config);
        let [mut forward, mut backward] = Staging::timelines(&stagings, mask, placement, &needs.remote);
        for (staging, timeline) in stagings.iter().zip([&mut forward, &mut backward]) {
            fill_sent(timeline, staging.before(), (&staging.groups, k), |s| &mut s.sent);
        }
        let mut degrees = stagings.each_ref().map(|s| s.degree);
        let directions = [Direction::Forward, Direction::Backward];
        let asked = [config.degree_forward, config.degree_backward];
        for (i, timeline) in [&mut forward, &mut backward].into_iter().enumerate() {
            if let Some(work) = &work[i] {
                let cost = Cost::new(shape, config, directions[i]);
                let sequences = Sequence::choices(config, directions[i]);
                let schedule = Schedule::of(work, &cost, asked[i], sequences);
                *timeline = schedule.timeline(mask, placement, work, &cost);
                let before = schedule.before();
                fill_sent(timeline, before, (&schedule.keys, k), |s| &mut s.sent);
                fill_sent(timeline, before, (&schedule.queries, q), |s| &mut s.queries_sent);
                degrees[i] = schedule.degree;
            }
        }
        let ideal: Vec<i64> = needs.remote.iter().map(Ranges::tokens).collect();
        let all: Vec<&Ranges> = needs.remote.iter().collect();
        let keys_sent = sent(k, &all);
        let volume = [0, 1].map(|i| {
            let price = Price::new(shape, config, directions[i]);
            match config.mesh.filter(|_| config.hierarchical_comm) {
                // Queries do not travel then.
                Some(mesh) => {
                    let [out, into] = HostVolume::of(k, mesh, &stagings[i].groups, true).by_rank();
                    Volume::passed_on(&price, ideal.iter().sum(), &out, &into)
                }
                None => Volume::new(&price, work[i].as_deref(), &keys_sent, &ideal),
            }
        });
        // Every token is fetched, and every cell computed, in one of the stages.
        let sums = |t: &Timeline, figure: fn(&StageStats) -> i64| -> Vec<i64> {
            let of_rank = |r: usize| t.stages.iter().map(|s| figure(&s[r])).sum();
            (0..world).map(of_rank).collect()
        };
        let ends = |t: &Timeline| (0..world).map(|r| t.end(r)).collect();
        let area = sums(&forward, |s| s.area);
        let over_mean = |most: i64| {
            let total: i64 = area.iter().sum();
            if total == 0 {
                1.0
            } else {
                most as f64 * world as f64 / total as f64
            }
        };
        // Where queries travel, blocks can be more even than chunks.
        let bound = match &work[0] {
            Some(_) => 1.0,
            None => over_mean(balance::bound(&chunk_areas, world)),
        };
        let [of_forward, _] = work;
        Ok(Stats {
            balance: over_mean(area.iter().copied().max().unwrap_or(0)),
            balance_bound: bound,
            area,
            area_backward: sums(&backward, |s| s.area),
            tokens_q: (0..world).map(|r| q.tokens(r)).collect(),
            tokens_k: (0..world).map(|r| k.tokens(r)).collect(),
            sent: sums(&forward, |s| s.sent),
            received: sums(&forward, |s| s.received),
            queries_sent: sums(&forward, |s| s.queries_sent),
            queries_received: sums(&forward, |s| s.queries_received),
            volume,
            degree_forward: degrees[0],
            degree_backward: degrees[1],
            forward_ns: ends(&forward),
            backward_ns: ends(&backward),
            forward,
            backward,
            ideal_volume: ideal.iter().sum(),
            all_gather_volume: k.total() * (world as i64 - 1),
            work: of_forward,
        })
    }
}

/// Writes, as the figure that `of` names, what each rank sends for each remote stage: `fetched[rank][stage]` of `side`, behind
/// `before` other stages.
fn fill_sent(
    timeline: &mut Timeline,
    before: usize,
    (fetched, side): (&[Vec<Ranges>], &SidePlacement),
    of: fn(&mut StageStats) -> &mut i64,
) {
    let remote = fetched.first().map_or(0, Vec::len);
    for (i, stage) in timeline.stages.iter_mut().skip(before).take(remote).enumerate() {
        let fetched: Vec<&Ranges> = fetched.iter().map(|g| &g[i]).collect();
        for (stats, tokens) in stage.iter_mut().zip(sent(side, &fetched)) {
            *of(stats) = tokens;
        }
    }
}

/// Tokens that each rank sends when the rank (or host) of each list fetches it. A sweep over the ends of all fetched ranges:
/// ranks times runs would be too many steps at a thousand ranks.
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
