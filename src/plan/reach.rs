//! The keys that each chunk's rows see, and what a rank with given chunks receives.

use super::side::SidePlacement;
use crate::types::{Mask, Range, Ranges};

/// Which keys a placement gives to the rank whose receiving is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owned<'a> {
    /// The keys of its chunks: both sides share the placement.
    Chunks,
    /// The keys that each rank has in a placement of their own.
    Side(&'a SidePlacement),
}

/// Of every chunk the keys that its rows see; keys inside the chunk are left out when both sides share the placement.
#[derive(Debug)]
pub(super) struct Reach<'a> {
    /// Chunk `c` has `runs[first[c]..first[c + 1]]`, ascending, not touching.
    first: Vec<u32>,
    runs: Vec<Range>,
    /// Of each chunk the latest first key of a slice among its rows; `i64::MIN` without any.
    begins: Vec<i64>,
    /// Of each chunk the hull of its runs, and of its own keys where both sides share the placement.
    hulls: Vec<Range>,
    /// Whether neither starts nor ends of hulls ever fall.
    ascending: bool,
    bounds: &'a [i64],
    owned: Owned<'a>,
}

impl<'a> Reach<'a> {
    /// O(slices log chunks + pairs of slices and chunks that meet, sorted).
    pub fn new(mask: &Mask, bounds: &'a [i64], owned: Owned<'a>) -> Reach<'a> {
        let chunks = bounds.len() - 1;
        let mut met: Vec<(u32, Range)> = Vec::new();
        let mut begins = vec![i64::MIN; chunks];
        for slice in mask.slices() {
            let rows = slice.visible_rows();
            if rows.is_empty() {
                continue;
            }
            let from = bounds.partition_point(|&b| b <= rows.start) - 1;
            for c in (from..chunks).take_while(|&c| bounds[c] < rows.end) {
                let cut = slice.cut(&Range::new(bounds[c], bounds[c + 1]), &slice.k);
                let keys = cut.visible_keys();
                begins[c] = begins[c].max(keys.start);
                met.push((c as u32, keys));
            }
        }
        met.sort_unstable();
        let mut reach = Reach {
            first: Vec::with_capacity(chunks + 1),
            runs: Vec::with_capacity(met.len()),
            begins,
            hulls: Vec::with_capacity(chunks),
            ascending: true,
            bounds,
            owned,
        };
        let mut rest = met.as_slice();
        for c in 0..chunks {
            reach.first.push(reach.runs.len() as u32);
            let (own, later) = rest.split_at(rest.iter().take_while(|m| m.0 as usize == c).count());
            rest = later;
            reach.push_chunk(c, own);
            reach.push_hull(c);
        }
        reach.first.push(reach.runs.len() as u32);
        reach
    }

    fn push_chunk(&mut self, c: usize, met: &[(u32, Range)]) {
        let own = match self.owned {
            Owned::Chunks => Range::new(self.bounds[c], self.bounds[c + 1]),
            Owned::Side(_) => Range::default(),
        };
        let mut next = 0;
        while next < met.len() {
            let mut run = met[next].1;
            next += 1;
            while let Some((_, more)) = met.get(next).filter(|m| m.1.start <= run.end) {
                run.end = run.end.max(more.end);
                next += 1;
            }
            let after = Range::new(run.start.max(own.end), run.end);
            let before = Range::new(run.start, run.end.min(own.start));
            let parts = if own.is_empty() {
                [run, Range::default()]
            } else {
                [before, after]
            };
            self.runs.extend(parts.iter().filter(|r| !r.is_empty()));
        }
    }

    fn push_hull(&mut self, c: usize) {
        let last = self.hulls.last().copied().unwrap_or_default();
        let own = match self.owned {
            Owned::Chunks => Some(self.tokens(c as u32)),
            Owned::Side(_) => None,
        };
        let runs = self.runs[self.first[c] as usize..].iter().copied();
        let hull = runs
            .chain(own)
            .reduce(|a, b| Range::new(a.start.min(b.start), a.end.max(b.end)))
            .unwrap_or(last);
        self.ascending &= last.start <= hull.start && last.end <= hull.end;
        self.hulls.push(hull);
    }

    /// Where in the ascending `list` those chunks stand that see or have keys together with `chunk`, or with each other.
    /// All of them where hulls do not ascend.
    fn touching(&self, list: &[u32], chunk: u32) -> std::ops::Range<usize> {
        if !self.ascending {
            return 0..list.len();
        }
        let hull = |i: usize| self.hulls[list[i] as usize];
        let mut own = self.hulls[chunk as usize];
        let mut from = list.partition_point(|&c| c < chunk);
        let mut to = from;
        while from > 0 && hull(from - 1).end > own.start {
            from -= 1;
            own.start = own.start.min(hull(from).start);
        }
        while to < list.len() && hull(to).start < own.end {
            own.end = own.end.max(hull(to).end);
            to += 1;
        }
        from..to
    }

    /// Keys that the rows of a chunk see, ascending; without its own when sides share the placement.
    pub fn of(&self, chunk: u32) -> &[Range] {
        let c = chunk as usize;
        &self.runs[self.first[c] as usize..self.first[c + 1] as usize]
    }

    /// Whose keys a rank need not receive.
    pub fn owned(&self) -> Owned<'a> {
        self.owned
    }

    /// Where the keys begin that a chunk's last kind of rows sees; `None` when its rows see nothing.
    pub fn begins_at(&self, chunk: u32) -> Option<i64> {
        let c = chunk as usize;
        (self.begins[c] != i64::MIN).then_some(self.begins[c])
    }

    /// The chunk that holds `token`, where both sides share the placement.
    pub fn chunk_at(&self, token: i64) -> usize {
        // Chunks are equally long but for blocks of a share, so a division finds nearly all of them.
        let guess = (token / self.bounds[1]) as usize;
        match self.bounds.get(guess..guess + 2) {
            Some(&[start, end]) if start <= token && token < end => guess,
            _ => self.bounds.partition_point(|&b| b <= token) - 1,
        }
    }

    /// The keys that `chunks` see, ascending and disjoint, as `of` leaves out each one's own.
    pub fn union(&self, chunks: &[u32], out: &mut Vec<Range>) {
        out.clear();
        out.extend(chunks.iter().flat_map(|&c| self.of(c)));
        out.sort_unstable();
        out.dedup_by(|next, last| {
            let met = next.start <= last.end;
            if met {
                last.end = last.end.max(next.end);
            }
            met
        });
    }

    /// Tokens of a chunk.
    pub fn tokens(&self, chunk: u32) -> Range {
        Range::new(self.bounds[chunk as usize], self.bounds[chunk as usize + 1])
    }

    /// Key tokens that `rank` receives when it has `chunks`, ascending. `scratch` keeps its memory between calls;
    /// `work` grows by the runs and chunks looked at.
    pub fn received(&self, rank: usize, chunks: &[u32], scratch: &mut Vec<Range>, work: &mut u64) -> i64 {
        scratch.clear();
        let mut sorted = true;
        for &c in chunks {
            for &run in self.of(c) {
                sorted &= scratch.last().is_none_or(|l| l.start <= run.start);
                scratch.push(run);
            }
        }
        // Sorting costs a few steps a run more than merging does.
        *work += (chunks.len() + scratch.len() * if sorted { 1 } else { 4 }) as u64;
        if !sorted {
            scratch.sort_unstable_by_key(|r| r.start);
        }
        match self.owned {
            Owned::Chunks => uncovered(scratch, chunks.len(), |i| self.tokens(chunks[i])),
            Owned::Side(keys) => {
                let own: &Ranges = keys.runs(rank);
                uncovered(scratch, own.runs(), |i| own.as_slice()[i])
            }
        }
    }
}

