//! Swaps of chunks that lower what ranks receive, while no rank's area passes a limit.

use super::dice::Dice;
use super::reach::{Owned, Reaches};
use crate::types::Range;

/// How often the tokens that each chunk is asked for are counted anew during a search.
const RECOUNTS: u64 = 8;
/// Exchanges that bring a rank's sending down before sends are counted anew.
const SEND_ROUNDS: usize = 8;
/// Such exchanges in all.
const MOST_ROUNDS: usize = 64;
/// Pairs of chunks that one such exchange looks at, roughly.
const SEND_LOOKED: usize = 16_384;
/// Of these, pairs that it compares by the tokens they add.
const SEND_PAIRS: usize = 32;

/// Chunks on ranks, with what each rank computes, receives and sends.
pub(super) struct Search<'a> {
    reaches: &'a Reaches<'a>,
    areas: &'a [i64],
    limit: i64,
    owners: Vec<u32>,
    own: Vec<Vec<u32>>,
    load: Vec<i64>,
    received: Vec<i64>,
    /// Tokens of each chunk that other ranks ask for, as last counted; nothing where keys have their own placement.
    demand: Vec<i64>,
    sent: Vec<i64>,
    /// Sending more than this has a price: a tenth less than twice the mean when last counted.
    cap: i64,
    scratch: Vec<Range>,
    /// Of the swap last looked at: the two ranks' chunks and what they receive.
    lists: [Vec<u32>; 2],
    fresh: [i64; 2],
    work: u64,
}

/// A chunk that changes places with another one, or with a place that is free.
#[derive(Clone, Copy)]
struct Swap {
    from: usize,
    out: u32,
    to: usize,
    back: Option<u32>,
}

