//! Predicted times of a pass, in whole nanoseconds.

use super::price::Price;
use super::timeline::StageTimes;
use crate::types::{AttnShape, Config, Range, Rates};

/// Forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// What one stage of one rank fetches and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Keys.
    pub tokens: i64,
    /// Queries of other ranks, whose results go back.
    pub queries: i64,
    pub area: i64,
}

/// What a pass of several kernels costs beyond one: measured with bf16 on an H200 (docs/performance.md, "Stages").
/// Forward: per cent of the time that the kernel which merges takes where one alone would do.
const MERGING_PERCENT: i128 = 107;
/// GB/s, that is bytes a nanosecond, at which each further kernel takes in and puts back the f32 results of all queries.
const MERGED_PER_NS: i128 = 1070;

/// What can go on side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Fetch,
    Compute,
    Reduce,
}

/// The rates of one attention shape in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    rates: Rates,
    /// FLOPs of a visible cell, over all heads, and GFLOP/s, that is FLOPs a nanosecond.
    flops: i64,
    per_ns: i64,
    price: Price,
    /// Bytes of a query's result in f32, read and written.
    result: i64,
    /// Per cent of a kernel's time that it takes as one of several.
    several: i128,
}

impl Cost {
    pub fn new(shape: &AttnShape, config: &Config, direction: Direction) -> Cost {
        let (qk, v) = (shape.head_dim, shape.head_dim_v);
        let class = match qk.max(v) {
            ..=64 => 0,
            65..=128 => 1,
            _ => 2,
        };
        let rates = config.rates;
        let (dims, per_ns, result, several) = match direction {
            Direction::Forward => (qk + v, rates.forward_gflops[class], v, MERGING_PERCENT),
            Direction::Backward => (3 * qk + 2 * v, rates.backward_gflops[class], qk, 100),
        };
        Cost {
            rates,
            flops: 2 * shape.heads_q * dims,
            per_ns,
            price: Price::new(shape, config, direction),
            result: 2 * size_of::<f32>() as i64 * shape.heads_q * result,
            several,
        }
    }

    /// Time of the kernel over `area` cells; none without cells.
    fn compute(&self, area: i64, percent: i128) -> i64 {
        if area == 0 {
            return 0;
        }
        let flops = i128::from(area) * i128::from(self.flops);
        clamp(flops * percent / (100 * i128::from(self.per_ns))).saturating_add(self.rates.kernel_latency_ns)
    }

    /// Times of the kernels of stages, for a rank with so many queries.
    fn kernels(&self, queries: i64, stages: &[Load]) -> Vec<i64> {
        let several = stages.iter().filter(|load| load.area > 0).count() > 1;
        let percent = if several { self.several } else { 100 };
        let merge = clamp(i128::from(queries) * i128::from(self.result) / MERGED_PER_NS);
        let mut before = false;
        let time = |load: &Load| {
            let further = before && load.area > 0;
            before |= load.area > 0;
            let merging = if further { merge } else { 0 };
            self.compute(load.area, percent).saturating_add(merging)
        };
        stages.iter().map(time).collect()
    }

    fn link(&self, load: &Load, key: i64, query: i64) -> i64 {
        let part = |tokens: i64, bytes: i64| i128::from(tokens) * i128::from(bytes);
        let bytes = part(load.tokens, key) + part(load.queries, query);
        if bytes == 0 {
            return 0;
        }
        // A MB/s is a byte in 1,000 ns.
        let ns = bytes * 1000 / i128::from(self.rates.link_mb_per_s);
        clamp(ns).saturating_add(self.rates.link_latency_ns)
    }

    /// Time in which keys and queries come in.
    fn fetch(&self, load: &Load) -> i64 {
        self.link(load, self.price.key_out, self.price.query_out)
    }

    /// Time in which gradients, and results of queries that travelled, go back.
    fn reduce(&self, load: &Load) -> i64 {
        self.link(load, self.price.key_back, self.price.query_back)
    }

