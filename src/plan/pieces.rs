//! What every rank fetches, cut into pieces, and the stages made of them.

use super::cost::{Cost, Load};
use super::needs::for_each_meeting;
use super::placement::Placement;
use super::sequence::{self, Sequence};
use super::timeline::StageTimes;
use crate::types::{Mask, Range, Ranges, Side, Slice};
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
    /// Cells of each rank that need no other rank's keys, by halves of the host stage.
    host: Vec<[i64; 2]>,
    /// Queries of each rank.
    queries: Vec<i64>,
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
            host: vec![[0; 2]; remote.len()],
            queries: (0..remote.len())
                .map(|rank| placement.side(Side::Q).tokens(rank))
                .collect(),
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
        let flat: Vec<Flat> = self.ranks.iter().map(|own| Flat::new(own)).collect();
        let queries = placement.side(Side::Q);
        let boundary = |rank| sequence::boundary(queries.runs(rank));
        let boundaries: Vec<i64> = (0..flat.len()).map(boundary).collect();
        for_each_meeting(mask, queries, |run, cut| {
            let owner = queries.all_runs()[run].owner as usize;
            let own = &mut self.ranks[owner];
            for (half, rows) in sequence::halves(cut.q, boundaries[owner]) {
                let part = cut.cut(&rows, &cut.k);
                let mut remote = 0;
                flat[owner].for_each_area(&part, |piece, area| {
                    own[piece].load.area += area;
                    remote += area;
                });
                self.host[owner][half] += part.area() - remote;
            }
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

    /// The loads of a pass of `degree` remote stages, at least one, in the order in which they are computed.
    fn pass(&self, rank: usize, degree: i32, sequence: Sequence) -> Vec<Load> {
        sequence.loads(self.host[rank], self.loads(rank, degree as usize))
    }

    /// Cells of a rank that need nothing fetched, and the load of all that is.
    fn whole(&self, rank: usize) -> (i64, Load) {
        let all = self.loads(rank, 1).next().unwrap_or_default();
        (self.host[rank].iter().sum(), all)
    }

    /// When a rank is ready.
    fn end(&self, rank: usize, (degree, sequence): (i32, Sequence), cost: &Cost) -> i64 {
        if degree == 0 {
            let (host, all) = self.whole(rank);
            return cost.at_once(host, all).end();
        }
        cost.pass(self.queries[rank], &self.pass(rank, degree, sequence))
    }

    /// The stages of a pass of `degree` on one rank: what each fetches and computes, and when.
    pub fn stages(
        &self,
        rank: usize,
        degree: i32,
        sequence: Sequence,
        cost: &Cost,
    ) -> Vec<(Load, StageTimes)> {
        if degree == 0 {
            let (host, all) = self.whole(rank);
            let whole = Load {
                area: all.area + host,
                ..all
            };
            return vec![(whole, cost.at_once(host, all))];
        }
        let loads = self.pass(rank, degree, sequence);
        let times = cost.pass_times(self.queries[rank], &loads);
        loads.into_iter().zip(times).collect()
    }

    /// The number of remote stages among `degrees`, and the order among `sequences`, with which the slowest rank is soonest
    /// ready; the first of equals. The same on every rank.
    pub fn best(
        &self,
        degrees: std::ops::RangeInclusive<i32>,
        sequences: &[Sequence],
        cost: &Cost,
    ) -> (i32, Sequence) {
        let slowest = |&choice: &(i32, Sequence)| {
            let times = (0..self.ranks.len()).map(|rank| self.end(rank, choice, cost));
            times.max().unwrap_or(0)
        };
        // Without a host stage of its own there is one order.
        let orders = |degree| {
            if degree == 0 {
                &[Sequence::First][..]
            } else {
                sequences
            }
        };
        let each = |degree| orders(degree).iter().map(move |&s| (degree, s));
        // There is one at least.
        degrees.flat_map(each).min_by_key(slowest).unwrap_or_default()
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

/// The keys of a rank's pieces in ascending order.
struct Flat {
    keys: Vec<Range>,
    /// Tokens before each of `keys`, and of all.
    before: Vec<i64>,
    /// Index of the first of `keys` of each piece, and their number.
    starts: Vec<usize>,
}

impl Flat {
    fn new(pieces: &[Piece]) -> Flat {
        let mut flat = Flat {
            keys: Vec::new(),
            before: vec![0],
            starts: vec![0],
        };
        let mut tokens = 0;
        for piece in pieces {
            for &range in &piece.keys {
                tokens += range.len();
                flat.keys.push(range);
                flat.before.push(tokens);
            }
            flat.starts.push(flat.keys.len());
        }
        flat
    }

    /// Calls `add(piece, cells of cut in it)`, for a piece possibly more than once. Ranges that all rows see are taken
    /// together, so that short runs of queries cost no more than pieces.
    fn for_each_area(&self, cut: &Slice, mut add: impl FnMut(usize, i64)) {
        let seen = cut.visible_keys();
        let (mut next, end) = (
            self.keys.partition_point(|k| k.end <= seen.start),
            self.keys.partition_point(|k| k.start < seen.end),
        );
        if next >= end {
            return;
        }
        let by_all = Range::new(cut.k_lo(cut.q.end - 1), cut.k_hi(cut.q.start));
        let mut piece = self.starts.partition_point(|&s| s <= next) - 1;
        while next < end {
            while self.starts[piece + 1] <= next {
                piece += 1;
            }
            let rest = &self.keys[next..end.min(self.starts[piece + 1])];
            let mut whole = 0;
            if by_all.start <= rest[0].start {
                whole = rest.partition_point(|k| k.end <= by_all.end);
            }
            if whole > 0 {
                let tokens = self.before[next + whole] - self.before[next];
                add(piece, cut.q.len() * tokens);
            } else {
                add(piece, cut.cut(&cut.q, &rest[0]).area());
            }
            next += whole.max(1);
        }
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
