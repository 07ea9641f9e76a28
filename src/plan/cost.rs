//! Predicted times of a pass, in whole nanoseconds.

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
    pub tokens: i64,
    pub area: i64,
}

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
    direction: Direction,
    /// FLOPs of a visible cell, over all heads, and GFLOP/s, that is FLOPs a nanosecond.
    flops: i64,
    per_ns: i64,
    /// Bytes of a key token, and of its gradient on the way back.
    fetched: i64,
    reduced: i64,
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
        let (dims, per_ns) = match direction {
            Direction::Forward => (qk + v, rates.forward_gflops[class]),
            Direction::Backward => (3 * qk + 2 * v, rates.backward_gflops[class]),
        };
        let elements = shape.heads_kv * (qk + v);
        let wire = if config.backward_high_precision_reduce {
            shape.dtype.accumulator()
        } else {
            shape.dtype
        };
        Cost {
            rates,
            direction,
            flops: 2 * shape.heads_q * dims,
            per_ns,
            fetched: elements * shape.dtype.size() as i64,
            reduced: elements * wire.size() as i64,
        }
    }

    /// Time of the kernel over `area` cells; none without cells.
    fn compute(&self, area: i64) -> i64 {
        if area == 0 {
            return 0;
        }
        let flops = i128::from(area) * i128::from(self.flops);
        clamp(flops / i128::from(self.per_ns)).saturating_add(self.rates.kernel_latency_ns)
    }

    fn link(&self, tokens: i64, bytes: i64) -> i64 {
        if tokens == 0 {
            return 0;
        }
        // A MB/s is a byte in 1,000 ns.
        let ns = i128::from(tokens) * i128::from(bytes) * 1000 / i128::from(self.rates.link_mb_per_s);
        clamp(ns).saturating_add(self.rates.link_latency_ns)
    }

    /// The end of a pass whose remote stages are `remote` beside a host stage of `host` cells. While a stage is computed
    /// the next one is fetched and, backward, the gradients of the one before travel back the other way.
    pub fn pass(&self, host: i64, remote: &[Load]) -> i64 {
        self.walk(host, remote, |_, _, _| ())
    }

    /// The stages of that pass, the host stage first.
    pub fn pass_times(&self, host: i64, remote: &[Load]) -> Vec<StageTimes> {
        let mut stages = vec![StageTimes::default(); remote.len() + 1];
        self.walk(host, remote, |stage, lane, at| {
            let times = &mut stages[stage];
            match lane {
                Lane::Fetch => times.fetch = at,
                Lane::Compute => times.compute = at,
                Lane::Reduce => times.reduce = at,
            }
        });
        stages
    }

    /// Goes through that pass in steps: each begins when all of the one before is done. Gives its end.
    fn walk(&self, host: i64, remote: &[Load], mut see: impl FnMut(usize, Lane, Range)) -> i64 {
        let mut start = 0i64;
        // Stage `i` is computed in step `i`; the last step computes nothing.
        for step in 0..remote.len() + 2 {
            let area = match step.checked_sub(1) {
                None => host,
                Some(i) => remote.get(i).map_or(0, |s| s.area),
            };
            let fetched = remote.get(step).map_or(0, |s| s.tokens);
            let returned = step.checked_sub(2).map_or(0, |i| remote[i].tokens);
            let mut end = start;
            for (stage, lane, time) in [
                (step + 1, Lane::Fetch, self.link(fetched, self.fetched)),
                (step, Lane::Compute, self.compute(area)),
                (step.wrapping_sub(1), Lane::Reduce, self.reduce(returned)),
            ] {
                let at = Range::new(start, start.saturating_add(time));
                let last = match lane {
                    Lane::Fetch => step < remote.len(),
                    Lane::Compute => step <= remote.len(),
                    Lane::Reduce => step >= 2,
                };
                if last {
                    see(stage, lane, at);
                }
                end = end.max(at.end);
            }
            start = end;
        }
        start
    }

    /// Time in which the gradients of `tokens` go back.
    fn reduce(&self, tokens: i64) -> i64 {
        match self.direction {
            Direction::Forward => 0,
            Direction::Backward => self.link(tokens, self.reduced),
        }
    }

    /// The one stage of degree 0: everything is fetched, then one kernel, then, backward, all gradients travel back.
    pub fn at_once(&self, host: i64, all: Load) -> StageTimes {
        let after = |start: i64, time: i64| Range::new(start, start.saturating_add(time));
        let fetch = after(0, self.link(all.tokens, self.fetched));
        let compute = after(fetch.end, self.compute(host + all.area));
        StageTimes {
            fetch,
            compute,
            reduce: after(compute.end, self.reduce(all.tokens)),
        }
    }
}

fn clamp(ns: i128) -> i64 {
    ns.min(i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
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
            direction,
            flops: 1,
            per_ns: 1,
            fetched: 4,
            reduced: 8,
        }
    }

    #[test]
    fn stages_overlap_as_the_schedule_says() {
        let remote = [
            Load {
                tokens: 1,
                area: 7000,
            },
            Load { tokens: 2, area: 100 },
        ];
        // max(fetch 4005, host 1003), max(compute 7003, fetch 8005), compute 103.
        assert_eq!(cost(Direction::Forward).pass(1000, &remote), 4005 + 8005 + 103);
        // The first reduce, 8005, hides the last compute; the last reduce, 16005, hides behind nothing.
        assert_eq!(
            cost(Direction::Backward).pass(1000, &remote),
            4005 + 8005 + 8005 + 16005
        );
        let all = Load {
            tokens: 3,
            area: 7100,
        };
        assert_eq!(cost(Direction::Forward).at_once(1000, all).end(), 12005 + 8103);
        assert_eq!(
            cost(Direction::Backward).at_once(1000, all).end(),
            12005 + 8103 + 24005
        );
        assert_eq!(cost(Direction::Forward).pass(0, &[Load::default()]), 0);
    }

    #[test]
    fn a_stage_is_fetched_before_and_reduced_behind_the_one_beside_it() {
        let remote = [
            Load {
                tokens: 1,
                area: 7000,
            },
            Load { tokens: 2, area: 100 },
        ];
        let r = Range::new;
        let stages = cost(Direction::Backward).pass_times(1000, &remote);
        let lanes = |f: fn(&StageTimes) -> Range| stages.iter().map(f).collect::<Vec<_>>();
        let (first, second, third) = (4005, 4005 + 8005, 4005 + 8005 + 8005);
        assert_eq!(lanes(|s| s.fetch), [r(0, 0), r(0, first), r(first, first + 8005)]);
        assert_eq!(
            lanes(|s| s.compute),
            [r(0, 1003), r(first, first + 7003), r(second, second + 103)]
        );
        assert_eq!(
            lanes(|s| s.reduce),
            [r(0, 0), r(second, third), r(third, third + 16005)]
        );
        let forward = cost(Direction::Forward).pass_times(1000, &remote);
        assert!(forward.iter().all(|s| s.reduce.is_empty()));
        assert_eq!(forward[2].compute, r(second, second + 103));
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
        assert_eq!((forward.flops, forward.fetched), (4 * 64 * 128, 8 * 256 * 2));
        let backward = Cost::new(&shape, &config, Direction::Backward);
        assert_eq!((backward.flops, backward.reduced), (10 * 64 * 128, 8 * 256 * 4));
    }
}
