//! Moving rows from one ownership to another: shares to layout, layout to everybody, and back.

use crate::types::{Piece, Range, Ranges};

/// Which global rows each rank holds, in ascending order.
pub(super) type Ownership = Vec<Ranges>;

/// What one rank does to move rows from one ownership to another.
pub(super) struct Redistribution {
    /// Rows that go out, in this rank's old rows; sorted by (peer, rows).
    pub sends: Vec<Piece>,
    /// Rows that come in, in this rank's new rows; sorted by (peer, rows).
    pub recvs: Vec<Piece>,
    /// Rows that stay: (old rows, new rows).
    pub keeps: Vec<(Range, Range)>,
}

/// First local row of every run.
fn offsets(runs: &Ranges) -> Vec<i64> {
    let mut at = 0;
    let start = |r: &Range| {
        at += r.len();
        at - r.len()
    };
    runs.iter().map(start).collect()
}

/// The runs that both hold: (rows of `a`, rows of `b`), ascending.
fn common(a: &Ranges, b: &Ranges) -> Vec<(Range, Range)> {
    let (from_a, from_b) = (offsets(a), offsets(b));
    let (ra, rb) = (a.as_slice(), b.as_slice());
    let (mut i, mut j, mut out) = (0, 0, Vec::new());
    while i < ra.len() && j < rb.len() {
        let meet = ra[i].intersect(&rb[j]);
        if !meet.is_empty() {
            out.push((
                meet.shift(from_a[i] - ra[i].start),
                meet.shift(from_b[j] - rb[j].start),
            ));
        }
        if ra[i].end <= rb[j].end { i += 1 } else { j += 1 }
    }
    out
}

impl Redistribution {
    /// What `rank` does so that every rank ends up with the rows that `new` gives it, taken from `old`.
    pub fn new(rank: usize, old: &Ownership, new: &Ownership) -> Redistribution {
        let mut plan = Redistribution {
            sends: Vec::new(),
            recvs: Vec::new(),
            keeps: common(&old[rank], &new[rank]),
        };
        for peer in (0..old.len()).filter(|&p| p != rank) {
            let piece = |rows| Piece {
                peer: peer as u32,
                rows,
            };
            plan.sends.extend(
                common(&old[rank], &new[peer])
                    .into_iter()
                    .map(|(mine, _)| piece(mine)),
            );
            plan.recvs.extend(
                common(&old[peer], &new[rank])
                    .into_iter()
                    .map(|(_, mine)| piece(mine)),
            );
        }
        plan
    }
}

/// Where the new rows of one rank come from when the first `valid` rows move `shift` places along and around their end, and
/// those behind stay: (old global rows, first new local row), by ascending new row.
fn origins(new: &Ranges, valid: i64, shift: i64) -> Vec<(Range, i64)> {
    let mut out = Vec::new();
    for (run, row) in new.iter().zip(offsets(new)) {
        // Rows before `shift` come from the end of the valid ones.
        let wrapped = run.intersect(&Range::new(0, shift));
        let straight = run.intersect(&Range::new(shift, valid));
        let behind = run.intersect(&Range::new(valid, run.end.max(valid)));
        for (part, by) in [(wrapped, valid - shift), (straight, -shift), (behind, 0)] {
            if !part.is_empty() {
                out.push((part.shift(by), row + part.start - run.start));
            }
        }
    }
    out
}

/// The rows of `old` among `wanted`: (old local rows, new local rows), by ascending new row.
fn taken(old: &Ranges, from: &[i64], wanted: &[(Range, i64)]) -> Vec<(Range, Range)> {
    let mut out = Vec::new();
    for (rows, target) in wanted {
        let first = old.first_run_after(rows.start);
        for (run, row) in old.iter().zip(from).skip(first) {
            let meet = run.intersect(rows);
            if run.start >= rows.end {
                break;
            }
            out.push((meet.shift(row - run.start), meet.shift(target - rows.start)));
        }
    }
    out
}

