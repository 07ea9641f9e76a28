//! Sets of tokens as ascending, disjoint, non-touching, non-empty ranges.

use super::Range;

/// A set of tokens in normal form: ascending, no range empty, no two of them touching.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The union of `ranges`, which may come in any order, touch, overlap or be empty.
    pub fn from_unsorted(mut ranges: Vec<Range>) -> Self {
        ranges.retain(|r| !r.is_empty());
        ranges.sort_unstable();
        let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
        for r in ranges {
            match out.last_mut() {
                Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
                _ => out.push(r),
            }
        }
        Self(out)
    }

    /// The runs, ascending.
    pub fn as_slice(&self) -> &[Range] {
        &self.0
    }

    /// The runs, ascending.
    pub fn iter(&self) -> std::slice::Iter<'_, Range> {
        self.0.iter()
    }

    /// Number of runs.
    pub fn runs(&self) -> usize {
        self.0.len()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> i64 {
        self.0.iter().map(Range::len).sum()
    }

    /// Whether no token is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `token` is in the set. O(log runs).
    pub fn contains(&self, token: i64) -> bool {
        let i = self.0.partition_point(|r| r.end <= token);
        self.0.get(i).is_some_and(|r| r.contains(token))
    }

    /// Index of the first run that ends after `token`.
    pub fn first_run_after(&self, token: i64) -> usize {
        self.0.partition_point(|r| r.end <= token)
    }

    /// Tokens in either.
    pub fn union(&self, other: &Ranges) -> Ranges {
        let mut all = Vec::with_capacity(self.0.len() + other.0.len());
        all.extend_from_slice(&self.0);
        all.extend_from_slice(&other.0);
        Ranges::from_unsorted(all)
    }

    /// Tokens in both. O(runs of both).
    pub fn intersect(&self, other: &Ranges) -> Ranges {
        let (mut i, mut j, mut out) = (0, 0, Vec::new());
        while i < self.0.len() && j < other.0.len() {
            let meet = self.0[i].intersect(&other.0[j]);
            if !meet.is_empty() {
                out.push(meet);
            }
            if self.0[i].end <= other.0[j].end {
                i += 1;
            } else {
                j += 1;
            }
        }
        Ranges(out)
    }

    /// Tokens in `self` and not in `other`. O(runs of both).
    pub fn subtract(&self, other: &Ranges) -> Ranges {
        let (mut j, mut out) = (0, Vec::new());
        for &run in &self.0 {
            let mut start = run.start;
            while j < other.0.len() && other.0[j].end <= start {
                j += 1;
            }
            let mut i = j;
            while i < other.0.len() && other.0[i].start < run.end {
                if other.0[i].start > start {
                    out.push(Range::new(start, other.0[i].start));
                }
                start = start.max(other.0[i].end);
                i += 1;
            }
            if start < run.end {
                out.push(Range::new(start, run.end));
            }
        }
        Ranges(out)
    }

    /// Tokens of `total` that are not in the set.
    pub fn complement(&self, total: i64) -> Ranges {
        Ranges::from_unsorted(vec![Range::new(0, total)]).subtract(self)
    }
}

impl FromIterator<Range> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range>>(iter: I) -> Self {
        Self::from_unsorted(iter.into_iter().collect())
    }
}
