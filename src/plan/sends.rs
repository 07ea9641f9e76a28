//! What ranks send, and exchanges that keep the most that one sends near the mean.

use super::reach::Owned;
use super::search::{Search, Swap};
use std::cmp::Reverse;

/// Exchanges before sends are counted anew, or one for every four ranks.
const ROUNDS: usize = 4;
/// Countings in a row that may win nothing.
const PATIENCE: usize = 4;
/// Pairs of chunks that one exchange looks at, roughly.
const LOOKED: usize = 4096;
/// Of these, pairs that it compares by the tokens they add.
const PAIRS: usize = 8;

impl Search<'_> {
    /// Counts what each rank sends. Exact until the next swap, near enough for some more.
    pub(super) fn count_sends(&mut self) {
        self.demand.fill(0);
        self.sent.fill(0);
        for (reach, weight) in &self.reaches.0 {
            if let Owned::Side(_) = reach.owned() {
                continue;
            }
            let mut whole = vec![0; self.owners.len() + 1];
            for own in &self.own {
                reach.union(own, &mut self.scratch);
                self.work += (own.len() + 2 * self.scratch.len()) as u64;
                for run in &self.scratch {
                    let (first, last) = (reach.chunk_at(run.start), reach.chunk_at(run.end - 1));
                    whole[first] += weight;
                    whole[last + 1] -= weight;
                    self.demand[first] -= weight * (run.start - reach.tokens(first as u32).start);
                    self.demand[last] -= weight * (reach.tokens(last as u32).end - run.end);
                }
                // Both ascend; a chunk may meet several runs and a run several chunks.
                let mut next = 0;
                for &c in own {
                    let tokens = reach.tokens(c);
                    while next < self.scratch.len() && self.scratch[next].end <= tokens.start {
                        next += 1;
                    }
                    let met = self.scratch[next..].iter().take_while(|r| r.start < tokens.end);
                    self.demand[c as usize] -= weight * met.map(|r| r.intersect(&tokens).len()).sum::<i64>();
                }
            }
            let mut readers = 0;
            for (c, demand) in self.demand.iter_mut().enumerate() {
                readers += whole[c];
                *demand += readers * reach.tokens(c as u32).len();
            }
        }
        for (c, &owner) in self.owners.iter().enumerate() {
            self.sent[owner as usize] += self.demand[c];
        }
        self.cap = 9 * self.sent.iter().sum::<i64>() / (5 * self.own.len() as i64);
    }

    /// What ranks send beyond twice the mean, in all.
    fn excess(&self) -> i64 {
        let most = 2 * self.sent.iter().sum::<i64>() / self.own.len() as i64;
        self.sent.iter().map(|&s| (s - most).max(0)).sum()
    }

    /// Exchanges chunks of ranks that send more than twice the mean, the cheapest of a few each time, for at most about
    /// `budget` steps, while the tokens received stay within `most`. Keeps the evenest placement on the way.
    pub(super) fn even_sends(&mut self, budget: u64, most: i64) {
        self.count_sends();
        let end = self.work + budget;
        let mut best = (self.excess(), self.owners.clone());
        let mut failed = 0;
        while self.excess() > 0 && failed < PATIENCE && self.work < end {
            let rounds = ROUNDS.max(self.own.len() / 4);
            let made = (0..rounds).take_while(|_| self.lower_most()).count();
            self.count_sends();
            if self.excess() < best.0 && self.total() <= most {
                best = (self.excess(), self.owners.clone());
                failed = 0;
            } else {
                failed += 1;
            }
            if made == 0 {
                break;
            }
        }
        if self.owners != best.1 {
            let work = self.work;
            *self = Search::new(self.reaches, self.areas, self.own.len(), self.limit, best.1);
            self.work += work;
        }
    }

    /// One exchange of the rank that sends most, while that is more than twice the mean.
    fn lower_most(&mut self) -> bool {
        let world = self.own.len();
        let Some(from) = (0..world).max_by_key(|&r| (self.sent[r], r)) else {
            return false;
        };
        if self.sent[from] * world as i64 <= 2 * self.sent.iter().sum::<i64>() {
            return false;
        }
        let mut best: Option<(i64, u32, u32)> = None;
        for (_, out, back) in self.candidates(from) {
            let swap = self.swap_of(from, out, back);
            let added = self.added(&swap, i64::MAX / 2).unwrap_or(i64::MAX);
            best = best.min(Some((added, out, back))).or(Some((added, out, back)));
        }
        let Some((_, out, back)) = best else { return false };
        let swap = self.swap_of(from, out, back);
        self.added(&swap, i64::MAX / 2);
        self.apply(&swap);
        true
    }

    /// Exchanges that lower what `from` sends: (how far from just enough, its chunk, the chunk that comes back).
    fn candidates(&mut self, from: usize) -> Vec<(i64, u32, u32)> {
        let excess = self.sent[from] - self.cap;
        let most = self.cap + self.cap / 9;
        let mut pairs = Vec::new();
        let mut asked: Vec<u32> = self.own[from].clone();
        asked.sort_unstable_by_key(|&c| (Reverse(self.demand[c as usize]), c));
        for &out in asked.iter().take((LOOKED / self.owners.len()).clamp(1, 8)) {
            for (back, &to) in self.owners.iter().enumerate() {
                let back = back as u32;
                let moved = self.demand[out as usize] - self.demand[back as usize];
                if to as usize != from
                    && moved > 0
                    && self.sent[to as usize] + moved <= most
                    && self.fits(&self.swap_of(from, out, back))
                {
                    // Enough at once, and little more than that, before other pairs.
                    pairs.push(((moved - excess).abs(), out, back));
                }
            }
            self.work += self.owners.len() as u64 / 16;
        }
        if pairs.len() > PAIRS {
            pairs.select_nth_unstable(PAIRS - 1);
            pairs.truncate(PAIRS);
        }
        pairs
    }

    fn swap_of(&self, from: usize, out: u32, back: u32) -> Swap {
        Swap {
            from,
            out,
            to: self.owners[back as usize] as usize,
            back: Some(back),
            more: None,
        }
    }
}
