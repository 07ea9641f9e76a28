//! Rectangles with a band: the pieces a mask is made of.

use super::{Band, Error, Range, Result, Status};

/// The four spellings of a slice's band, as they come in and are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum MaskType {
    /// Every cell of the rectangle.
    Full = 0,
    /// `k - q <= ke - qe`: the diagonal ends in the bottom-right corner.
    Causal = 1,
    /// `k - q >= ks - qs`: the diagonal starts in the top-left corner.
    InvCausal = 2,
    /// Both bounds.
    BiCausal = 3,
}

impl MaskType {
    /// The type numbered `value` in the ABI.
    pub fn from_i32(value: i32) -> Result<MaskType> {
        match value {
            0 => Ok(MaskType::Full),
            1 => Ok(MaskType::Causal),
            2 => Ok(MaskType::InvCausal),
            3 => Ok(MaskType::BiCausal),
            _ => Err(Error::new(
                Status::InvalidEnum,
                format!(
                    "mask_type is {value}; it must be 0 (full), 1 (causal), 2 (inv_causal) or 3 (bi_causal)"
                ),
            )),
        }
    }

    /// Name in text files.
    pub const fn name(self) -> &'static str {
        match self {
            MaskType::Full => "full",
            MaskType::Causal => "causal",
            MaskType::InvCausal => "inv_causal",
            MaskType::BiCausal => "bi_causal",
        }
    }
}

/// A slice as it is spelled: a rectangle and one of four types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypedSlice {
    /// Query rows.
    pub q: Range,
    /// Key columns.
    pub k: Range,
    /// Which corners the diagonals run through.
    pub mask_type: MaskType,
}

/// A slice as it is: the cells of `q` x `k` inside `band`.
///
/// Row `q` sees the one interval of keys `[k_lo(q), k_hi(q))`; both ends move by 0 or 1 from row to row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Slice {
    /// Query rows.
    pub q: Range,
    /// Key columns.
    pub k: Range,
    /// Bound on `k - q`.
    pub band: Band,
}

/// Sum of `clamp(q + offset, low, high)` over the rows `[q0, q1)`; `low <= high`. Closed form.
fn sum_clamped(q0: i64, q1: i64, offset: i64, low: i64, high: i64) -> i64 {
    // Rows below `a` give low, rows from `b` on give high, rows between give q + offset.
    let a = low.saturating_sub(offset).clamp(q0, q1);
    let b = high.saturating_sub(offset).clamp(a, q1);
    let middle = b - a;
    // middle * (first + last) is even whenever it is nonzero: it is the sum of an arithmetic series, twice.
    let series = if middle > 0 {
        middle * ((a + offset) + (b - 1 + offset)) / 2
    } else {
        0
    };
    (a - q0) * low + series + (q1 - b) * high
}

impl Slice {
    /// The cells of `q` x `k` inside `band`.
    pub const fn new(q: Range, k: Range, band: Band) -> Self {
        Self { q, k, band }
    }

    /// Parses one of the four types: causal is bottom-right aligned, inv_causal top-left.
    pub fn from_typed(t: &TypedSlice) -> Slice {
        let upper = t.k.end - t.q.end;
        let lower = t.k.start - t.q.start;
        let band = match t.mask_type {
            MaskType::Full => Band::FULL,
            MaskType::Causal => Band::new(Band::NO_LO, upper),
            MaskType::InvCausal => Band::new(lower, Band::NO_HI),
            MaskType::BiCausal => Band::new(lower, upper),
        };
        Slice::new(t.q, t.k, band)
    }

    /// First key that row `q` sees, were the row not empty; always inside `[k.start, k.end]`.
    pub fn k_lo(&self, q: i64) -> i64 {
        (q + self.band.lo).clamp(self.k.start, self.k.end.max(self.k.start))
    }

    /// One past the last key that row `q` sees; `<= k_lo` when the row sees nothing.
    pub fn k_hi(&self, q: i64) -> i64 {
        (q + self.band.hi + 1).clamp(self.k.start, self.k.end.max(self.k.start))
    }

    /// Number of visible cells, in closed form.
    pub fn area(&self) -> i64 {
        let rows = self.visible_rows();
        if rows.is_empty() {
            return 0;
        }
        let (ks, ke) = (self.k.start, self.k.end);
        // On visible rows k_hi > k_lo, so the area is the difference of two sums of clamped lines.
        sum_clamped(rows.start, rows.end, self.band.hi + 1, ks, ke)
            - sum_clamped(rows.start, rows.end, self.band.lo, ks, ke)
    }

    /// The rows that see at least one key: one interval, because both ends of a row's keys are monotone.
    pub fn visible_rows(&self) -> Range {
        if self.q.is_empty() || self.k.is_empty() || self.band.lo > self.band.hi {
            return Range::new(self.q.start, self.q.start);
        }
        // Row q sees a key iff q + hi >= k.start and q + lo <= k.end - 1.
        let start = self.q.start.max(self.k.start - self.band.hi);
        let end = self.q.end.min(self.k.end - self.band.lo);
        Range::new(start, end.max(start))
    }

    /// The keys that at least one row sees: one interval.
    pub fn visible_keys(&self) -> Range {
        let rows = self.visible_rows();
        if rows.is_empty() {
            return Range::new(self.k.start, self.k.start);
        }
        Range::new(self.k_lo(rows.start), self.k_hi(rows.end - 1))
    }

    /// Whether no cell is visible.
    pub fn is_empty(&self) -> bool {
        self.visible_rows().is_empty()
    }

    /// Whether every cell of the rectangle is visible (true for an empty rectangle).
    pub fn is_full(&self) -> bool {
        self.q.is_empty()
            || self.k.is_empty()
            || (self.k.start - (self.q.end - 1) >= self.band.lo
                && self.k.end - 1 - self.q.start <= self.band.hi)
    }

