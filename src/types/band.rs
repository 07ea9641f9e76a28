//! The diagonal band of a slice: which keys a row sees relative to its own position.

/// `lo <= k - q <= hi`. Either side may be unbounded.
///
/// A band is the truth of a mask; the four mask types are only spellings of it. Bands are closed under
/// cutting a slice and under shifting its coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Band {
    /// Least `k - q`; `Band::NO_LO` when unbounded.
    pub lo: i64,
    /// Greatest `k - q`; `Band::NO_HI` when unbounded.
    pub hi: i64,
}

impl Band {
    /// No lower bound. A quarter of the range of i64, so that adding a position never overflows.
    pub const NO_LO: i64 = i64::MIN / 4;
    /// No upper bound.
    pub const NO_HI: i64 = i64::MAX / 4;
    /// Everything is visible.
    pub const FULL: Band = Band {
        lo: Self::NO_LO,
        hi: Self::NO_HI,
    };

    /// `lo <= k - q <= hi`.
    pub const fn new(lo: i64, hi: i64) -> Self {
        Self { lo, hi }
    }

    /// Whether `lo` bounds anything.
    pub const fn has_lo(&self) -> bool {
        self.lo != Self::NO_LO
    }

    /// Whether `hi` bounds anything.
    pub const fn has_hi(&self) -> bool {
        self.hi != Self::NO_HI
    }

    /// Whether the cell is visible.
    pub const fn contains(&self, q: i64, k: i64) -> bool {
        self.lo <= k - q && k - q <= self.hi
    }

    /// The band in coordinates where queries moved by `dq` and keys by `dk`. Unbounded sides stay so.
    pub fn shift(&self, dq: i64, dk: i64) -> Band {
        Band {
            lo: if self.has_lo() { self.lo + dk - dq } else { self.lo },
            hi: if self.has_hi() { self.hi + dk - dq } else { self.hi },
        }
    }
}
