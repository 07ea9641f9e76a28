//! Checks a plan against its mask, by area and overlap of bands, so that it works at any size.

use super::Plan;
use super::guests::Guests;
use super::needs::{Needs, Part};
use super::side::{PlacedRun, SidePlacement, concatenate};
use super::stage::Pass;
use super::transfer::owned_pieces;
use super::work::{Work, parts_of};
use crate::types::{Band, Error, Mask, Piece, Range, Ranges, Result, Side, Slice, StageSlice, Transfer};

/// `Status::Internal`, naming pass and stage, unless the slices of each pass, mapped back to global tokens, cover every
/// cell of the mask whose query the rank owns exactly once, and transfers fit the placement: every key that its
/// queries see and it does not own is received once, from its owner; nothing else is; and what is sent is what peers
/// need. Where queries travel, the same holds of the cells that are this rank's among all, each of which is one rank's,
/// and of the queries that it receives. Takes time for every pair of runs of queries and keys that a slice spans, which is more than planning does.
pub fn verify(plan: &Plan, mask: &Mask) -> Result<()> {
    plan.placement.check_mask(mask)?;
    let queries = plan.placement.side(Side::Q);
    for (i, (name, pass)) in [("forward", &plan.forward), ("backward", &plan.backward)]
        .into_iter()
        .enumerate()
    {
        let (needs, guests) = match &plan.work[i] {
            None => (Needs::new(mask, &plan.placement, Some(plan.rank)), Vec::new()),
            Some(work) => work.of_rank(mask, &plan.placement, plan.rank),
        };
        let checker = Checker {
            plan,
            needs: &needs,
            name,
            queries: concatenate(queries.runs(plan.rank).as_slice()),
        };
        checker.check(pass)?;
        checker.check_guests(pass, plan.work[i].as_deref(), &guests)?;
    }
    if let Some(work) = plan
        .work
        .iter()
        .flatten()
        .find(|w| w.area.iter().sum::<i64>() != mask.area())
    {
        let message = format!(
            "all ranks compute {:?} cells; the mask has {}",
            work.area,
            mask.area()
        );
        return Err(Error::internal(message));
    }
    Ok(())
}

struct Checker<'a> {
    plan: &'a Plan,
    needs: &'a Needs,
    name: &'static str,
    queries: Vec<PlacedRun>,
}

