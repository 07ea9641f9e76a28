//! What travels in a pass, in tokens and bytes.

use super::price::Price;
use super::work::Work;
use crate::types::Ranges;

/// What all ranks move in one pass. Bytes count what a rank receives, results that come home included; more than an i64
/// holds, of tens of thousands of heads over a thousand ranks, is its largest value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Key tokens fetched, each counted once for every rank it goes to.
    pub keys: i64,
    /// Query tokens fetched, likewise; 0 where queries do not travel.
    pub queries: i64,
    /// Bytes of k and v and, backward, of their gradients on the way home.
    pub key_bytes: i64,
    /// Bytes of q and, backward, of dout, lse and delta.
    pub query_bytes: i64,
    /// Bytes that go home for queries that travelled: out and lse, backward dq.
    pub output_bytes: i64,
    /// Bytes that would move on the same placement if only keys travelled; `bytes()` is never more.
    pub keys_only_bytes: i64,
    /// The most that a rank sends or receives if only keys travel; `most_bytes()` is never more.
    pub keys_only_most_bytes: i64,
    /// Bytes that each rank sends.
    pub sent: Vec<i64>,
    /// Bytes that each rank receives.
    pub received: Vec<i64>,
}

impl Volume {
    /// The volume of `work`, or of keys alone without; `sent` and `received` are key tokens of each rank when only keys
    /// travel.
    pub(super) fn new(price: &Price, work: Option<&Work>, sent: &[i64], received: &[i64]) -> Volume {
        let sum = |a: i64, b: i64| {
            a.saturating_mul(price.key_out)
                .saturating_add(b.saturating_mul(price.key_back))
        };
        let bytes =
            |a: &[i64], b: &[i64]| -> Vec<i64> { a.iter().zip(b).map(|(a, b)| sum(*a, *b)).collect() };
        let (out, into) = (bytes(sent, received), bytes(received, sent));
        let keys_only = into.iter().fold(0, |sum: i64, &bytes| sum.saturating_add(bytes));
        let most = out.iter().chain(&into).copied().max().unwrap_or(0);
        let tokens = |sets: &[Ranges]| sets.iter().map(Ranges::tokens).sum();
        let (keys, queries, sent, received) = match work {
            None => (received.iter().sum(), 0, out, into),
            Some(w) => (
                tokens(&w.keys),
                tokens(&w.queries),
                w.sent.clone(),
                w.received.clone(),
            ),
        };
        Volume {
            keys,
            queries,
            key_bytes: sum(keys, keys),
            query_bytes: queries * price.query_out,
            output_bytes: queries * price.query_back,
            keys_only_bytes: keys_only,
            keys_only_most_bytes: most,
            sent,
            received,
        }
    }

    /// The volume of keys that cross hosts once and are passed on: `keys` reach a rank that computes with them, and
    /// `sent` and `received` count all ways of each.
    pub(super) fn passed_on(price: &Price, keys: i64, sent: &[i64], received: &[i64]) -> Volume {
        let every_way = Volume::new(price, None, sent, received);
        Volume { keys, ..every_way }
    }

    /// Bytes that all ranks receive.
    pub fn bytes(&self) -> i64 {
        self.key_bytes
            .saturating_add(self.query_bytes)
            .saturating_add(self.output_bytes)
    }

    /// The most that a rank sends or receives.
    pub fn most_bytes(&self) -> i64 {
        self.sent.iter().chain(&self.received).copied().max().unwrap_or(0)
    }
}
