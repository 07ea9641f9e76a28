//! How well a placement serves a mask.

use super::balance;
use super::chunks::areas;
use super::cost::{Cost, Direction};
use super::guests::Schedule;
use super::needs::Needs;
use super::placement::Placement;
use super::price::Price;
use super::side::SidePlacement;
use super::staging::Staging;
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
    /// Query tokens that each rank sends, counted once for every rank they go to; their outputs come back. Zeros where
    /// queries do not travel.
    pub queries_sent: Vec<i64>,
    /// Query tokens that each rank receives.
    pub queries_received: Vec<i64>,
    /// What travels in the forward and in the backward pass, in bytes.
    pub volume: [Volume; 2],
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
        let mut owned = vec![0; world];
        for (&a, &owner) in chunk_areas.iter().zip(q.owners()) {
            owned[owner as usize] += a;
        }
        let needs = Needs::new(mask, placement, None);
        let stagings = Staging::both(mask, placement, &needs.remote, shape, config)?;
        let work = Work::both(mask, placement, shape, config);
        let figures = |i: usize, direction, asked| {
            let cost = Cost::new(shape, config, direction);
            match &work[i] {
                Some(work) => Figures::of_work(work, &Schedule::of(work, &cost, asked), &cost),
                None => Figures::of_keys(&stagings[i], mask, placement, &needs.remote, &owned),
            }
        };
        let forward = figures(0, Direction::Forward, config.degree_forward);
        let backward = figures(1, Direction::Backward, config.degree_backward);
        let ideal: Vec<i64> = needs.remote.iter().map(Ranges::tokens).collect();
        let keys_sent = sent(k, &needs.remote);
        let volume = [Direction::Forward, Direction::Backward].map(|direction| {
            let price = Price::new(shape, config, direction);
            let work = work[usize::from(direction == Direction::Backward)].as_deref();
            Volume::new(&price, work, &keys_sent, &ideal)
        });
        let over_mean = |most: i64| {
            let total: i64 = forward.area.iter().sum();
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
        let column =
            |by_stage: &[Vec<i64>]| (0..world).map(|r| by_stage.iter().map(|s| s[r]).sum()).collect();
        let (keys, queries) = (&forward.keys, &forward.queries);
        let [received_by_stage, sent_by_stage] = by_stage(forward.degree, keys, k);
        let [queries_received, queries_sent] = by_stage(forward.degree, queries, q).map(|s| column(&s));
        Ok(Stats {
            balance: over_mean(forward.area.iter().copied().max().unwrap_or(0)),
            balance_bound: bound,
            area: forward.area,
            area_backward: backward.area,
            tokens_q: (0..world).map(|r| q.tokens(r)).collect(),
            tokens_k: (0..world).map(|r| k.tokens(r)).collect(),
            sent: column(&sent_by_stage),
            received: column(&received_by_stage),
            received_by_stage,
            sent_by_stage,
            queries_sent,
            queries_received,
            volume,
            degree_forward: forward.degree,
            degree_backward: backward.degree,
            forward_ns: forward.times,
            backward_ns: backward.times,
            ideal_volume: ideal.iter().sum(),
            all_gather_volume: k.total() * (world as i64 - 1),
            work: work[0].clone(),
        })
    }
}

/// One pass over all ranks: cells and predicted times by rank, and what is fetched, `[rank][stage]`.
struct Figures {
    degree: i32,
    area: Vec<i64>,
    times: Vec<i64>,
    keys: Vec<Vec<Ranges>>,
    queries: Vec<Vec<Ranges>>,
}

impl Figures {
    fn of_keys(
        staging: &Staging,
        mask: &Mask,
        placement: &Placement,
        remote: &[Ranges],
        area: &[i64],
    ) -> Figures {
        Figures {
            degree: staging.degree,
            area: area.to_vec(),
            times: staging.times(mask, placement, remote),
            keys: staging.groups.clone(),
            queries: vec![vec![Ranges::new(); staging.degree.max(1) as usize]; remote.len()],
        }
    }

    fn of_work(work: &Work, schedule: &Schedule, cost: &Cost) -> Figures {
        Figures {
            degree: schedule.degree,
            area: work.area.clone(),
            times: schedule.times(work, cost),
            keys: schedule.keys.clone(),
            queries: schedule.queries.clone(),
        }
    }
}

/// Tokens received and sent by every rank in every stage, from what all ranks fetch.
fn by_stage(degree: i32, fetched: &[Vec<Ranges>], side: &SidePlacement) -> [Vec<Vec<i64>>; 2] {
    let host = (degree > 0).then(|| vec![0; fetched.len()]);
    let stages = (0..degree.max(1) as usize).map(|i| {
        let groups: Vec<Ranges> = fetched.iter().map(|g| g[i].clone()).collect();
        let received: Vec<i64> = groups.iter().map(Ranges::tokens).collect();
        (received, sent(side, &groups))
    });
    let (received, sent): (Vec<_>, Vec<_>) = stages.unzip();
    [received, sent].map(|remote: Vec<Vec<i64>>| host.iter().cloned().chain(remote).collect())
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