impl Redistribution {
    /// What `rank` does so that, of the first `valid` rows, row `(i + shift) % valid` becomes what row `i` was, every rank
    /// holding the same rows before and after. `shift` is 0 to valid - 1. Sends are sorted by (peer, new row of the peer).
    pub fn rolled(rank: usize, layout: &Ownership, valid: i64, shift: i64) -> Redistribution {
        let mine = origins(&layout[rank], valid, shift);
        let from = offsets(&layout[rank]);
        let mut plan = Redistribution {
            sends: Vec::new(),
            recvs: Vec::new(),
            keeps: taken(&layout[rank], &from, &mine),
        };
        for (peer, theirs) in layout.iter().enumerate().filter(|&(p, _)| p != rank) {
            let piece = |rows| Piece {
                peer: peer as u32,
                rows,
            };
            let out = taken(&layout[rank], &from, &origins(theirs, valid, shift));
            plan.sends.extend(out.into_iter().map(|(old, _)| piece(old)));
            let come = taken(theirs, &offsets(theirs), &mine);
            plan.recvs.extend(come.into_iter().map(|(_, new)| piece(new)));
        }
        plan
    }
}

/// Contiguous shares of `total` rows; the first `total % world` ranks hold one more.
pub(super) fn shares(total: i64, world: usize) -> Ownership {
    let (each, extra) = (total / world as i64, total % world as i64);
    let start = |r: i64| r * each + r.min(extra);
    (0..world as i64)
        .map(|r| Ranges::from_iter([Range::new(start(r), start(r + 1))]))
        .collect()
}

/// Every rank holds all `total` rows.
pub(super) fn everything(total: i64, world: usize) -> Ownership {
    vec![Ranges::from_iter([Range::new(0, total)]); world]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A partition of `total` tokens over `world` ranks, drawn token by token.
    fn partition(owners: &[usize], world: usize) -> Ownership {
        let of = |r| owners.iter().enumerate().filter(move |&(_, &o)| o == r);
        (0..world)
            .map(|r| of(r).map(|(t, _)| Range::new(t as i64, t as i64 + 1)).collect())
            .collect()
    }

    fn tokens(runs: &Ranges) -> Vec<i64> {
        runs.iter().flat_map(|r| r.start..r.end).collect()
    }

    proptest! {
        #[test]
        fn every_rank_gets_its_new_rows(world in 1..6usize, a in prop::collection::vec(0..6usize, 0..40), full: bool) {
            let old = partition(&a.iter().map(|o| o % world).collect::<Vec<_>>(), world);
            let total = a.len() as i64;
            let new = if full { everything(total, world) } else { shares(total, world) };
            let plans: Vec<_> = (0..world).map(|r| Redistribution::new(r, &old, &new)).collect();
            for (r, plan) in plans.iter().enumerate() {
                let mut got = vec![-1; new[r].tokens() as usize];
                let mine = tokens(&old[r]);
                for (from, to) in &plan.keeps {
                    for i in 0..from.len() {
                        got[(to.start + i) as usize] = mine[(from.start + i) as usize];
                    }
                }
                for (p, peer) in plans.iter().enumerate() {
                    let sent: Vec<_> = peer.sends.iter().filter(|s| s.peer as usize == r).collect();
                    let received: Vec<_> = plan.recvs.iter().filter(|s| s.peer as usize == p).collect();
                    prop_assert_eq!(sent.len(), received.len());
                    let theirs = tokens(&old[p]);
                    for (s, d) in sent.iter().zip(&received) {
                        prop_assert_eq!(s.rows.len(), d.rows.len());
                        for i in 0..s.rows.len() {
                            got[(d.rows.start + i) as usize] = theirs[(s.rows.start + i) as usize];
                        }
                    }
                }
                prop_assert_eq!(got, tokens(&new[r]));
            }
        }
    }
}