/// The reach of every mask that is placed together, with the weight of its tokens.
#[derive(Debug)]
pub(super) struct Reaches<'a>(pub Vec<(Reach<'a>, i64)>);

impl Reaches<'_> {
    /// Key tokens that `rank` receives when it has `chunks`, over masks by weight. As `Reach::received`.
    pub fn received(&self, rank: usize, chunks: &[u32], scratch: &mut Vec<Range>, work: &mut u64) -> i64 {
        self.0
            .iter()
            .map(|(reach, weight)| weight * reach.received(rank, chunks, scratch, work))
            .sum()
    }

    /// Takes `less` from the ascending `list` and puts `more` in: the received tokens that this adds.
    pub fn replaced(
        &self,
        rank: usize,
        list: &mut Vec<u32>,
        less: Option<u32>,
        more: Option<u32>,
        scratch: &mut Vec<Range>,
        work: &mut u64,
    ) -> i64 {
        let mut added = 0;
        for (chunk, sign) in less.map(|c| (c, -1)).into_iter().chain(more.map(|c| (c, 1))) {
            let at = list.partition_point(|&c| c < chunk);
            if sign < 0 {
                list.remove(at);
            }
            let mut sum = |list: &[u32], sign: i64| {
                for (reach, weight) in &self.0 {
                    let part = &list[reach.touching(list, chunk)];
                    added += sign * weight * reach.received(rank, part, scratch, work);
                }
            };
            sum(list, -sign);
            list.insert(at, chunk);
            sum(list, sign);
            if sign < 0 {
                list.remove(at);
            }
        }
        added
    }
}

