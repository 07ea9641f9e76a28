//! What ranks compute and which keys that takes.

use super::placement::Placement;
use super::side::SidePlacement;
use crate::types::{Mask, Range, Ranges, Side, Slice};

/// The part of a mask's slice that lies in one run of a rank's queries, in global coordinates and tight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub slice: Slice,
    /// Index of the query run among the rank's runs.
    pub run: usize,
    /// Local row of a query minus its global token.
    pub row_shift: i64,
}

/// Calls `meet(index in all_runs, slice cut to that run)` for every slice and every run that sees part of it.
/// O(slices log runs + pairs that meet).
pub(super) fn for_each_meeting(mask: &Mask, queries: &SidePlacement, mut meet: impl FnMut(usize, Slice)) {
    let runs = queries.all_runs();
    for slice in mask.slices() {
        let rows = slice.visible_rows();
        if rows.is_empty() {
            continue;
        }
        let first = queries.first_run_after(rows.start);
        for (i, run) in runs.iter().enumerate().skip(first) {
            if run.tokens.start >= rows.end {
                break;
            }
            meet(i, slice.cut(&run.tokens, &slice.k));
        }
    }
}

/// What every rank needs to compute its queries, and the parts of one of them.
#[derive(Clone, Debug)]
pub(super) struct Needs {
    /// Of each rank, the keys that its queries see and that it does not own.
    pub remote: Vec<Ranges>,
    /// What the rank asked for computes, ascending by query run; within a run in the mask's order.
    pub parts: Vec<Part>,
}

impl Needs {
    /// The needs of all ranks, and the parts of `rank` if one is named.
    pub fn new(mask: &Mask, placement: &Placement, rank: Option<usize>) -> Needs {
        let queries = placement.side(Side::Q);
        let runs = queries.all_runs();
        let mut seen: Vec<Vec<Range>> = vec![Vec::new(); placement.world()];
        let mut parts = Vec::new();
        for_each_meeting(mask, queries, |i, cut| {
            let owner = runs[i].owner as usize;
            extend(&mut seen[owner], cut.visible_keys());
            if rank == Some(owner) {
                parts.push((i, cut.tighten()));
            }
        });
        let own = |(rank, keys)| Ranges::from_unsorted(keys).subtract(placement.side(Side::K).runs(rank));
        Needs {
            remote: seen.into_iter().enumerate().map(own).collect(),
            parts: number(parts, queries),
        }
    }
}

/// Adds keys to an unsorted list, into the last range where they touch it: slices and runs come in ascending order
/// more often than not, and a causal mask then keeps one range a rank.
pub(super) fn extend(list: &mut Vec<Range>, keys: Range) {
    match list.last_mut() {
        Some(last) if keys.start <= last.end && last.start <= keys.end => {
            *last = Range::new(last.start.min(keys.start), last.end.max(keys.end));
        }
        _ => list.push(keys),
    }
}

/// Turns indices into all runs into indices into the rank's own.
pub(super) fn number(mut parts: Vec<(usize, Slice)>, queries: &SidePlacement) -> Vec<Part> {
    parts.sort_by_key(|p| p.0);
    let (mut run, mut last) = (0, None);
    parts
        .into_iter()
        .map(|(i, slice)| {
            let placed = queries.all_runs()[i];
            if last != Some(i) {
                run = queries
                    .runs(placed.owner as usize)
                    .first_run_after(placed.tokens.start);
                last = Some(i);
            }
            Part {
                slice,
                run,
                row_shift: placed.row - placed.tokens.start,
            }
        })
        .collect()
}
