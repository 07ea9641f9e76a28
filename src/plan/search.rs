//! Swaps of chunks that lower what ranks receive, while no rank's area passes a limit.

use super::dice::Dice;
use super::reach::Reaches;
use crate::types::Range;
use std::ops::RangeInclusive;

/// Sends are counted anew each time this part of what is left of a search is done, or this part of all of it.
const RECOUNT_LEFT: u64 = 4;
const RECOUNT_ALL: u64 = 64;
/// Received tokens that one sent beyond the cap is worth.
const SEND_PRICE: i64 = 4;
/// Second pairs of chunks that one proposal looks at, roughly.
const MOST_PAIRS: usize = 32;
/// Ranks with more chunks have what a swap changes counted from the chunks that it touches.
const MOST_WHOLE: usize = 16;

/// Chunks on ranks, with what each rank computes, receives and sends.
#[derive(Clone)]
pub(super) struct Search<'a> {
    pub(super) reaches: &'a Reaches<'a>,
    pub(super) areas: &'a [i64],
    pub(super) limit: i64,
    pub(super) owners: Vec<u32>,
    pub(super) own: Vec<Vec<u32>>,
    load: Vec<i64>,
    received: Vec<i64>,
    /// Tokens of each chunk that other ranks ask for, as last counted; nothing where keys have their own placement.
    pub(super) demand: Vec<i64>,
    pub(super) sent: Vec<i64>,
    /// Sending more than this has a price: a tenth less than twice the mean when last counted.
    pub(super) cap: i64,
    pub(super) scratch: Vec<Range>,
    /// Of the swap last looked at: the two ranks' chunks and what they receive.
    lists: [Vec<u32>; 2],
    fresh: [i64; 2],
    pub(super) work: u64,
}

/// A chunk that changes places with another one, or with a place that is free; and perhaps a second pair.
#[derive(Clone, Copy)]
pub(super) struct Swap {
    pub from: usize,
    pub out: u32,
    pub to: usize,
    pub back: Option<u32>,
    pub more: Option<(u32, u32)>,
}

impl Swap {
    /// What leaves `from`, each with what comes back for it.
    fn pairs(&self) -> impl Iterator<Item = (u32, Option<u32>)> {
        let more = self.more.map(|(out, back)| (out, Some(back)));
        [(self.out, self.back)].into_iter().chain(more)
    }

