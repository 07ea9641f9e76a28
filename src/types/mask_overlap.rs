//! Finds a cell that two slices of a mask both cover.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Band, Slice};

/// Two slices and a cell that both cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overlap {
    /// Index of the earlier slice.
    pub first: usize,
    /// Index of the later slice.
    pub second: usize,
    /// Query of the cell.
    pub q: i64,
    /// Key of the cell.
    pub k: i64,
}

/// The first cell, in row order, that both slices cover. Closed form: two rectangles with bands meet in a rectangle
/// with a band.
fn common_cell(a: &Slice, b: &Slice) -> Option<(i64, i64)> {
    let band = Band::new(a.band.lo.max(b.band.lo), a.band.hi.min(b.band.hi));
    let both = Slice::new(a.q.intersect(&b.q), a.k.intersect(&b.k), band);
    let rows = both.visible_rows();
    (!rows.is_empty()).then(|| (rows.start, both.k_lo(rows.start)))
}

/// A slice that the row of the sweep crosses. Every row of `slice` sees at least one key.
#[derive(Clone, Copy, Debug)]
struct Active {
    index: usize,
    slice: Slice,
}

impl Ord for Active {
    /// Left to right on the first row that both cross.
    ///
    /// Both ends of a row's keys move by 0 or 1 from row to row, so two slices that share no cell never change
    /// sides while both are crossed: any common row gives the same answer, and the sweep keeps only slices that
    /// have the current row in common. Between other slices this is no order, and none is asked for.
    fn cmp(&self, other: &Self) -> Ordering {
        let row = self.slice.q.start.max(other.slice.q.start);
        self.slice.k_lo(row).cmp(&other.slice.k_lo(row))
    }
}

impl PartialOrd for Active {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Active {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Active {}

fn meet(a: &Active, b: &Active) -> Option<Overlap> {
    let (q, k) = common_cell(&a.slice, &b.slice)?;
    Some(Overlap {
        first: a.index.min(b.index),
        second: a.index.max(b.index),
        q,
        k,
    })
}

/// A pair of slices with a common cell, if there is any; the same one for equal input. Ranges must lie inside
/// totals that were checked, bands inside `[Band::NO_LO, Band::NO_HI]`.
///
/// Sweeps down the rows with the slices that cross the current row in key order. When two slices meet for the first
/// time, nothing stands between them in that row, so it is enough to test neighbours, each pair over all its rows at
/// once, when they become neighbours: when a slice comes in or goes out. O(S log S) for S slices of any arrangement,
/// however many rectangles overlap without sharing a cell.
pub(super) fn find_overlap(slices: &[Slice]) -> Option<Overlap> {
    let by_start = {
        let mut all: Vec<Active> = (slices.iter().enumerate())
            .map(|(index, s)| Active {
                index,
                slice: Slice::new(s.visible_rows(), s.k, s.band),
            })
            .filter(|a| !a.slice.q.is_empty())
            .collect();
        all.sort_by_key(|a| a.slice.q.start);
        all
    };
    let mut by_end = by_start.clone();
    by_end.sort_by_key(|a| a.slice.q.end);
    let mut leaving = by_end.iter().peekable();
    let mut active = BTreeSet::new();
    for new in &by_start {
        while let Some(old) = leaving.next_if(|old| old.slice.q.end <= new.slice.q.start) {
            if let Some(found) = retire(&mut active, old) {
                return Some(found);
            }
        }
        let left = active.range(..new).next_back();
        let right = active.range(new..).next();
        if let Some(found) = left.into_iter().chain(right).find_map(|near| meet(near, new)) {
            return Some(found);
        }
        active.insert(*new);
    }
    leaving.find_map(|old| retire(&mut active, old))
}

/// Takes `old` out and tests the two slices that become neighbours by that.
fn retire(active: &mut BTreeSet<Active>, old: &Active) -> Option<Overlap> {
    active.remove(old);
    let left = active.range(..old).next_back()?;
    let right = active.range(old..).next()?;
    meet(left, right)
}