impl<'a> Search<'a> {
    pub fn new(
        reaches: &'a Reaches<'a>,
        areas: &'a [i64],
        world: usize,
        limit: i64,
        owners: Vec<u32>,
    ) -> Search<'a> {
        let mut own = vec![Vec::new(); world];
        let mut load = vec![0; world];
        for (c, &o) in owners.iter().enumerate() {
            own[o as usize].push(c as u32);
            load[o as usize] += areas[c];
        }
        let (mut scratch, mut work) = (Vec::new(), 0);
        let received = (0..world)
            .map(|r| reaches.received(r, &own[r], &mut scratch, &mut work))
            .collect();
        Search {
            reaches,
            areas,
            limit,
            demand: vec![0; owners.len()],
            sent: vec![0; world],
            owners,
            own,
            load,
            received,
            cap: i64::MAX,
            scratch,
            lists: [Vec::new(), Vec::new()],
            fresh: [0; 2],
            work,
        }
    }

    /// Received tokens of all ranks, by weight.
    pub fn total(&self) -> i64 {
        self.received.iter().sum()
    }

    /// The largest area of a rank.
    pub fn heaviest(&self) -> i64 {
        self.load.iter().copied().max().unwrap_or(0)
    }

    /// The rank of every chunk.
    pub fn into_owners(self) -> Vec<u32> {
        self.owners
    }

    /// Tries random swaps until `budget` steps are done: worse ones too, by up to about `heat` tokens at first and none at
    /// the end.
    pub fn anneal(&mut self, heat: i64, budget: u64) {
        let mut dice = Dice::new();
        let start = self.work;
        let mut recount = start;
        while self.work < start + budget {
            if self.work >= recount {
                self.count_sends();
                recount += budget / RECOUNTS + 1;
            }
            let left = (start + budget).saturating_sub(self.work);
            let warm = (i128::from(heat) * i128::from(left) / i128::from(budget)) as i64;
            self.work += 4;
            if let Some(swap) = self.propose(&mut dice) {
                self.attempt(swap, warm * dice.exponential() / 256);
            }
        }
    }

    /// A chunk of any rank, and one of a rank near it in the sequence that the loads allow in exchange.
    fn propose(&mut self, dice: &mut Dice) -> Option<Swap> {
        let chunks = self.owners.len();
        let out = dice.below(chunks);
        // What sees the same keys stands close by; one proposal in eight goes anywhere.
        let near = match dice.below(16) {
            0 | 1 => dice.below(chunks),
            step @ 2..=8 => (out + step.div_ceil(3)).min(chunks - 1),
            step => out.saturating_sub((step - 7).div_ceil(3)),
        };
        let (from, to) = (self.owners[out] as usize, self.owners[near] as usize);
        if from == to {
            return None;
        }
        let there = &self.own[to];
        let spare = usize::from(there.len() < self.own[from].len());
        let choices = there.len() + spare;
        let first = dice.below(choices);
        for i in 0..choices {
            let at = if first + i < choices {
                first + i
            } else {
                first + i - choices
            };
            let back = there.get(at).copied();
            let swap = Swap {
                from,
                out: out as u32,
                to,
                back,
            };
            if self.fits(&swap) {
                self.work += i as u64 / 4;
                return Some(swap);
            }
        }
        self.work += choices as u64 / 4;
        None
    }

    fn moved(&self, swap: &Swap, of: &[i64]) -> i64 {
        of[swap.out as usize] - swap.back.map_or(0, |b| of[b as usize])
    }

    /// Whether neither rank's area passes the limit.
    fn fits(&self, swap: &Swap) -> bool {
        let moved = self.moved(swap, self.areas);
        self.load[swap.from] - moved <= self.limit && self.load[swap.to] + moved <= self.limit
    }

    /// What a swap adds to the price of sending: the tokens that ranks send beyond the cap.
    fn send_price(&self, swap: &Swap) -> i64 {
        let moved = self.moved(swap, &self.demand);
        let over = |sent: i64| (sent - self.cap).max(0);
        let (from, to) = (self.sent[swap.from], self.sent[swap.to]);
        over(from - moved) + over(to + moved) - over(from) - over(to)
    }

    /// Exchanges unless that adds more than `allowed` received tokens, the price of sending included.
    fn attempt(&mut self, swap: Swap, allowed: i64) {
        let allowed = allowed - self.send_price(&swap);
        if self.added(&swap, allowed).is_some_and(|added| added <= allowed) {
            self.apply(&swap);
        }
    }

    /// Received tokens that a swap adds; `None` when that is surely more than `most`. Leaves both ranks' new chunks
    /// in `lists`.
    fn added(&mut self, swap: &Swap, most: i64) -> Option<i64> {
        let [mut left, mut right] = std::mem::take(&mut self.lists);
        replace(&self.own[swap.from], Some(swap.out), swap.back, &mut left);
        let old = self.received[swap.from] + self.received[swap.to];
        let from = self
            .reaches
            .received(swap.from, &left, &mut self.scratch, &mut self.work);
        let mut added = None;
        if from - old <= most {
            replace(&self.own[swap.to], swap.back, Some(swap.out), &mut right);
            let to = self
                .reaches
                .received(swap.to, &right, &mut self.scratch, &mut self.work);
            added = Some(from + to - old);
            self.fresh = [from, to];
        }
        self.lists = [left, right];
        added
    }

    /// Makes the swap that `added` was last asked about.
    fn apply(&mut self, swap: &Swap) {
        let moved = self.moved(swap, self.areas);
        let sends = self.moved(swap, &self.demand);
        for (i, (rank, sign)) in [(swap.from, -1), (swap.to, 1)].into_iter().enumerate() {
            self.load[rank] += sign * moved;
            self.sent[rank] += sign * sends;
            std::mem::swap(&mut self.own[rank], &mut self.lists[i]);
            self.received[rank] = self.fresh[i];
        }
        self.owners[swap.out as usize] = swap.to as u32;
        if let Some(back) = swap.back {
            self.owners[back as usize] = swap.from as u32;
        }
    }

    /// Counts what each rank sends. Exact until the next swap, near enough for some more.
    fn count_sends(&mut self) {
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

    /// Exchanges chunks of ranks that send more than twice the mean, the cheapest of a few each time, as far as
    /// that goes.
    pub fn even_sends(&mut self) {
        let world = self.own.len();
        for round in 0..SEND_ROUNDS + world.min(MOST_ROUNDS) {
            if round % SEND_ROUNDS == 0 {
                self.count_sends();
            }
            let Some(from) = (0..world).max_by_key(|&r| (self.sent[r], r)) else {
                return;
            };
            if self.sent[from] * world as i64 <= 2 * self.sent.iter().sum::<i64>() || !self.lower_sends(from)
            {
                return;
            }
        }
    }

    fn lower_sends(&mut self, from: usize) -> bool {
        let excess = self.sent[from] - self.cap;
        let most = self.cap + self.cap / 9;
        let mut pairs = Vec::new();
        let mut asked: Vec<u32> = self.own[from].clone();
        asked.sort_unstable_by_key(|&c| (std::cmp::Reverse(self.demand[c as usize]), c));
        for &out in asked.iter().take((SEND_LOOKED / self.owners.len()).clamp(2, 8)) {
            for (back, &to) in self.owners.iter().enumerate() {
                let back = back as u32;
                let swap = Swap {
                    from,
                    out,
                    to: to as usize,
                    back: Some(back),
                };
                let moved = self.moved(&swap, &self.demand);
                if to as usize != from
                    && moved > 0
                    && self.sent[to as usize] + moved <= most
                    && self.fits(&swap)
                {
                    // Enough at once, and little more than that, before other pairs.
                    pairs.push(((moved - excess).abs(), out, back));
                }
            }
        }
        let kept = pairs.len().min(SEND_PAIRS);
        if kept == 0 {
            return false;
        }
        pairs.select_nth_unstable(kept - 1);
        let mut best: Option<(i64, u32, u32)> = None;
        for &(_, out, back) in &pairs[..kept] {
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

    fn swap_of(&self, from: usize, out: u32, back: u32) -> Swap {
        Swap {
            from,
            out,
            to: self.owners[back as usize] as usize,
            back: Some(back),
        }
    }
}

/// `list`, ascending, without `out` and with `into`.
fn replace(list: &[u32], out: Option<u32>, into: Option<u32>, result: &mut Vec<u32>) {
    result.clear();
    result.extend(list.iter().copied().filter(|&c| Some(c) != out));
    if let Some(into) = into {
        result.insert(result.partition_point(|&c| c < into), into);
    }
}