impl Checker<'_> {
    fn fail<T>(&self, what: String) -> Result<T> {
        let rank = self.plan.rank;
        Err(Error::internal(format!(
            "{} pass of rank {rank}: {what}",
            self.name
        )))
    }

    fn check(&self, pass: &Pass) -> Result<()> {
        let keys = self.plan.placement.side(Side::K);
        let own = concatenate(keys.runs(self.plan.rank).as_slice());
        let mut fetched = Vec::new();
        // Global slices, by the query run they lie in.
        let mut covered: Vec<Vec<Slice>> = vec![Vec::new(); self.queries.len()];
        for (i, stage) in pass.stages.iter().enumerate() {
            self.check_transfer(i, (&stage.transfer, &stage.recv), keys)?;
            fetched.extend_from_slice(stage.recv.as_slice());
            let received = concatenate(stage.recv.as_slice());
            let sources = [own.as_slice(), received.as_slice()];
            self.cover(i, (&stage.slices, stage.area), sources, &mut covered)?;
        }
        let tokens: i64 = fetched.iter().map(Range::len).sum();
        let fetched = Ranges::from_unsorted(fetched);
        if tokens != fetched.tokens() || fetched != self.needs.remote[self.plan.rank] {
            return self.fail(format!(
                "it fetches {tokens} keys that are not those it needs, each once"
            ));
        }
        let sends = pass.stages.iter().flat_map(|s| &s.transfer.sends);
        self.check_sent(sends, &self.needs.remote, &own)?;
        self.check_cells(covered, &self.needs.parts)
    }

    /// As `check`, for the queries of others: their cells, what is received of them, and what is sent to peers.
    fn check_guests(&self, pass: &Pass, work: Option<&Work>, slices: &[Slice]) -> Result<()> {
        let Some(work) = work else {
            return match pass.stages.iter().all(|s| s.guests == Guests::default()) {
                true => Ok(()),
                false => {
                    self.fail("it has queries of others in a pass where queries do not travel".to_owned())
                }
            };
        };
        let (queries, keys) = (
            self.plan.placement.side(Side::Q),
            self.plan.placement.side(Side::K),
        );
        let own = concatenate(keys.runs(self.plan.rank).as_slice());
        let mut fetched = Vec::new();
        for (i, stage) in pass.stages.iter().enumerate() {
            let guests = &stage.guests;
            self.check_transfer(i, (&guests.transfer, &guests.recv), queries)?;
            fetched.extend_from_slice(guests.recv.as_slice());
            let received = concatenate(guests.recv.as_slice());
            let parts = parts_of(slices, &received);
            let inner = Checker {
                queries: received,
                ..*self
            };
            let mut covered = vec![Vec::new(); inner.queries.len()];
            let keys = concatenate(stage.recv.as_slice());
            inner.cover(i, (&guests.slices, guests.area), [&own, &keys], &mut covered)?;
            inner.check_cells(covered, &parts)?;
        }
        let tokens: i64 = fetched.iter().map(Range::len).sum();
        let fetched = Ranges::from_unsorted(fetched);
        if tokens != fetched.tokens() || fetched != work.queries[self.plan.rank] {
            return self.fail(format!(
                "it fetches {tokens} queries that are not those it needs, each once"
            ));
        }
        let own = concatenate(queries.runs(self.plan.rank).as_slice());
        let sends = pass.stages.iter().flat_map(|s| &s.guests.transfer.sends);
        self.check_sent(sends, &work.queries, &own)
    }

    /// Adds the slices of a stage, in global tokens, to what is covered, when they lie in their tensors and have the area
    /// that the stage says.
    fn cover(
        &self,
        i: usize,
        (slices, says): (&[StageSlice], i64),
        sources: [&[PlacedRun]; 2],
        covered: &mut [Vec<Slice>],
    ) -> Result<()> {
        let mut area = 0;
        for s in slices {
            let Some(source) = sources.get(usize::from(s.source)) else {
                return self.fail(format!("stage {i} has a slice with source {}", s.source));
            };
            let found = self.to_global(&s.slice, source, covered);
            area += found;
            if found != s.slice.area() {
                return self.fail(format!("stage {i} has a slice that leaves its tensors: {s:?}"));
            }
        }
        if area != says {
            return self.fail(format!("stage {i} says area {says} and its slices have {area}"));
        }
        Ok(())
    }

    /// Cuts a local slice at runs of queries and keys, moves the pieces to global tokens, and returns their area.
    fn to_global(&self, slice: &Slice, keys: &[PlacedRun], covered: &mut [Vec<Slice>]) -> i64 {
        let rows = |r: &PlacedRun| Range::new(r.row, r.row + r.tokens.len());
        let mut area = 0;
        let first = self.queries.partition_point(|r| rows(r).end <= slice.q.start);
        for (i, query) in self.queries.iter().enumerate().skip(first) {
            if query.row >= slice.q.end {
                break;
            }
            let across = slice.cut(&rows(query), &slice.k);
            let seen = across.visible_keys();
            let first = keys.partition_point(|r| rows(r).end <= seen.start);
            for key in keys[first..].iter().take_while(|r| r.row < seen.end) {
                let local = across.cut(&across.q, &rows(key)).tighten();
                area += local.area();
                if !local.q.is_empty() {
                    covered[i].push(local.shift(query.tokens.start - query.row, key.tokens.start - key.row));
                }
            }
        }
        area
    }

    /// Within every query run the pieces must lie in the mask, be disjoint, and be as large as the mask's part: then
    /// they are the mask's part.
    fn check_cells(&self, mut covered: Vec<Vec<Slice>>, mut parts: &[Part]) -> Result<()> {
        for (i, pieces) in covered.iter_mut().enumerate() {
            let (here, rest) = parts.split_at(parts.partition_point(|p| p.run <= i));
            parts = rest;
            pieces.sort_unstable_by_key(|p| (p.k, p.q));
            let mut here: Vec<Slice> = here.iter().map(|p| p.slice).collect();
            here.sort_unstable_by_key(|p| (p.k, p.q));
            let query = self.queries[i].tokens;
            let inside = shared(pieces, &here, |_, _, _| Ok(()))?;
            shared(pieces, pieces, |a, b, area| {
                if a < b && area > 0 {
                    return self.fail(format!(
                        "cells of queries {query} are computed twice: {:?}",
                        pieces[b]
                    ));
                }
                Ok(())
            })?;
            let total = pieces.iter().map(Slice::area).sum::<i64>();
            let wanted = here.iter().map(Slice::area).sum::<i64>();
            if inside != total || total != wanted {
                return self.fail(format!(
                    "queries {query} have {wanted} visible cells; {total} are computed, {inside} of them visible"
                ));
            }
        }
        Ok(())
    }

    fn check_transfer(
        &self,
        i: usize,
        (transfer, recv): (&Transfer, &Ranges),
        keys: &SidePlacement,
    ) -> Result<()> {
        let rank = self.plan.rank;
        let mut expected = Vec::new();
        for buffer in concatenate(recv.as_slice()) {
            for (peer, tokens) in owned_pieces(keys, buffer.tokens) {
                let rows = tokens.shift(buffer.row - buffer.tokens.start);
                expected.push(Piece { peer, rows });
            }
        }
        expected.sort_unstable_by_key(|p| (p.peer, p.rows));
        if transfer.recvs != expected || transfer.recv_rows != recv.tokens() {
            return self.fail(format!("stage {i} receives other rows than its tokens {recv:?}"));
        }
        let sends = &transfer.sends;
        let ordered = sends.is_sorted_by(|a, b| (a.peer, a.rows.end) <= (b.peer, b.rows.start));
        let valid = |p: &Piece| {
            (p.peer as usize) < self.plan.world
                && !p.rows.is_empty()
                && 0 <= p.rows.start
                && p.rows.end <= keys.tokens(rank)
        };
        if !ordered || !sends.iter().all(valid) {
            return self.fail(format!(
                "stage {i} sends rows out of order or outside the local tensor"
            ));
        }
        Ok(())
    }

    /// What goes to each peer over all stages must be what that peer needs of this rank, each row once.
    fn check_sent<'a>(
        &self,
        sends: impl Iterator<Item = &'a Piece>,
        remote: &[Ranges],
        own: &[PlacedRun],
    ) -> Result<()> {
        let mut sent = vec![Vec::new(); self.plan.world];
        for piece in sends {
            sent[piece.peer as usize].push(piece.rows);
        }
        for (peer, rows) in sent.into_iter().enumerate() {
            let count: i64 = rows.iter().map(Range::len).sum();
            let wanted = remote[peer].as_slice();
            let wanted: Ranges = own
                .iter()
                .flat_map(|run| {
                    let first = wanted.partition_point(|w| w.end <= run.tokens.start);
                    let met = wanted[first..].iter().take_while(|w| w.start < run.tokens.end);
                    met.map(|w| w.intersect(&run.tokens).shift(run.row - run.tokens.start))
                })
                .collect();
            let rows = Ranges::from_unsorted(rows);
            if count != rows.tokens() || rows != wanted {
                return self.fail(format!(
                    "it sends rows {rows:?} to rank {peer}, which needs {wanted:?}"
                ));
            }
        }
        Ok(())
    }
}

/// The cells that slices of `left` and of `right` share, summed over pairs; `see(left index, right index, area)` is
/// called for every pair whose keys meet. Both are sorted by first key.
fn shared(
    left: &[Slice],
    right: &[Slice],
    mut see: impl FnMut(usize, usize, i64) -> Result<()>,
) -> Result<i64> {
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
