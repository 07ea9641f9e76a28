//! Checks a plan against its mask, by area and overlap of bands, so that it works at any size.

use super::Plan;
use super::cells::Cells;
use super::guests::Guests;
use super::needs::Needs;
use super::side::{PlacedRun, SidePlacement, concatenate};
use super::stage::Pass;
use super::transfer::owned_pieces;
use super::work::{Work, parts_of};
use crate::types::{Error, Mask, Piece, Range, Ranges, Result, Side, Slice, StageSlice, Transfer};

/// `Status::Internal`, naming pass and stage, unless the slices of each pass, mapped back to global tokens, cover every
/// cell of the mask whose query the rank owns exactly once, and transfers fit the placement: every key that its
/// queries see and it does not own is received once, from its owner; nothing else is; and what is sent is what peers
/// need. Where queries travel, the same holds of the cells that are this rank's among all, each of which is one rank's,
/// and of the queries that it receives. Takes time for the rows of each run of queries or, where that is less, for the runs
/// of keys that its slices span: more than planning does.
pub fn verify(plan: &Plan, mask: &Mask) -> Result<()> {
    plan.placement.check_mask(mask)?;
    let queries = plan.placement.side(Side::Q);
    let passes = [("forward", &plan.forward), ("backward", &plan.backward)];
    for ((name, pass), work) in passes.into_iter().zip(&plan.work) {
        let (needs, guests) = match work {
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
        checker.check_guests(pass, work.as_deref(), &guests)?;
    }
    let all = |w: &&std::sync::Arc<Work>| w.area.iter().sum::<i64>() != mask.area();
    if let Some(work) = plan.work.iter().flatten().find(all) {
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
        let sources: Vec<Vec<PlacedRun>> = std::iter::once(own.clone())
            .chain(pass.stages.iter().map(|s| concatenate(s.recv.as_slice())))
            .collect();
        let cells = Cells {
            parts: &self.needs.parts,
            queries: &self.queries,
            sources: &sources,
        };
        let mut slices = Vec::new();
        for (i, stage) in pass.stages.iter().enumerate() {
            self.check_transfer(i, (&stage.transfer, &stage.recv), keys)?;
            fetched.extend_from_slice(stage.recv.as_slice());
            self.add(i, (&stage.slices, stage.area), &cells, i + 1, &mut slices)?;
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
        cells.check(&slices).or_else(|what| self.fail(what))
    }

    /// Adds the slices of a stage, whose received keys are source `received`, when they lie in their tensors and have the
    /// area that the stage says.
    fn add(
        &self,
        i: usize,
        (slices, says): (&[StageSlice], i64),
        cells: &Cells<'_>,
        received: usize,
        all: &mut Vec<(Slice, usize)>,
    ) -> Result<()> {
        let mut area = 0;
        for s in slices {
            let source = match s.source {
                0 => 0,
                1 => received,
                other => return self.fail(format!("stage {i} has a slice with source {other}")),
            };
            if !cells.holds(&s.slice, source) {
                return self.fail(format!("stage {i} has a slice that leaves its tensors: {s:?}"));
            }
            area += s.slice.area();
            all.push((s.slice, source));
        }
        if area != says {
            return self.fail(format!("stage {i} says area {says} and its slices have {area}"));
        }
        Ok(())
    }

    /// As `check`, for the queries of others: their cells, what is received of them, and what is sent to peers.
    fn check_guests(&self, pass: &Pass, work: Option<&Work>, guests: &[Slice]) -> Result<()> {
        let Some(work) = work else {
            if pass.stages.iter().all(|s| s.guests == Guests::default()) {
                return Ok(());
            }
            return self.fail("it has queries of others where queries do not travel".to_owned());
        };
        let (queries, keys) = (
            self.plan.placement.side(Side::Q),
            self.plan.placement.side(Side::K),
        );
        let own = concatenate(keys.runs(self.plan.rank).as_slice());
        let mut fetched = Vec::new();
        for (i, stage) in pass.stages.iter().enumerate() {
            let here = &stage.guests;
            self.check_transfer(i, (&here.transfer, &here.recv), queries)?;
            fetched.extend_from_slice(here.recv.as_slice());
            let received = concatenate(here.recv.as_slice());
            let cells = Cells {
                parts: &parts_of(guests, &received),
                queries: &received,
                sources: &[own.clone(), concatenate(stage.recv.as_slice())],
            };
            let mut slices = Vec::new();
            self.add(i, (&here.slices, here.area), &cells, 1, &mut slices)?;
            cells.check(&slices).or_else(|what| self.fail(what))?;
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