    /// Whether the cell is visible.
    pub fn contains(&self, q: i64, k: i64) -> bool {
        self.q.contains(q) && self.k.contains(k) && self.band.contains(q, k)
    }

    /// The part with queries in `q` and keys in `k`; the band stays.
    pub fn cut(&self, q: &Range, k: &Range) -> Slice {
        Slice::new(self.q.intersect(q), self.k.intersect(k), self.band)
    }

    /// Queries moved by `dq`, keys by `dk`, the visible cells with them.
    pub fn shift(&self, dq: i64, dk: i64) -> Slice {
        Slice::new(self.q.shift(dq), self.k.shift(dk), self.band.shift(dq, dk))
    }

    /// The same cells with the smallest rectangle, and with band sides that cut nothing made unbounded.
    /// An empty slice becomes an empty rectangle at its own corner.
    pub fn tighten(&self) -> Slice {
        let (q, k) = (self.visible_rows(), self.visible_keys());
        if q.is_empty() {
            return Slice::new(
                Range::new(self.q.start, self.q.start),
                Range::new(self.k.start, self.k.start),
                Band::FULL,
            );
        }
        let lo = if k.start - (q.end - 1) >= self.band.lo {
            Band::NO_LO
        } else {
            self.band.lo
        };
        let hi = if k.end - 1 - q.start <= self.band.hi {
            Band::NO_HI
        } else {
            self.band.hi
        };
        Slice::new(q, k, Band::new(lo, hi))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(s: &Slice) -> i64 {
        (s.q.start..s.q.end)
            .flat_map(|q| (s.k.start..s.k.end).map(move |k| (q, k)))
            .filter(|&(q, k)| s.contains(q, k))
            .count() as i64
    }

    fn any_slice() -> impl Strategy<Value = Slice> {
        (
            0..20i64,
            0..20i64,
            0..20i64,
            0..20i64,
            0..4i32,
            -25..25i64,
            -25..25i64,
            any::<bool>(),
        )
            .prop_map(|(qs, ql, ks, kl, ty, lo, hi, typed)| {
                let (q, k) = (Range::new(qs, qs + ql), Range::new(ks, ks + kl));
                if typed {
                    Slice::from_typed(&TypedSlice {
                        q,
                        k,
                        mask_type: MaskType::from_i32(ty).unwrap(),
                    })
                } else {
                    let band = match ty {
                        0 => Band::FULL,
                        1 => Band::new(Band::NO_LO, hi),
                        2 => Band::new(lo, Band::NO_HI),
                        _ => Band::new(lo, hi),
                    };
                    Slice::new(q, k, band)
                }
            })
    }

    #[test]
    fn areas_known_in_closed_form() {
        let slice = |sq: i64, sk: i64, ty| {
            Slice::from_typed(&TypedSlice {
                q: Range::new(5, 5 + sq),
                k: Range::new(9, 9 + sk),
                mask_type: ty,
            })
        };
        assert_eq!(slice(7, 11, MaskType::Full).area(), 77);
        assert_eq!(slice(7, 11, MaskType::Causal).area(), (2 * 11 - 7 + 1) * 7 / 2);
        assert_eq!(slice(7, 11, MaskType::InvCausal).area(), (2 * 11 - 7 + 1) * 7 / 2);
        assert_eq!(slice(7, 11, MaskType::BiCausal).area(), (11 - 7 + 1) * 7);
        assert_eq!(slice(11, 7, MaskType::BiCausal).area(), 0);
        assert_eq!(slice(9, 9, MaskType::BiCausal).area(), 9);
        assert_eq!(
            slice(1 << 24, 1 << 24, MaskType::Causal).area(),
            ((1i64 << 24) + 1) * (1i64 << 23)
        );
    }

    proptest! {
        #[test]
        fn area_counts_cells(s in any_slice()) {
            prop_assert_eq!(s.area(), count(&s));
            prop_assert_eq!(s.is_empty(), count(&s) == 0);
            prop_assert_eq!(s.is_full(), count(&s) == s.q.len() * s.k.len());
        }

        #[test]
        fn rows_see_one_interval(s in any_slice()) {
            for q in s.q.start..s.q.end {
                let seen: Vec<i64> = (s.k.start..s.k.end).filter(|&k| s.contains(q, k)).collect();
                let (lo, hi) = (s.k_lo(q), s.k_hi(q));
                prop_assert_eq!(seen.clone(), (lo..hi.max(lo)).collect::<Vec<_>>());
                prop_assert_eq!(s.visible_rows().contains(q), !seen.is_empty());
            }
            for k in s.k.start..s.k.end {
                let seen = (s.q.start..s.q.end).any(|q| s.contains(q, k));
                prop_assert!(!seen || s.visible_keys().contains(k));
            }
        }

        #[test]
        fn cut_shift_and_tighten_keep_cells(s in any_slice(), a in 0..40i64, b in 0..40i64, c in 0..40i64, d in 0..40i64) {
            let cut = s.cut(&Range::new(a, b), &Range::new(c, d));
            let moved = s.shift(a, c);
            let tight = s.tighten();
            for q in 0..40 {
                for k in 0..40 {
                    let inside = (a..b).contains(&q) && (c..d).contains(&k);
                    prop_assert_eq!(cut.contains(q, k), s.contains(q, k) && inside);
                    prop_assert_eq!(moved.contains(q + a, k + c), s.contains(q, k));
                    prop_assert_eq!(tight.contains(q, k), s.contains(q, k));
                }
            }
            prop_assert_eq!(cut.area(), count(&cut));
        }
    }
}
