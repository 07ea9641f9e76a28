//! Half-open intervals of tokens.

/// Tokens `[start, end)`. Empty when `end <= start`; negative starts are refused where ranges come in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Range {
    /// First token.
    pub start: i64,
    /// One past the last token.
    pub end: i64,
}

impl Range {
    /// `[start, end)`.
    pub const fn new(start: i64, end: i64) -> Self {
        Self { start, end }
    }

    /// Number of tokens; 0 when the range is empty.
    pub const fn len(&self) -> i64 {
        if self.end > self.start {
            self.end - self.start
        } else {
            0
        }
    }

    /// Whether no token is inside.
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether `token` is inside.
    pub const fn contains(&self, token: i64) -> bool {
        self.start <= token && token < self.end
    }

    /// The tokens in both; empty (with `start` where the overlap would begin) when they do not meet.
    pub fn intersect(&self, other: &Range) -> Range {
        let start = self.start.max(other.start);
        Range::new(start, self.end.min(other.end).max(start))
    }

    /// Both ends moved by `by`.
    pub const fn shift(&self, by: i64) -> Range {
        Range::new(self.start + by, self.end + by)
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}
