//! Whether the slices of a pass compute what one rank has to compute of a mask: every cell once, and no others.

use super::needs::Part;
use super::side::PlacedRun;
use crate::types::{Band, Range, Slice};

/// Keys of one source that one row sees: (source, first row, row behind the last).
type Interval = (usize, i64, i64);

/// Local slices beside what they should come to.
pub(super) struct Cells<'a> {
    /// What the rank has to compute, ascending by query run.
    pub parts: &'a [Part],
    /// The rank's runs of queries.
    pub queries: &'a [PlacedRun],
    /// Runs of the keys that slices name by number.
    pub sources: &'a [Vec<PlacedRun>],
}

fn rows(run: &PlacedRun) -> Range {
    Range::new(run.row, run.row + run.tokens.len())
}

fn length(runs: &[PlacedRun]) -> i64 {
    runs.last().map_or(0, |r| rows(r).end)
}

/// Rows of the concatenation of `runs` whose tokens are below `token`. They ascend, so the tokens between any two are
/// one interval of rows.
fn below(runs: &[PlacedRun], token: i64) -> i64 {
    let next = runs.partition_point(|r| r.tokens.end <= token);
    runs.get(next)
        .map_or(length(runs), |r| r.row + (token - r.tokens.start).max(0))
}

impl Cells<'_> {
    /// Whether all visible cells of a local slice are rows of the queries and of source `source`.
    pub fn holds(&self, slice: &Slice, source: usize) -> bool {
        let tight = slice.tighten();
        let inside = |r: &Range, len: i64| 0 <= r.start && r.end <= len;
        tight.q.is_empty()
            || (inside(&tight.q, length(self.queries)) && inside(&tight.k, length(&self.sources[source])))
    }

    /// What is wrong with `slices`, local ones with their sources that `holds` accepts; nothing when they compute every
    /// cell of the parts once.
    pub fn check(&self, slices: &[(Slice, usize)]) -> Result<(), String> {
        let mut slices: Vec<(Slice, usize)> = slices
            .iter()
            .map(|(slice, source)| (slice.tighten(), *source))
            .filter(|(slice, _)| !slice.q.is_empty())
            .collect();
        slices.sort_unstable();
        let mut parts = self.parts;
        let (mut next, mut active) = (0, Vec::new());
        for (i, query) in self.queries.iter().enumerate() {
            let (here, rest) = parts.split_at(parts.partition_point(|p| p.run <= i));
            parts = rest;
            let local = rows(query);
            active.retain(|&(s, _): &(Slice, usize)| s.q.end > local.start);
            while next < slices.len() && slices[next].0.q.start < local.end {
                active.push(slices[next]);
                next += 1;
            }
            // Either way is exact. Pieces are many where runs are short, rows where they are long.
            if local.len() * self.work_of_row(here, &active) <= self.pieces_of(&active) {
                self.check_rows(query, here, &active)?;
            } else {
                self.check_pieces(query, here, &active)?;
            }
        }
        Ok(())
    }

    fn work_of_row(&self, parts: &[Part], active: &[(Slice, usize)]) -> i64 {
        (active.len() + parts.len() * self.sources.len()) as i64
    }

    /// Pieces that the slices come to when they are cut at runs of keys.
    fn pieces_of(&self, active: &[(Slice, usize)]) -> i64 {
        let of = |(slice, source): &(Slice, usize)| {
            let runs = &self.sources[*source];
            let first = runs.partition_point(|r| rows(r).end <= slice.k.start);
            runs.partition_point(|r| r.row < slice.k.end) - first
        };
        active.iter().map(of).sum::<usize>() as i64
    }

    /// Row by row: what a row sees of a source is one interval for each slice and each part.
    fn check_rows(&self, query: &PlacedRun, parts: &[Part], active: &[(Slice, usize)]) -> Result<(), String> {
        let (mut computed, mut wanted): (Vec<Interval>, Vec<Interval>) = (Vec::new(), Vec::new());
        for token in query.tokens.start..query.tokens.end {
            let row = token - query.tokens.start + query.row;
            computed.clear();
            wanted.clear();
            for (slice, source) in active.iter().filter(|(s, _)| s.q.contains(row)) {
                computed.push((*source, slice.k_lo(row), slice.k_hi(row)));
            }
            let mut visible = 0;
            for part in parts.iter().filter(|p| p.slice.q.contains(token)) {
                let (lo, hi) = (part.slice.k_lo(token), part.slice.k_hi(token));
                visible += (hi - lo).max(0);
                for (source, runs) in self.sources.iter().enumerate() {
                    wanted.push((source, below(runs, lo), below(runs, hi)));
                }
            }
            let twice = merge(&mut computed);
            merge(&mut wanted);
            let count = |list: &[Interval]| list.iter().map(|i| i.2 - i.1).sum::<i64>();
            if twice {
                return Err(format!("cells of query {token} are computed twice"));
            }
            // Keys that no source has are visible and not wanted of any.
            if computed != wanted || count(&wanted) != visible {
                return Err(format!(
                    "query {token} has {visible} visible cells; {} are computed, or others than those",
                    count(&computed)
                ));
            }
        }
        Ok(())
    }

    /// The pieces, moved to global tokens, must lie in the parts, be disjoint, and be as large as the parts: then they are
    /// the parts.
    fn check_pieces(
        &self,
        query: &PlacedRun,
        parts: &[Part],
        active: &[(Slice, usize)],
    ) -> Result<(), String> {
        let mut pieces = Vec::new();
        for (slice, source) in active {
            self.to_global(query, slice, &self.sources[*source], &mut pieces);
        }
        pieces.sort_unstable_by_key(|p| (p.k, p.q));
        let mut wanted: Vec<Slice> = parts.iter().map(|p| p.slice).collect();
        wanted.sort_unstable_by_key(|p| (p.k, p.q));
        let queries = query.tokens;
        let inside = shared(&pieces, &wanted, |_, _, _| Ok(()))?;
        shared(&pieces, &pieces, |a, b, area| {
            if a < b && area > 0 {
                return Err(format!(
                    "cells of queries {queries} are computed twice: {:?}",
                    pieces[b]
                ));
            }
            Ok(())
        })?;
        let total = pieces.iter().map(Slice::area).sum::<i64>();
        let visible = wanted.iter().map(Slice::area).sum::<i64>();
        if inside != total || total != visible {
            return Err(format!(
                "queries {queries} have {visible} visible cells; {total} are computed, {inside} of them visible"
            ));
        }
        Ok(())
    }

    /// Cuts a local slice to one run of queries and at runs of keys, and moves the pieces to global tokens.
    fn to_global(&self, query: &PlacedRun, slice: &Slice, keys: &[PlacedRun], pieces: &mut Vec<Slice>) {
        let across = slice.cut(&rows(query), &slice.k);
        let seen = across.visible_keys();
        let first = keys.partition_point(|r| rows(r).end <= seen.start);
        for key in keys[first..].iter().take_while(|r| r.row < seen.end) {
            let local = across.cut(&across.q, &rows(key)).tighten();
            if !local.q.is_empty() {
                pieces.push(local.shift(query.tokens.start - query.row, key.tokens.start - key.row));
            }
        }
    }
}