/// Per mask the keys that a rank has or receives, so that what a further chunk adds is found without the others.
#[derive(Clone, Debug)]
pub(super) struct Held(Vec<Vec<Range>>);

impl Held {
    /// What `rank` holds without any chunk.
    pub fn new(reaches: &Reaches, rank: usize) -> Held {
        let of = |(reach, _): &(Reach, i64)| match reach.owned {
            Owned::Chunks => Vec::new(),
            Owned::Side(keys) => keys.runs(rank).as_slice().to_vec(),
        };
        Held(reaches.0.iter().map(of).collect())
    }

    /// Received tokens that `chunk` adds: the keys it sees that are not held, less its own that were received.
    pub fn added(&self, reaches: &Reaches, chunk: u32) -> i64 {
        let of = |(held, (reach, weight)): (&Vec<Range>, &(Reach, i64))| {
            let new: i64 = reach.of(chunk).iter().map(|r| r.len() - covered(held, r)).sum();
            let kept = match reach.owned {
                Owned::Chunks => covered(held, &reach.tokens(chunk)),
                Owned::Side(_) => 0,
            };
            weight * (new - kept)
        };
        self.0.iter().zip(&reaches.0).map(of).sum()
    }

    /// Holds what `chunk` sees, and its own keys.
    pub fn add(&mut self, reaches: &Reaches, chunk: u32) {
        for (held, (reach, _)) in self.0.iter_mut().zip(&reaches.0) {
            for &run in reach.of(chunk) {
                insert(held, run);
            }
            if let Owned::Chunks = reach.owned {
                insert(held, reach.tokens(chunk));
            }
        }
    }
}

/// Tokens of `range` in the ascending disjoint ranges `held`.
fn covered(held: &[Range], range: &Range) -> i64 {
    let first = held.partition_point(|h| h.end <= range.start);
    held[first..]
        .iter()
        .take_while(|h| h.start < range.end)
        .map(|h| h.intersect(range).len())
        .sum()
}

/// Adds `range` to the ascending disjoint ranges `held`; neighbours that touch become one.
fn insert(held: &mut Vec<Range>, mut range: Range) {
    let first = held.partition_point(|h| h.end < range.start);
    let met = held[first..].partition_point(|h| h.start <= range.end);
    if met > 0 {
        range.start = range.start.min(held[first].start);
        range.end = range.end.max(held[first + met - 1].end);
    }
    held.splice(first..first + met, [range]);
}

/// Tokens in the union of `runs`, ascending by start, that are in none of the `count` ascending disjoint ranges `own`.
fn uncovered(runs: &[Range], count: usize, own: impl Fn(usize) -> Range) -> i64 {
    let (mut total, mut covered, mut next) = (0, i64::MIN, 0);
    for run in runs {
        let new = Range::new(run.start.max(covered), run.end);
        if new.is_empty() {
            continue;
        }
        covered = new.end;
        total += new.len();
        while next < count && own(next).end <= new.start {
            next += 1;
        }
        let mut met = next;
        while met < count && own(met).start < new.end {
            total -= own(met).intersect(&new).len();
            met += 1;
        }
        next = met.saturating_sub(1).max(next);
    }
    total
}
