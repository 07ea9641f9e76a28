//! Stages in which queries travel too.

use super::cost::{Cost, Load};
use super::placement::Placement;
use super::sequence::{self, Sequence};
use super::side::concatenate;
use super::slices::local_slices;
use super::stage::{Pass, Stage, stage_of};
use super::timeline::{StageStats, Timeline};
use super::transfer::transfer;
use super::work::{Work, parts_of};
use crate::types::{Config, Mask, Range, Ranges, Side, StageSlice, Transfer};

/// The queries of other ranks in one stage, and what is computed for them. Results go home when the stage is computed: the
/// transpose of `transfer`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guests {
    /// Rows of query-side tensors that move before the stage's slices are computed.
    pub transfer: Transfer,
    /// Global queries of the receive buffer; its rows are these queries in ascending order.
    pub recv: Ranges,
    /// What to compute: query rows of the receive buffer of queries, key rows of their source as in `Stage::slices`.
    pub slices: Vec<StageSlice>,
    /// Visible cells of the slices.
    pub area: i64,
}

/// What each rank fetches in each stage of one pass: `[rank][stage]`, one stage with degree 0.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub degree: i32,
    /// When the host stage is computed; of no effect with degree 0.
    pub sequence: Sequence,
    pub keys: Vec<Vec<Ranges>>,
    pub queries: Vec<Vec<Ranges>>,
}

impl Schedule {
    /// Equal shares of what each rank fetches, keys and queries alike. What belongs to blocks of which the rank owns
    /// neither side comes all at once in the first stage, so that both sides are there together.
    fn new(work: &Work, degree: i32) -> Schedule {
        let stages = i64::from(degree.max(1));
        let split = |all: &[Ranges], first: &[Ranges]| -> Vec<Vec<Ranges>> {
            let each = all.iter().zip(first);
            each.map(|(all, first)| shares(all, first, stages)).collect()
        };
        Schedule {
            degree,
            sequence: Sequence::First,
            keys: split(&work.keys, &work.foreign_keys),
            queries: split(&work.queries, &work.foreign_queries),
        }
    }

    /// The schedule of `asked` stages, or for `Config::AUTO_DEGREE` of as many as the slowest rank is soonest ready with, in
    /// that order of `sequences` with which it is.
    pub fn of(work: &Work, cost: &Cost, asked: i32, sequences: &[Sequence]) -> Schedule {
        let degrees = match asked {
            Config::AUTO_DEGREE => 0..=Config::MAX_DEGREE,
            degree => degree..=degree,
        };
        let in_best_order = |degree| {
            let mut schedule = Schedule::new(work, degree);
            if degree == 0 {
                return (schedule.end(work, cost), schedule);
            }
            let end_in = |&sequence: &Sequence| {
                schedule.sequence = sequence;
                (schedule.end(work, cost), sequence)
            };
            // One order is tried at least.
            let ends = sequences.iter().map(end_in);
            let (end, sequence) = ends.min_by_key(|e| e.0).unwrap_or_default();
            schedule.sequence = sequence;
            (end, schedule)
        };
        // And one schedule.
        let best = degrees.map(in_best_order).min_by_key(|b| b.0);
        best.map_or_else(|| Schedule::new(work, 1), |b| b.1)
    }

    /// Stages before the first that fetches.
    pub fn before(&self) -> usize {
        if self.degree == 0 {
            0
        } else {
            self.sequence.before()
        }
    }

    /// When the slowest rank is predicted to be done with the pass, in nanoseconds.
    fn end(&self, work: &Work, cost: &Cost) -> i64 {
        let end = |rank: usize| {
            let (host, loads) = self.loads(work, rank);
            if self.degree == 0 {
                return cost.at_once(host, loads[0]).end();
            }
            let loads = self.sequence.loads([host / 2, host - host / 2], loads);
            cost.pass(work.held[rank], &loads)
        };
        (0..work.area.len()).map(end).max().unwrap_or(0)
    }

