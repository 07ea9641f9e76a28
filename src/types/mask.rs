//! Masks: the union of slices that share no cell.

use super::mask_overlap::find_overlap;
use super::{Band, Error, Range, Result, Slice, Status, TypedSlice};

/// Which keys every query sees, as slices whose cells are disjoint. Immutable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mask {
    slices: Vec<Slice>,
    total_q: i64,
    total_k: i64,
}

/// cbindgen:ignore
impl Mask {
    /// Largest total of either side.
    pub const MAX_TOKENS: i64 = 1 << 31;

    /// The mask of typed slices over `total_q` queries and `total_k` keys.
    ///
    /// Slices may share query rows and key columns, and may be empty; a cell covered twice is
    /// `Status::MaskOverlap`, a range out of order or outside its total `Status::InvalidRange`.
    pub fn new(typed: &[TypedSlice], total_q: i64, total_k: i64) -> Result<Mask> {
        Mask::check_totals(total_q, total_k)?;
        for (i, t) in typed.iter().enumerate() {
            check_rectangle(i, &t.q, &t.k, total_q, total_k)?;
        }
        Mask::from_slices(typed.iter().map(Slice::from_typed).collect(), total_q, total_k)
    }

    /// The mask of slices with any band whose bounds lie between `Band::NO_LO` and `Band::NO_HI`. Errors as `new`.
    /// O(S log S) for S slices.
    pub fn from_slices(slices: Vec<Slice>, total_q: i64, total_k: i64) -> Result<Mask> {
        Mask::check_totals(total_q, total_k)?;
        for (i, s) in slices.iter().enumerate() {
            check_rectangle(i, &s.q, &s.k, total_q, total_k)?;
            check_band(i, &s.band)?;
        }
        if let Some(o) = find_overlap(&slices) {
            let (first, second, q, k) = (o.first, o.second, o.q, o.k);
            let message = format!("slices[{first}] and slices[{second}] both cover query {q}, key {k}");
            return Err(Error::new(Status::MaskOverlap, message));
        }
        Ok(Mask {
            slices,
            total_q,
            total_k,
        })
    }

    /// Totals are 0 to `MAX_TOKENS`, else `Status::InvalidRange`.
    pub(super) fn check_totals(total_q: i64, total_k: i64) -> Result<()> {
        for (name, total) in [("total_q", total_q), ("total_k", total_k)] {
            if !(0..=Mask::MAX_TOKENS).contains(&total) {
                return Err(Error::range(format!(
                    "{name} is {total}; it must be 0 to {}",
                    Mask::MAX_TOKENS
                )));
            }
        }
        Ok(())
    }

    /// The slices, in the order they were given.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }
    /// Number of query tokens.
    pub fn total_q(&self) -> i64 {
        self.total_q
    }
    /// Number of key tokens.
    pub fn total_k(&self) -> i64 {
        self.total_k
    }
    /// Number of visible cells.
    pub fn area(&self) -> i64 {
        self.slices.iter().map(Slice::area).sum()
    }

    /// The mask in the four types, as `Slice::to_typed` spells each slice; `Mask::new` makes the same cells of it.
    pub fn to_typed(&self) -> Vec<TypedSlice> {
        self.slices.iter().flat_map(Slice::to_typed).collect()
    }
}

fn check_rectangle(i: usize, q: &Range, k: &Range, total_q: i64, total_k: i64) -> Result<()> {
    for (side, r, total) in [("q", q, total_q), ("k", k, total_k)] {
        if !(0 <= r.start && r.start <= r.end && r.end <= total) {
            let want = format!("0 <= start <= end <= total_{side} ({total})");
            return Err(Error::range(format!(
                "slices[{i}].{side} is {r}; it must satisfy {want}"
            )));
        }
    }
    Ok(())
}

/// Bounds further out would overflow where positions are added to them.
fn check_band(i: usize, band: &Band) -> Result<()> {
    for (side, bound) in [("lo", band.lo), ("hi", band.hi)] {
        if !(Band::NO_LO..=Band::NO_HI).contains(&bound) {
            let (least, most) = (Band::NO_LO, Band::NO_HI);
            return Err(Error::range(format!(
                "slices[{i}].band.{side} is {bound}; it must be {least} (no bound) to {most} (no bound)"
            )));
        }
    }
    Ok(())
}
