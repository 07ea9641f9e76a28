//! How queries and keys are cut into blocks, and which slices reach into a block.

use super::panel::Rows;
use super::product::{Bounds, MAX_ROWS, PANEL};
use super::scratch::with_room;
use crate::types::{AttnShape, Range, Result, Slice};

/// Most elements of one packed block (256 KiB of doubles): the blocks at work about fill the second cache. Half of it
/// costs a third of the speed at head_dim 1024, where packing then takes as long as multiplying.
const BLOCK_ELEMENTS: usize = 32_768;

/// Sizes of blocks, from the shape alone: results must not depend on anything else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocking {
    /// Query heads of one key head.
    group: usize,
    /// Key heads.
    heads_kv: usize,
    /// Query heads of one block of rows: the group, or a part of it when it is larger than a block.
    heads: usize,
    /// Query tokens of one block of rows.
    pub tokens: i64,
    /// Key tokens of one block.
    pub keys: i64,
}

impl Blocking {
    /// Block sizes for `shape`.
    pub fn new(shape: &AttnShape) -> Blocking {
        let width = shape.head_dim.max(shape.head_dim_v) as usize;
        let rows = (BLOCK_ELEMENTS / width / PANEL * PANEL).clamp(16, MAX_ROWS);
        let group = shape.group() as usize;
        let heads = group.min(rows);
        Blocking {
            group,
            heads_kv: shape.heads_kv as usize,
            heads,
            tokens: (rows / heads) as i64,
            keys: rows as i64,
        }
    }

    /// Most rows of a block of either kind.
    pub fn rows(&self) -> usize {
        (self.heads * self.tokens as usize).max(self.keys as usize)
    }

    /// Parts into which the query heads of one key head are cut.
    pub fn parts(&self) -> usize {
        self.group.div_ceil(self.heads)
    }

    /// Units of work over `blocks` blocks of queries.
    pub fn query_units(&self, blocks: usize) -> usize {
        blocks * self.heads_kv * self.parts()
    }

    /// `(block, key head, part)` of a unit.
    pub fn query_unit(&self, unit: usize) -> (usize, usize, usize) {
        let (rest, part) = (unit / self.parts(), unit % self.parts());
        (rest / self.heads_kv, rest % self.heads_kv, part)
    }

    /// Rows of the query heads in `part` of key head `kv`, for the tokens of `range`.
    pub fn query_rows(&self, range: Range, kv: usize, part: usize) -> Rows {
        let first = part * self.heads;
        Rows {
            token: range.start,
            tokens: range.len() as usize,
            head: kv * self.group + first,
            heads: self.heads.min(self.group - first),
        }
    }
}

/// Tokens of block `i`.
pub(super) fn block_range(i: usize, size: i64, tokens: i64) -> Range {
    let start = i as i64 * size;
    Range::new(start, (start + size).min(tokens))
}

/// Number of blocks.
pub(super) fn block_count(size: i64, tokens: i64) -> usize {
    (tokens as u64).div_ceil(size as u64) as usize
}

/// For every block the slices that reach into it, in their order (compressed rows).
pub(super) struct Reach {
    starts: Vec<usize>,
    slices: Vec<u32>,
}

impl Reach {
    /// Of `blocks` blocks of `size` tokens; `ranges` are the tokens of every slice, none of them empty and all inside.
    pub fn new(ranges: impl Iterator<Item = Range> + Clone, size: i64, blocks: usize) -> Result<Reach> {
        let span = |r: Range| (r.start / size) as usize..((r.end - 1) / size + 1) as usize;
        let mut starts = with_room(blocks + 1)?;
        starts.resize(blocks + 1, 0usize);
        for r in ranges.clone() {
            span(r).for_each(|b| starts[b + 1] += 1);
        }
        for b in 0..blocks {
            starts[b + 1] += starts[b];
        }
        let mut slices = with_room(starts[blocks])?;
        slices.resize(starts[blocks], 0);
        let mut at = with_room(blocks)?;
        at.extend_from_slice(&starts[..blocks]);
        for (i, r) in ranges.enumerate() {
            for b in span(r) {
                slices[at[b]] = i as u32;
                at[b] += 1;
            }
        }
        Ok(Reach { starts, slices })
    }

    /// Indices of the slices that reach into `block`.
    pub fn of(&self, block: usize) -> impl Iterator<Item = usize> + '_ {
        let slices = &self.slices[self.starts[block]..self.starts[block + 1]];
        slices.iter().map(|&i| i as usize)
    }
}

/// What query rows see of the keys `[keys.start, keys.end)`, as columns counted from `keys.start`.
pub(super) fn query_bounds(slice: &Slice, rows: &Rows, keys: Range, to: &mut [Bounds]) {
    for ((token, _), to) in rows.iter().zip(to) {
        *to = if slice.q.contains(token) {
            columns(slice.k_lo(token), slice.k_hi(token), keys, 1)
        } else {
            Bounds::default()
        };
    }
}

/// Which of `queries` see each key, as columns counted from the first of them.
pub(super) fn key_bounds(slice: &Slice, keys: &Rows, queries: &Rows, to: &mut [Bounds]) {
    let tokens = Range::new(queries.token, queries.token + queries.tokens as i64).intersect(&slice.q);
    for ((key, _), to) in keys.iter().zip(to) {
        *to = if slice.k.contains(key) {
            // lo <= k - q <= hi, solved for q.
            let seen = tokens.intersect(&Range::new(key - slice.band.hi, key - slice.band.lo + 1));
            let base = Range::new(queries.token, queries.token + queries.tokens as i64);
            columns(seen.start, seen.end, base, queries.heads)
        } else {
            Bounds::default()
        };
    }
}

/// `[lo, hi)` inside `base`, counted from its start in units of `each` columns; empty is (0, 0).
fn columns(lo: i64, hi: i64, base: Range, each: usize) -> Bounds {
    let (lo, hi) = (lo.max(base.start), hi.min(base.end));
    if lo >= hi {
        return Bounds::default();
    }
    let column = |token: i64| ((token - base.start) as usize * each) as u32;
    Bounds {
        lo: column(lo),
        hi: column(hi),
    }
}
