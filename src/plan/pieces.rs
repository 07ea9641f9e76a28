//! What every rank fetches, cut into pieces, and the stages made of them.

use super::cost::{Cost, Load};
use super::needs::for_each_meeting;
use super::placement::Placement;
use crate::types::{Config, Mask, Range, Ranges, Side};
use std::cmp::Reverse;

/// A transfer of fewer tokens costs more latency than it hides.
const LEAST_TOKENS: i64 = 512;
/// Pieces of a rank. More make slices without hiding more.
const MOST_PIECES: i64 = 64;

/// A part of what a rank fetches, and the cells that can be computed when it is there.
#[derive(Clone, Debug)]
struct Piece {
    keys: Vec<Range>,
    load: Load,
}

/// The pieces of all ranks, those that unlock most cells a token first.
#[derive(Debug)]
pub(super) struct Pieces {
    ranks: Vec<Vec<Piece>>,
    /// Cells of each rank that need no other rank's keys.
    host: Vec<i64>,
}

impl Pieces {
    /// Cuts what ranks fetch into pieces of equal tokens, a multiple of `degree` of them, so that stages are equal to a
    /// token. O(pairs of slices, runs and pieces that meet) over all ranks.
    pub fn new(mask: &Mask, placement: &Placement, remote: &[Ranges], degree: i32) -> Pieces {
        let degree = i64::from(degree.max(1));
        let mut ranks: Vec<Vec<Piece>> = Vec::with_capacity(remote.len());
        for keys in remote {
            let most = (keys.tokens() / LEAST_TOKENS).clamp(1, MOST_PIECES);
            ranks.push(cut_even(keys, (most / degree).max(1) * degree));
        }
        let mut pieces = Pieces {
            host: vec![0; remote.len()],
            ranks,
        };
        pieces.count_areas(mask, placement);
        for own in &mut pieces.ranks {
            // Pieces are equally long to a token, so areas alone tell what they unlock a token. By the rule of Johnson for
            // two machines this order ends soonest, fetching being equally long for all.
            own.sort_by_key(|p| Reverse(p.load.area));
        }
        pieces
    }

    fn count_areas(&mut self, mask: &Mask, placement: &Placement) {
        let flat: Vec<Vec<(Range, usize)>> = self
            .ranks
            .iter()
            .map(|own| {
                let numbered = own.iter().enumerate();
                numbered
                    .flat_map(|(i, p)| p.keys.iter().map(move |&k| (k, i)))
                    .collect()
            })
            .collect();
        let queries = placement.side(Side::Q);
        for_each_meeting(mask, queries, |run, cut| {
            let owner = queries.all_runs()[run].owner as usize;
            let seen = cut.visible_keys();
            let keys = &flat[owner];
            let first = keys.partition_point(|k| k.0.end <= seen.start);
            let mut remote = 0;
            for (range, i) in keys[first..].iter().take_while(|k| k.0.start < seen.end) {
                let area = cut.cut(&cut.q, range).area();
                self.ranks[owner][*i].load.area += area;
                remote += area;
            }
            self.host[owner] += cut.area() - remote;
        });
    }

    /// The loads of `degree` stages of a rank, of equally many pieces to one.
    fn loads(&self, rank: usize, degree: usize) -> impl Iterator<Item = Load> {
        let own = &self.ranks[rank];
        (0..degree).map(move |i| {
            let part = &own[own.len() * i / degree..own.len() * (i + 1) / degree];
            part.iter().fold(Load::default(), |sum, p| Load {
                tokens: sum.tokens + p.load.tokens,
                area: sum.area + p.load.area,
                queries: 0,
            })
        })
    }

    /// Predicted time of a pass of `degree` stages on one rank, in nanoseconds.
    pub fn time(&self, rank: usize, degree: i32, cost: &Cost) -> i64 {
        let loads: Vec<Load> = self.loads(rank, degree.max(1) as usize).collect();
        if degree == 0 {
            return cost.at_once(self.host[rank], loads[0]);
        }
        cost.pass(self.host[rank], &loads)
    }

    /// The number of stages at which the slowest rank is soonest ready; the smallest of equals. The same on every rank.
    pub fn best_degree(&self, cost: &Cost) -> i32 {
        let slowest = |degree: &i32| {
            let times = (0..self.ranks.len()).map(|r| self.time(r, *degree, cost));
            times.max().unwrap_or(0)
        };
        (1..=Config::MAX_DEGREE).min_by_key(slowest).unwrap_or(1)
    }

    /// What each rank fetches in each of `degree` stages.
    pub fn groups(&self, degree: i32) -> Vec<Vec<Ranges>> {
        let degree = degree.max(1) as usize;
        let stages = |own: &Vec<Piece>| {
            (0..degree)
                .map(|i| {
                    let part = &own[own.len() * i / degree..own.len() * (i + 1) / degree];
                    part.iter().flat_map(|p| p.keys.iter().copied()).collect()
                })
                .collect()
        };
        self.ranks.iter().map(stages).collect()
    }
}

/// `keys` in `count` pieces, contiguous and equal to a token.
fn cut_even(keys: &Ranges, count: i64) -> Vec<Piece> {
    let total = keys.tokens();
    let mut runs = keys.iter().copied();
    let mut run = Range::default();
    let mut taken = 0;
    (1..=count)
        .map(|i| {
            let (start, end) = (taken, total * i / count);
            let mut keys = Vec::new();
            while taken < end {
                if run.is_empty() {
                    let Some(next) = runs.next() else { break };
                    run = next;
                }
                let cut = Range::new(run.start, run.end.min(run.start + end - taken));
                keys.push(cut);
                taken += cut.len();
                run.start = cut.end;
            }
            let tokens = taken - start;
            Piece {
                keys,
                load: Load {
                    tokens,
                    ..Load::default()
                },
            }
        })
        .collect()
}