/// Sorts intervals, drops empty ones and joins those that touch. Whether two shared a row.
fn merge(list: &mut Vec<Interval>) -> bool {
    list.retain(|i| i.1 < i.2);
    list.sort_unstable();
    let mut twice = false;
    list.dedup_by(|next, last| {
        twice |= next.0 == last.0 && next.1 < last.2;
        let touch = next.0 == last.0 && next.1 <= last.2;
        if touch {
            last.2 = last.2.max(next.2);
        }
        touch
    });
    twice
}

/// The cells that slices of `left` and of `right` share, summed over pairs; `see(left index, right index, area)` is
/// called for every pair whose keys meet. Both are sorted by first key.
fn shared(
    left: &[Slice],
    right: &[Slice],
    mut see: impl FnMut(usize, usize, i64) -> Result<(), String>,
) -> Result<i64, String> {
    let mut total = 0;
    let mut active: Vec<usize> = Vec::new();
    let mut next = 0;
    for (a, l) in left.iter().enumerate() {
        // Keys of `left` only move up, so what ended before them never meets a later slice.
        active.retain(|&b| right[b].k.end > l.k.start);
        while next < right.len() && right[next].k.start < l.k.end {
            active.push(next);
            next += 1;
        }
        for &b in &active {
            let area = meet(l, &right[b]).area();
            total += area;
            see(a, b, area)?;
        }
    }
    Ok(total)
}

