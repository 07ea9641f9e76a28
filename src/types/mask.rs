//! Masks: the union of slices that share no cell.

use super::{Error, Range, Result, Slice, TypedSlice};

/// Which keys every query sees, as slices whose cells are disjoint. Immutable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mask {
    slices: Vec<Slice>,
    total_q: i64,
    total_k: i64,
}

impl Mask {
    /// Largest total of either side.
    pub const MAX_TOKENS: i64 = 1 << 31;

    /// The mask of typed slices over `total_q` queries and `total_k` keys.
    ///
    /// Slices may share query rows and key columns, and may be empty; a cell covered twice is
    /// `Status::MaskOverlap`, a range out of order or outside its total `Status::InvalidRange`.
    pub fn new(typed: &[TypedSlice], total_q: i64, total_k: i64) -> Result<Mask> {
        check_totals(total_q, total_k)?;
        for (i, t) in typed.iter().enumerate() {
            check_rectangle(i, &t.q, &t.k, total_q, total_k)?;
        }
        Mask::from_slices(typed.iter().map(Slice::from_typed).collect(), total_q, total_k)
    }

    /// The mask of slices with any band.
    pub fn from_slices(slices: Vec<Slice>, total_q: i64, total_k: i64) -> Result<Mask> {
        check_totals(total_q, total_k)?;
        for (i, s) in slices.iter().enumerate() {
            check_rectangle(i, &s.q, &s.k, total_q, total_k)?;
        }
        Ok(Mask {
            slices,
            total_q,
            total_k,
        })
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
}

fn check_totals(total_q: i64, total_k: i64) -> Result<()> {
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