    /// Every stage of every rank, with the cells that it really has, but for what is sent.
    pub fn timeline(&self, mask: &Mask, placement: &Placement, work: &Work, cost: &Cost) -> Timeline {
        let areas = self.areas(mask, placement, work);
        let remote = self.keys.first().map_or(0, Vec::len);
        let count = if self.degree == 0 {
            1
        } else {
            self.sequence.stages(remote)
        };
        let mut stages = vec![Vec::with_capacity(work.area.len()); count];
        for (rank, area) in areas.iter().enumerate() {
            let (_, mut loads) = self.loads(work, rank);
            let [front, back] = [area[0], area[1]];
            for (load, area) in loads.iter_mut().zip(&area[2..]) {
                load.area = *area;
            }
            let times = if self.degree == 0 {
                let times = cost.at_once(front + back, loads[0]);
                loads[0].area += front + back;
                vec![times]
            } else {
                loads = self.sequence.loads([front, back], loads);
                cost.pass_times(work.held[rank], &loads)
            };
            for (stage, (load, times)) in stages.iter_mut().zip(loads.into_iter().zip(times)) {
                stage.push(StageStats {
                    area: load.area,
                    received: load.tokens,
                    queries_received: load.queries,
                    times,
                    ..StageStats::default()
                });
            }
        }
        Timeline { stages }
    }

    /// Cells of each rank: of the halves of the host stage, then of each remote stage.
    fn areas(&self, mask: &Mask, placement: &Placement, work: &Work) -> Vec<Vec<i64>> {
        let flat = |fetched: &[Vec<Ranges>]| -> Vec<Vec<(Range, usize)>> {
            let of_rank = |stages: &Vec<Ranges>| {
                let numbered = stages.iter().enumerate();
                let mut all: Vec<(Range, usize)> = numbered
                    .flat_map(|(i, set)| set.iter().map(move |&r| (r, i + 2)))
                    .collect();
                all.sort_unstable();
                all
            };
            fetched.iter().map(of_rank).collect()
        };
        let (keys, queries) = (flat(&self.keys), flat(&self.queries));
        let mut areas: Vec<Vec<i64>> = self.keys.iter().map(|k| vec![0; k.len() + 2]).collect();
        let own = placement.side(Side::Q);
        let boundary = |rank| sequence::boundary(own.runs(rank));
        let boundaries: Vec<i64> = (0..areas.len()).map(boundary).collect();
        work.for_each(mask, placement, |rank, row_owner, slice| {
            // A guest's cells belong to the stage in which it comes, others to that of their keys or, held here, to a half of
            // the host stage.
            let guest = rank != row_owner;
            for (half, rows) in sequence::halves(slice.q, boundaries[rank]) {
                let part = slice.cut(&rows, &slice.k);
                let (fetched, tokens) = if guest {
                    (&queries[rank], part.q)
                } else {
                    (&keys[rank], part.k)
                };
                let first = fetched.partition_point(|f| f.0.end <= tokens.start);
                let mut left = part.area();
                for (range, stage) in fetched[first..].iter().take_while(|f| f.0.start < tokens.end) {
                    let cut = if guest {
                        part.cut(range, &part.k)
                    } else {
                        part.cut(&part.q, range)
                    };
                    areas[rank][*stage] += cut.area();
                    left -= cut.area();
                }
                areas[rank][half] += left;
            }
        });
        areas
    }

    /// What a rank's remote stages fetch and compute beside the host stage's cells. Cells are taken as spread evenly over
    /// what is held and fetched: half of them need nothing that is fetched.
    fn loads(&self, work: &Work, rank: usize) -> (i64, Vec<Load>) {
        let stages = self.keys[rank].iter().zip(&self.queries[rank]);
        let mut loads: Vec<Load> = stages
            .map(|(k, q)| Load {
                tokens: k.tokens(),
                queries: q.tokens(),
                area: 0,
            })
            .collect();
        let fetched: i64 = loads.iter().map(|l| l.tokens + l.queries).sum();
        let area = work.area[rank];
        let mut left = area;
        for load in &mut loads {
            let share = i128::from(area) * i128::from(load.tokens + load.queries);
            load.area = (share / (i128::from(fetched.max(1)) * 2)) as i64;
            left -= load.area;
        }
        (left, loads)
    }
}