fn meet(a: &Slice, b: &Slice) -> Slice {
    let band = Band::new(a.band.lo.max(b.band.lo), a.band.hi.min(b.band.hi));
    Slice::new(a.q.intersect(&b.q), a.k.intersect(&b.k), band)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::side::concatenate;

    #[test]
    fn rows_below_a_token() {
        let runs = concatenate(&[Range::new(3, 5), Range::new(9, 12)]);
        let found: Vec<i64> = (0..14).map(|token| below(&runs, token)).collect();
        assert_eq!(found, [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 4, 5, 5]);
        assert_eq!(below(&[], 7), 0);
    }

    #[test]
    fn intervals_that_share_a_row_are_told() {
        let mut list = vec![(1, 0, 2), (0, 4, 6), (0, 2, 4), (0, 9, 9)];
        assert!(!merge(&mut list));
        assert_eq!(list, [(0, 2, 6), (1, 0, 2)]);
        assert!(merge(&mut vec![(0, 2, 5), (0, 4, 6)]));
    }

    /// Both ways agree with each other on every change of a bound, whichever `check` would choose.
    #[test]
    fn both_ways_find_the_same() {
        let queries = concatenate(&[Range::new(0, 3), Range::new(7, 9)]);
        let sources = [
            concatenate(&[Range::new(0, 3), Range::new(7, 9)]),
            concatenate(&[Range::new(3, 7)]),
        ];
        let causal = |q: Range| Slice::new(q, Range::new(0, q.end), Band::new(Band::NO_LO, 0));
        let part = |run: usize| Part {
            slice: causal(queries[run].tokens),
            run,
            row_shift: queries[run].row - queries[run].tokens.start,
        };
        let cells = Cells {
            parts: &[part(0), part(1)],
            queries: &queries,
            sources: &sources,
        };
        let good = [
            (causal(Range::new(0, 5)), 0),
            (Slice::new(Range::new(3, 5), Range::new(0, 4), Band::FULL), 1),
        ];
        assert!(cells.check(&good).is_ok());
        // Keys that no source has.
        let short = Cells {
            sources: &sources[..1],
            ..cells
        };
        let active = [(good[0].0.tighten(), 0)];
        assert!(short.check_rows(&queries[1], &cells.parts[1..], &active).is_err());
        assert!(
            short
                .check_pieces(&queries[1], &cells.parts[1..], &active)
                .is_err()
        );
        let mut found = 0;
        for at in 0..good.len() {
            for change in 0..8 {
                let mut slices = good;
                let (by, s) = (if change % 2 == 0 { 1 } else { -1 }, &mut slices[at].0);
                match change / 2 {
                    0 => s.q.start += by,
                    1 => s.q.end += by,
                    2 => s.k.start += by,
                    _ => s.k.end += by,
                }
                if !cells.holds(s, slices[at].1) {
                    continue;
                }
                let both: Vec<[bool; 2]> = queries
                    .iter()
                    .enumerate()
                    .map(|(i, query)| {
                        let here = &cells.parts[i..=i];
                        let active: Vec<(Slice, usize)> =
                            slices.iter().map(|s| (s.0.tighten(), s.1)).collect();
                        [
                            cells.check_rows(query, here, &active).is_ok(),
                            cells.check_pieces(query, here, &active).is_ok(),
                        ]
                    })
                    .collect();
                assert!(both.iter().all(|[rows, pieces]| rows == pieces), "{slices:?}");
                let all = both.iter().all(|b| b[0]);
                assert_eq!(cells.check(&slices).is_ok(), all);
                found += usize::from(!all);
            }
        }
        assert!(found > 6, "{found}");
    }
}
