//! The slices of a stage, in the coordinates of local tensors.

use super::needs::Part;
use super::side::PlacedRun;
use crate::types::{Band, Range, Slice, StageSlice};

/// How many earlier slices a slice is tried to merge with. Rows of a document see a few kinds of keys (a global
/// prefix, a window, itself), so what continues a slice stands a few places before it.
const LOOK_BACK: usize = 4;

/// The cells of `parts` whose keys lie in `keys`, ascending by (query row, key row).
///
/// `k - q` changes by the width of every gap between runs, so parts are cut at every run of keys (they lie inside
/// one run of queries already); inside one such pair the band only shifts. What then continues a neighbour with the
/// same local band is joined to it.
pub(super) fn local_slices(parts: &[Part], keys: &[PlacedRun], source: u8) -> Vec<StageSlice> {
    let mut across: Vec<Slice> = Vec::new();
    for part in parts {
        cut_at_keys(part, keys, &mut across);
    }
    across.sort_unstable();
    let mut down: Vec<Slice> = Vec::with_capacity(across.len());
    for slice in across {
        let from = down.len().saturating_sub(LOOK_BACK);
        let met = down[from..]
            .iter_mut()
            .rev()
            .find_map(|d| join(d, &slice).map(|joined| (d, joined)));
        match met {
            Some((earlier, joined)) => *earlier = joined,
            None => down.push(slice),
        }
    }
    down.sort_unstable();
    down.into_iter()
        .map(|slice| StageSlice { slice, source })
        .collect()
}

/// The local slices of one part, neighbours joined. Runs of keys that all rows of the part see lie side by side in
/// local rows and are taken at once: O(log runs + runs that an edge of the band crosses).
fn cut_at_keys(part: &Part, keys: &[PlacedRun], out: &mut Vec<Slice>) {
    let (rows, seen) = (part.slice.q, part.slice.k);
    let by_all = Range::new(part.slice.k_lo(rows.end - 1), part.slice.k_hi(rows.start));
    let mut last: Option<Slice> = None;
    let mut next = keys.partition_point(|r| r.tokens.end <= seen.start);
    while let Some(run) = keys.get(next).filter(|r| r.tokens.start < seen.end) {
        let mut whole = 0;
        if by_all.start <= run.tokens.start {
            whole = keys[next..].partition_point(|r| r.tokens.end <= by_all.end);
        }
        let local = if whole > 0 {
            let end = &keys[next + whole - 1];
            let columns = Range::new(run.row, end.row + end.tokens.len());
            Slice::new(rows.shift(part.row_shift), columns, Band::FULL)
        } else {
            let cut = part.slice.cut(&rows, &run.tokens);
            cut.shift(part.row_shift, run.row - run.tokens.start).tighten()
        };
        next += whole.max(1);
        if local.q.is_empty() {
            continue;
        }
        match last.and_then(|l| join(&l, &local)) {
            Some(joined) => last = Some(joined),
            None => out.extend(last.replace(local)),
        }
    }
    out.extend(last);
}

/// The one slice whose cells are exactly those of `a` and `b`, which share none and are tight; `None` if there is none.
pub(super) fn join(a: &Slice, b: &Slice) -> Option<Slice> {
    let touch = |x: &Range, y: &Range| x.start <= y.end && y.start <= x.end;
    if !touch(&a.q, &b.q) || !touch(&a.k, &b.k) {
        return None;
    }
    let (a_lo, a_hi, b_lo, b_hi) = (a.band.lo, a.band.hi, b.band.lo, b.band.hi);
    if (a_lo != b_lo && a.band.has_lo() && b.band.has_lo())
        || (a_hi != b_hi && a.band.has_hi() && b.band.has_hi())
    {
        return None;
    }
    let band = Band::new(a_lo.max(b_lo), a_hi.min(b_hi));
    let hull = |x: &Range, y: &Range| Range::new(x.start.min(y.start), x.end.max(y.end));
    let joined = Slice::new(hull(&a.q, &b.q), hull(&a.k, &b.k), band);
    // Both lie inside when the common band cuts neither; nothing else does when the areas add up.
    let (area_a, area_b) = (a.area(), b.area());
    let inside = Slice::new(a.q, a.k, band).area() == area_a && Slice::new(b.q, b.k, band).area() == area_b;
    (inside && joined.area() == area_a + area_b).then_some(joined)
}