    /// The end of a pass of these stages on a rank with so many queries, in the order in which they are computed. While a
    /// stage is computed the next one is fetched, and gradients and results of the one before travel back the other way.
    pub fn pass(&self, queries: i64, stages: &[Load]) -> i64 {
        self.walk(queries, stages, |_, _, _| ())
    }

    /// The stages of that pass.
    pub fn pass_times(&self, queries: i64, stages: &[Load]) -> Vec<StageTimes> {
        let mut all = vec![StageTimes::default(); stages.len()];
        self.walk(queries, stages, |stage, lane, at| {
            let times = &mut all[stage];
            match lane {
                Lane::Fetch => times.fetch = at,
                Lane::Compute => times.compute = at,
                Lane::Reduce => times.reduce = at,
            }
        });
        all
    }

    /// Goes through that pass in steps: each begins when all of the one before is done. Gives its end.
    fn walk(&self, queries: i64, stages: &[Load], mut see: impl FnMut(usize, Lane, Range)) -> i64 {
        let mut start = 0i64;
        let kernels = self.kernels(queries, stages);
        // Stage `i` is fetched in step `i`, computed in the next and reduced in the one after that.
        for step in 0..stages.len() + 2 {
            let mut end = start;
            for (lane, behind) in [(Lane::Fetch, 0), (Lane::Compute, 1), (Lane::Reduce, 2)] {
                let Some(stage) = step.checked_sub(behind).filter(|s| *s < stages.len()) else {
                    continue;
                };
                let load = &stages[stage];
                let time = match lane {
                    Lane::Fetch => self.fetch(load),
                    Lane::Compute => kernels[stage],
                    Lane::Reduce => self.reduce(load),
                };
                let at = Range::new(start, start.saturating_add(time));
                see(stage, lane, at);
                end = end.max(at.end);
            }
            start = end;
        }
        start
    }

    /// The one stage of degree 0: everything is fetched, then one kernel, then all gradients and results travel back.
    pub fn at_once(&self, host: i64, all: Load) -> StageTimes {
        let after = |start: i64, time: i64| Range::new(start, start.saturating_add(time));
        let fetch = after(0, self.fetch(&all));
        let compute = after(fetch.end, self.compute(host + all.area, 100));
        StageTimes {
            fetch,
            compute,
            reduce: after(compute.end, self.reduce(&all)),
        }
    }
}