    /// How much of a figure of chunks goes from `from` to `to`.
    pub fn moved(&self, of: &[i64]) -> i64 {
        let back = |b: Option<u32>| b.map_or(0, |b| of[b as usize]);
        self.pairs().map(|(o, b)| of[o as usize] - back(b)).sum()
    }
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
        let end = self.work + budget;
        let mut recount = self.work;
        while self.work < end {
            let left = end - self.work;
            if self.work >= recount {
                self.count_sends();
                recount = self.work + (left / RECOUNT_LEFT).max(budget / RECOUNT_ALL);
            }
            let warm = (i128::from(heat) * i128::from(left) / i128::from(budget)) as i64;
            self.work += 4;
            if let Some(swap) = self.propose(&mut dice) {
                self.attempt(swap, warm * dice.exponential() / 256);
            }
        }
    }

    /// A chunk of any rank, and one of a rank near it in the sequence that the loads allow in exchange; where there is
    /// none, two of each rank.
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
        let choices = there.len() + usize::from(there.len() < self.own[from].len());
        // What comes back may have so much area: all else passes the limit of one rank or the other.
        let area = self.areas[out];
        let least = self.load[to] + area - self.limit;
        let most = self.limit - self.load[from] + area;
        let first = dice.below(choices);
        let mut swap = Swap {
            from,
            out: out as u32,
            to,
            back: there.get(first).copied(),
            more: None,
        };
        let fits = |area: i64| (least..=most).contains(&area);
        if swap.back.is_none() && fits(0) {
            return Some(swap);
        }
        let found = around(there, first).position(|&c| fits(self.areas[c as usize]));
        self.work += found.unwrap_or(there.len()) as u64 / 4;
        if let Some(at) = found {
            swap.back = Some(there[(first + at) % there.len()]);
            return Some(swap);
        }
        if choices > there.len() && fits(0) {
            swap.back = None;
            return Some(swap);
        }
        let back = swap.back.map_or(0, |c| self.areas[c as usize]);
        self.second_pair(swap, least - back..=most - back, dice)
    }

    /// Adds the first pair of chunks, from a random place on, of which the second has more area than the first by as
    /// much as `wanted`.
    fn second_pair(&mut self, mut swap: Swap, wanted: RangeInclusive<i64>, dice: &mut Dice) -> Option<Swap> {
        if wanted.is_empty() {
            return None;
        }
        let (here, there) = (&self.own[swap.from], &self.own[swap.to]);
        let (first, second) = (dice.below(here.len()), dice.below(there.len().max(1)));
        let mut looked = 0;
        for &x in around(here, first) {
            if looked >= MOST_PAIRS {
                break;
            }
            looked += there.len();
            let area = self.areas[x as usize];
            let (least, most) = (wanted.start() + area, wanted.end() + area);
            let fits = |&y: &u32| (least..=most).contains(&self.areas[y as usize]) && Some(y) != swap.back;
            let found = around(there, second).find(|&y| fits(y));
            if let Some(&y) = found.filter(|_| x != swap.out) {
                swap.more = Some((x, y));
                break;
            }
        }
        self.work += looked as u64 / 4;
        swap.more.map(|_| swap)
    }

    /// Whether neither rank's area passes the limit.
    pub(super) fn fits(&self, swap: &Swap) -> bool {
        let moved = swap.moved(self.areas);
        self.load[swap.from] - moved <= self.limit && self.load[swap.to] + moved <= self.limit
    }

    /// What a swap adds to the price of sending: the tokens that ranks send beyond the cap.
    fn send_price(&self, swap: &Swap) -> i64 {
        let moved = swap.moved(&self.demand);
        let over = |sent: i64| (sent - self.cap).max(0);
        let (from, to) = (self.sent[swap.from], self.sent[swap.to]);
        SEND_PRICE * (over(from - moved) + over(to + moved) - over(from) - over(to))
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
    pub(super) fn added(&mut self, swap: &Swap, most: i64) -> Option<i64> {
        let mut lists = std::mem::take(&mut self.lists);
        let mut sum = -self.received[swap.to];
        let mut within = true;
        for (i, rank) in [swap.from, swap.to].into_iter().enumerate() {
            self.fresh[i] = self.changed(rank, swap, i == 1, &mut lists[i]);
            sum += self.fresh[i] - if i == 0 { self.received[rank] } else { 0 };
            within = sum <= most;
            if !within {
                break;
            }
        }
        self.lists = lists;
        within.then_some(sum)
    }

    /// What `rank` receives after a swap; its chunks are then in `list`.
    fn changed(&mut self, rank: usize, swap: &Swap, reversed: bool, list: &mut Vec<u32>) -> i64 {
        list.clear();
        list.extend_from_slice(&self.own[rank]);
        let whole = list.len() <= MOST_WHOLE;
        let mut received = self.received[rank];
        for (out, back) in swap.pairs() {
            let (less, more) = if reversed {
                (back, Some(out))
            } else {
                (Some(out), back)
            };
            if whole {
                replace(list, less, more);
            } else {
                let (scratch, work) = (&mut self.scratch, &mut self.work);
                received += self.reaches.replaced(rank, list, less, more, scratch, work);
            }
        }
        if whole {
            received = self
                .reaches
                .received(rank, list, &mut self.scratch, &mut self.work);
        }
        received
    }

    /// Makes the swap that `added` was last asked about.
    pub(super) fn apply(&mut self, swap: &Swap) {
        let moved = swap.moved(self.areas);
        let sends = swap.moved(&self.demand);
        for (i, (rank, sign)) in [(swap.from, -1), (swap.to, 1)].into_iter().enumerate() {
            self.load[rank] += sign * moved;
            self.sent[rank] += sign * sends;
            std::mem::swap(&mut self.own[rank], &mut self.lists[i]);
            self.received[rank] = self.fresh[i];
        }
        // Written out: of `pairs` the compiler makes a branch on bytes that no pair has, which memory checkers tell of.
        let (from, to) = (swap.from as u32, swap.to as u32);
        self.owners[swap.out as usize] = to;
        if let Some(back) = swap.back {
            self.owners[back as usize] = from;
        }
        if let Some((out, back)) = swap.more {
            self.owners[out as usize] = to;
            self.owners[back as usize] = from;
        }
    }
}

/// All of `list`, from place `first` on and around.
fn around(list: &[u32], first: usize) -> impl Iterator<Item = &u32> {
    let (before, from) = list.split_at(first.min(list.len()));
    from.iter().chain(before)
}

/// Takes `out` from an ascending list and puts `into` in.
pub(super) fn replace(list: &mut Vec<u32>, out: Option<u32>, into: Option<u32>) {
    list.retain(|&c| Some(c) != out);
    if let Some(into) = into {
        list.insert(list.partition_point(|&c| c < into), into);
    }
}
