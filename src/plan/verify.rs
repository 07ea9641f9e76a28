//! Checks a plan against its mask, by area and overlap of bands, so that it works at any size.

use super::Plan;
use super::cells::Cells;
use super::needs::Needs;
use super::side::{PlacedRun, SidePlacement, concatenate};
use super::stage::{Pass, Stage};
use super::transfer::owned_pieces;
use crate::types::{Error, Mask, Piece, Range, Ranges, Result, Side};

/// `Status::Internal`, naming pass and stage, unless the slices of each pass, mapped back to global tokens, cover every
/// cell of the mask whose query the rank owns exactly once, and transfers fit the placement: every key that its
/// queries see and it does not own is received once, from its owner; nothing else is; and what is sent is what peers
/// need. Takes time for the rows of each run of queries or, where that is less, for the runs of keys that its slices span:
/// more than planning does.
pub fn verify(plan: &Plan, mask: &Mask) -> Result<()> {
    plan.placement.check_mask(mask)?;
    let needs = Needs::new(mask, &plan.placement, Some(plan.rank));
    for (name, pass) in [("forward", &plan.forward), ("backward", &plan.backward)] {
        Checker {
            plan,
            needs: &needs,
            name,
            queries: concatenate(plan.placement.side(Side::Q).runs(plan.rank).as_slice()),
        }
        .check(pass)?;
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
            self.check_transfer(i, stage, keys)?;
            fetched.extend_from_slice(stage.recv.as_slice());
            let mut area = 0;
            for s in &stage.slices {
                let source = match s.source {
                    0 => 0,
                    1 => i + 1,
                    other => return self.fail(format!("stage {i} has a slice with source {other}")),
                };
                if !cells.holds(&s.slice, source) {
                    return self.fail(format!("stage {i} has a slice that leaves its tensors: {s:?}"));
                }
                area += s.slice.area();
                slices.push((s.slice, source));
            }
            if area != stage.area {
                return self.fail(format!(
                    "stage {i} says area {} and its slices have {area}",
                    stage.area
                ));
            }
        }
        let tokens: i64 = fetched.iter().map(Range::len).sum();
        let fetched = Ranges::from_unsorted(fetched);
        if tokens != fetched.tokens() || fetched != self.needs.remote[self.plan.rank] {
            return self.fail(format!(
                "it fetches {tokens} keys that are not those it needs, each once"
            ));
        }
        self.check_sent(pass, &own)?;
        cells.check(&slices).or_else(|what| self.fail(what))
    }

    fn check_transfer(&self, i: usize, stage: &Stage, keys: &SidePlacement) -> Result<()> {
        let (rank, transfer) = (self.plan.rank, &stage.transfer);
        let mut expected = Vec::new();
        for buffer in concatenate(stage.recv.as_slice()) {
            for (peer, tokens) in owned_pieces(keys, buffer.tokens) {
                let rows = tokens.shift(buffer.row - buffer.tokens.start);
                expected.push(Piece { peer, rows });
            }
        }
        expected.sort_unstable_by_key(|p| (p.peer, p.rows));
        if transfer.recvs != expected || transfer.recv_rows != stage.recv.tokens() {
            return self.fail(format!(
                "stage {i} receives other rows than its keys {:?}",
                stage.recv
            ));
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
    fn check_sent(&self, pass: &Pass, own: &[PlacedRun]) -> Result<()> {
        let mut sent = vec![Vec::new(); self.plan.world];
        for piece in pass.stages.iter().flat_map(|s| &s.transfer.sends) {
            sent[piece.peer as usize].push(piece.rows);
        }
        for (peer, rows) in sent.into_iter().enumerate() {
            let count: i64 = rows.iter().map(Range::len).sum();
            let wanted = self.needs.remote[peer].as_slice();
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
