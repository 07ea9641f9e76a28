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
        let mut last: Option<Slice> = None;
        let seen = part.slice.k;
        let first = keys.partition_point(|r| r.tokens.end <= seen.start);
        for run in keys[first..].iter().take_while(|r| r.tokens.start < seen.end) {
            let cut = part.slice.cut(&part.slice.q, &run.tokens);
            let local = cut.shift(part.row_shift, run.row - run.tokens.start).tighten();
            if local.q.is_empty() {
                continue;
            }
            match last.and_then(|l| join(&l, &local)) {
                Some(joined) => last = Some(joined),
                None => across.extend(last.replace(local)),
            }
        }
        across.extend(last);
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

/// The one slice whose cells are exactly those of `a` and `b`, which share none and are tight; `None` if there is none.
fn join(a: &Slice, b: &Slice) -> Option<Slice> {
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