/// `all` in `count` parts, as equal as may be when the first holds all of `first`; ascending but for `first`.
fn shares(all: &Ranges, first: &Ranges, count: i64) -> Vec<Ranges> {
    let rest = all.subtract(first);
    let (total, early) = (all.tokens(), first.tokens());
    let head = (total / count + i64::from(total % count > 0)).max(early) - early;
    let tail = rest.tokens() - head.min(rest.tokens());
    let mut runs = rest.iter().copied();
    let mut run = Range::default();
    let mut take = |mut tokens: i64| {
        let mut taken = Vec::new();
        while tokens > 0 {
            if run.is_empty() {
                let Some(next) = runs.next() else { break };
                run = next;
            }
            let cut = Range::new(run.start, run.end.min(run.start + tokens));
            taken.push(cut);
            tokens -= cut.len();
            run.start = cut.end;
        }
        taken
    };
    let mut parts = vec![Ranges::from_unsorted(
        [take(head), first.as_slice().to_vec()].concat(),
    )];
    for i in 1..count {
        let tokens = tail * i / (count - 1) - tail * (i - 1) / (count - 1);
        parts.push(Ranges::from_unsorted(take(tokens)));
    }
    parts
}

/// The stages of `rank` where queries travel as `work` says.
pub(super) fn pass(
    mask: &Mask,
    placement: &Placement,
    rank: usize,
    work: &Work,
    schedule: &Schedule,
) -> Pass {
    let (queries, keys) = (placement.side(Side::Q), placement.side(Side::K));
    let (needs, guests) = work.of_rank(mask, placement, rank);
    let own = concatenate(keys.runs(rank).as_slice());
    let stages: Vec<Stage> = (0..schedule.keys[rank].len())
        .map(|i| {
            let recv = schedule.queries[rank][i].clone();
            let fetched = schedule.keys[rank][i].clone();
            let parts = parts_of(&guests, &concatenate(recv.as_slice()));
            let mut slices = local_slices(&parts, &own, 0);
            slices.extend(local_slices(&parts, &concatenate(fetched.as_slice()), 1));
            Stage {
                transfer: transfer(keys, rank, |peer| &schedule.keys[peer][i]),
                guests: Guests {
                    transfer: transfer(queries, rank, |peer| &schedule.queries[peer][i]),
                    recv,
                    area: slices.iter().map(|s| s.slice.area()).sum(),
                    slices,
                },
                ..stage_of(&needs, fetched)
            }
        })
        .collect();
    let order = (schedule.degree, schedule.sequence);
    Pass::around(&needs, placement, rank, order, stages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(bits: u64) -> Ranges {
        (0..60)
            .filter(|t| bits >> t & 1 == 1)
            .map(|t| Range::new(t, t + 1))
            .collect()
    }

    proptest! {
        #[test]
        fn shares_are_a_partition_with_the_first_tokens_in_front(all: u64, some: u64, count in 1..9i64) {
            let (all, first) = (set(all), set(all & some));
            let parts = shares(&all, &first, count);
            prop_assert_eq!(parts.len() as i64, count);
            prop_assert_eq!(parts.iter().map(Ranges::tokens).sum::<i64>(), all.tokens());
            let together: Ranges = parts.iter().flat_map(|p| p.iter().copied()).collect();
            prop_assert_eq!(&together, &all);
            prop_assert!(first.subtract(&parts[0]).is_empty());
            let sizes: Vec<i64> = parts[1..].iter().map(Ranges::tokens).collect();
            let least = sizes.iter().min().copied().unwrap_or(0);
            prop_assert!(sizes.iter().all(|s| *s <= least + 1));
            prop_assert!(parts[0].tokens() <= first.tokens().max(all.tokens() / count + 1));
        }
    }
}
