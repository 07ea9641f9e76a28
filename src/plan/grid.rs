//! A mask as a grid of blocks: the cells between the queries of one rank and the keys of one rank.

use super::needs::{extend, for_each_meeting};
use super::placement::Placement;
use super::side::OwnedRun;
use crate::types::{Mask, Range, Ranges, Side, Slice};

/// With more pairs of runs than this, laying the grid out would take longer than all else that planning does.
const MOST_PAIRS: i64 = 1 << 22;
/// With more blocks than this, finding a good rank for each would take minutes.
const MOST_BLOCKS: usize = 1 << 17;

/// The visible cells of one pair of owners.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub row_owner: u32,
    pub column_owner: u32,
    pub area: i64,
    /// Queries of the row owner that see keys of the column owner.
    pub rows: Ranges,
    /// Keys of the column owner that queries of the row owner see.
    pub keys: Ranges,
}

/// The blocks that have cells, ascending by row owner, then column owner.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub world: usize,
    pub blocks: Vec<Block>,
}

/// A block in the making.
#[derive(Default)]
struct Parts {
    area: i64,
    rows: Vec<Range>,
    keys: Vec<Range>,
}

impl Grid {
    /// The grid of `mask`, whose totals are those of `placement`; `None` when it has too many pieces to be worth it. The
    /// same on every rank.
    pub fn new(mask: &Mask, placement: &Placement) -> Option<Grid> {
        if pairs(mask, placement) > MOST_PAIRS {
            return None;
        }
        let world = placement.world();
        let mut index = vec![u32::MAX; world * world];
        let mut parts: Vec<(usize, Parts)> = Vec::new();
        for_each_pair(mask, placement, |query, key, cut| {
            let at = query.owner as usize * world + key.owner as usize;
            if index[at] == u32::MAX {
                index[at] = parts.len() as u32;
                parts.push((at, Parts::default()));
            }
            let block = &mut parts[index[at] as usize].1;
            block.area += cut.area();
            extend(&mut block.rows, cut.visible_rows());
            extend(&mut block.keys, cut.visible_keys());
        });
        if parts.len() > MOST_BLOCKS {
            return None;
        }
        parts.sort_unstable_by_key(|p| p.0);
        let block = |(at, parts): (usize, Parts)| Block {
            row_owner: (at / world) as u32,
            column_owner: (at % world) as u32,
            area: parts.area,
            rows: Ranges::from_unsorted(parts.rows),
            keys: Ranges::from_unsorted(parts.keys),
        };
        Some(Grid {
            world,
            blocks: parts.into_iter().map(block).collect(),
        })
    }
}

/// The runs of keys that a slice sees, of all ranks.
fn key_runs<'a>(placement: &'a Placement, cut: &Slice) -> &'a [OwnedRun] {
    let keys = placement.side(Side::K);
    let seen = cut.visible_keys();
    if seen.is_empty() {
        return &[];
    }
    let first = keys.first_run_after(seen.start);
    let rest = &keys.all_runs()[first..];
    &rest[..rest.partition_point(|r| r.tokens.start < seen.end)]
}

/// How often `for_each_pair` would call, or a few times more. O(slices and query runs that meet, times log runs).
fn pairs(mask: &Mask, placement: &Placement) -> i64 {
    let mut count = 0;
    for_each_meeting(mask, placement.side(Side::Q), |_, cut| {
        count += key_runs(placement, &cut).len() as i64;
    });
    count
}

/// Calls `see(query run, key run, slice cut to both)` wherever a slice has cells between two runs; for each query run of a
/// slice in ascending order of keys.
pub(super) fn for_each_pair(
    mask: &Mask,
    placement: &Placement,
    mut see: impl FnMut(&OwnedRun, &OwnedRun, Slice),
) {
    let queries = placement.side(Side::Q);
    for_each_meeting(mask, queries, |run, cut| {
        for key in key_runs(placement, &cut) {
            let both = cut.cut(&cut.q, &key.tokens);
            if !both.is_empty() {
                see(&queries.all_runs()[run], key, both);
            }
        }
    });
}
