//! Predicted times of a pass, in whole nanoseconds.

use super::price::Price;
use crate::types::{AttnShape, Config, Rates};

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

/// The rates of one attention shape in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    rates: Rates,
    /// FLOPs of a visible cell, over all heads, and GFLOP/s, that is FLOPs a nanosecond.
    flops: i64,
    per_ns: i64,
    price: Price,
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
        Cost {
            rates,
            flops: 2 * shape.heads_q * dims,
            per_ns,
            price: Price::new(shape, config, direction),
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

    fn fetch(&self, load: &Load) -> i64 {
        self.link(load, self.price.key_out, self.price.query_out)
    }

    fn reduce(&self, load: &Load) -> i64 {
        self.link(load, self.price.key_back, self.price.query_back)
    }

    /// Time of a pass whose remote stages are `remote` beside a host stage of `host` cells. While a stage is computed
    /// the next one is fetched, and results and gradients of the one before travel back the other way.
    pub fn pass(&self, host: i64, remote: &[Load]) -> i64 {
        let fetch = |i: usize| remote.get(i).map_or(0, |s| self.fetch(s));
        let reduce = |i: usize| self.reduce(&remote[i]);
        let mut time = fetch(0).max(self.compute(host));
        for (i, stage) in remote.iter().enumerate() {
            let back = i.checked_sub(1).map_or(0, reduce);
            let step = self.compute(stage.area).max(fetch(i + 1)).max(back);
            time = time.saturating_add(step);
        }
        time.saturating_add(remote.len().checked_sub(1).map_or(0, reduce))
    }

    /// Time of degree 0: everything is fetched, then one kernel, then all results and gradients travel back.
    pub fn at_once(&self, host: i64, all: Load) -> i64 {
        self.fetch(&all)
            .saturating_add(self.compute(host + all.area))
            .saturating_add(self.reduce(&all))
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
            flops: 1,
            per_ns: 1,
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
            queries: 0,
        };
        assert_eq!(cost(Direction::Forward).at_once(1000, all), 12005 + 8103);
        assert_eq!(cost(Direction::Backward).at_once(1000, all), 12005 + 8103 + 24005);
        assert_eq!(cost(Direction::Forward).pass(0, &[Load::default()]), 0);
        let guests = Load { queries: 4, ..all };
        // 12 + 8 bytes out, one kernel, 4 bytes back.
        assert_eq!(
            cost(Direction::Forward).at_once(1000, guests),
            20005 + 8103 + 4005
        );
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
        let backward = Cost::new(&shape, &config, Direction::Backward);
        assert_eq!(
            (backward.flops, backward.price.key_back),
            (10 * 64 * 128, 8 * 256 * 4)
        );
    }
}