fn clamp(ns: i128) -> i64 {
    ns.min(i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sequence::Sequence;
    use crate::types::DType;

    /// One FLOP a cell and nanosecond; 1 MB/s and a token of 4 bytes: 4,000 ns a token.
    fn cost(direction: Direction) -> Cost {
        Cost {
            rates: Rates {
                link_mb_per_s: 1,
                link_latency_ns: 5,
                kernel_latency_ns: 3,
                ..Rates::default()
            },
            flops: 1,
            per_ns: 1,
            result: 1070,
            several: 100,
            price: Price {
                key_out: 4,
                key_back: match direction {
                    Direction::Forward => 0,
                    Direction::Backward => 8,
                },
                query_out: 2,
                query_back: 1,
            },
        }
    }

    #[test]
    fn stages_overlap_as_the_schedule_says() {
        let remote = [
            Load {
                tokens: 1,
                area: 7000,
                queries: 0,
            },
            Load {
                tokens: 2,
                area: 100,
                queries: 0,
            },
        ];
        let pass = |direction, sequence: Sequence, host: i64| {
            cost(direction).pass(0, &sequence.loads([host / 4, host - host / 4], remote))
        };
        // max(fetch 4005, host 1003), max(compute 7003, fetch 8005), compute 103.
        assert_eq!(pass(Direction::Forward, Sequence::First, 1000), 4005 + 8005 + 103);
        // The first reduce, 8005, hides the last compute; the last reduce, 16005, hides behind nothing.
        let backward = |sequence, host| pass(Direction::Backward, sequence, host);
        assert_eq!(backward(Sequence::First, 1000), 4005 + 8005 + 8005 + 16005);
        // Behind the host stage of 20,003; the first fetch then hides behind nothing, or behind a quarter of it.
        assert_eq!(backward(Sequence::First, 20_000), 20_003 + 8005 + 8005 + 16005);
        assert_eq!(backward(Sequence::Last, 20_000), 4005 + 8005 + 8005 + 20_003);
        assert_eq!(backward(Sequence::Split, 20_000), 5003 + 8005 + 8005 + 16005);
        let all = Load {
            tokens: 3,
            area: 7100,
            queries: 0,
        };
        assert_eq!(cost(Direction::Forward).at_once(1000, all).end(), 12005 + 8103);
        assert_eq!(
            cost(Direction::Backward).at_once(1000, all).end(),
            12005 + 8103 + 24005
        );
        assert_eq!(cost(Direction::Forward).pass(9, &[Load::default(); 2]), 0);
        let guests = Load { queries: 4, ..all };
        // 12 + 8 bytes out, one kernel, 4 bytes back.
        let end = cost(Direction::Forward).at_once(1000, guests).end();
        assert_eq!(end, 20005 + 8103 + 4005);
    }

    #[test]
    fn a_stage_is_fetched_before_and_reduced_behind_the_one_beside_it() {
        let remote = [
            Load {
                tokens: 1,
                area: 7000,
                queries: 0,
            },
            Load {
                tokens: 2,
                area: 100,
                queries: 0,
            },
        ];
        let r = Range::new;
        let all = Sequence::First.loads([300, 700], remote);
        let stages = cost(Direction::Backward).pass_times(0, &all);
        let lanes = |f: fn(&StageTimes) -> Range| stages.iter().map(f).collect::<Vec<_>>();
        let (first, second, third) = (4005, 4005 + 8005, 4005 + 8005 + 8005);
        assert_eq!(lanes(|s| s.fetch), [r(0, 0), r(0, first), r(first, first + 8005)]);
        assert_eq!(
            lanes(|s| s.compute),
            [r(0, 1003), r(first, first + 7003), r(second, second + 103)]
        );
        assert_eq!(
            lanes(|s| s.reduce),
            [r(first, first), r(second, third), r(third, third + 16005)]
        );
        let forward = cost(Direction::Forward).pass_times(0, &all);
        assert!(forward.iter().all(|s| s.reduce.is_empty()));
        assert_eq!(forward[2].compute, r(second, second + 103));
    }

    #[test]
    fn kernels_beyond_the_first_merge() {
        let load = |area| Load {
            area,
            ..Load::default()
        };
        let cost = Cost {
            several: 110,
            ..cost(Direction::Forward)
        };
        let stages = [load(0), load(100), load(0), load(200), load(10)];
        assert_eq!(cost.kernels(7, &stages), [0, 113, 0, 220 + 3 + 7, 11 + 3 + 7]);
        // One kernel has nothing to merge with.
        assert_eq!(cost.kernels(7, &[load(0), load(100)]), [0, 103]);
    }

    #[test]
    fn flops_and_bytes_of_a_shape() {
        let shape = AttnShape {
            heads_q: 64,
            heads_kv: 8,
            head_dim: 128,
            head_dim_v: 128,
            dtype: DType::Bf16,
        };
        let config = Config {
            backward_high_precision_reduce: true,
            ..Config::default()
        };
        let forward = Cost::new(&shape, &config, Direction::Forward);
        assert_eq!(
            (forward.flops, forward.price.key_out),
            (4 * 64 * 128, 8 * 256 * 2)
        );
        assert_eq!(forward.result, 64 * 128 * 8);
        let backward = Cost::new(&shape, &config, Direction::Backward);
        assert_eq!(
            (backward.flops, backward.price.key_back),
            (10 * 64 * 128, 8 * 256 * 4)
        );
    }
}
