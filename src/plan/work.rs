//! Which rank computes what where queries may travel, and what travels for it.

use super::assign::Assignment;
use super::cost::Direction;
use super::grid::{Grid, for_each_pair};
use super::hash::Hasher;
use super::needs::{Needs, Part, number};
use super::placement::Placement;
use super::price::Price;
use super::side::PlacedRun;
use crate::types::{AttnShape, Config, Mask, Range, Ranges, Side, Slice};
use std::sync::Arc;

/// The work of all ranks in one pass, some of it on queries of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Work {
    /// (row owner, column owner, rank) of every block that its row owner does not compute, ascending.
    moved: Vec<[u32; 3]>,
    /// Of each rank, the keys that it computes with and does not own.
    pub keys: Vec<Ranges>,
    /// Of each rank, the queries that it computes for and does not own: its guests.
    pub queries: Vec<Ranges>,
    /// Of these, the keys and queries of blocks of which the rank owns neither side.
    pub foreign_keys: Vec<Ranges>,
    pub foreign_queries: Vec<Ranges>,
    /// Queries that each rank owns.
    pub held: Vec<i64>,
    /// Cells that each rank computes.
    pub area: Vec<i64>,
    /// Bytes that each rank sends and receives, results included.
    pub sent: Vec<i64>,
    pub received: Vec<i64>,
}

impl Work {
    /// The work of the forward and of the backward pass; `None` for a pass in which queries do not travel, because that
    /// would not move fewer bytes, the mask has too many pieces, or its bytes are more than an i64 counts.
    pub fn both(
        mask: &Mask,
        placement: &Placement,
        shape: &AttnShape,
        config: &Config,
    ) -> [Option<Arc<Work>>; 2] {
        if !config.qo_comm || placement.world() == 1 {
            return [None, None];
        }
        let Some(grid) = Grid::new(mask, placement) else {
            return [None, None];
        };
        let queries = placement.side(Side::Q);
        let held: Vec<i64> = (0..placement.world()).map(|rank| queries.tokens(rank)).collect();
        [Direction::Forward, Direction::Backward].map(|direction| {
            let price = Price::new(shape, config, direction);
            if too_many_bytes(placement, &price) {
                return None;
            }
            let rows = Assignment::of_rows(&grid, price, config.balance_slack);
            rows.better()
                .map(|found| Arc::new(Work::of(&grid, found, held.clone())))
        })
    }

    fn of(grid: &Grid, found: Assignment<'_>, held: Vec<i64>) -> Work {
        let empty = || vec![Vec::new(); grid.world];
        let (mut moved, mut sets) = (Vec::new(), [empty(), empty(), empty(), empty()]);
        for (block, &rank) in grid.blocks.iter().zip(&found.at) {
            let (rows, columns) = (block.row_owner, block.column_owner);
            if rank != rows {
                moved.push([rows, columns, rank]);
            }
            let third = rank != rows && rank != columns;
            for (set, tokens, travels) in [
                (0, &block.keys, rank != columns),
                (1, &block.rows, rank != rows),
                (2, &block.keys, third),
                (3, &block.rows, third),
            ] {
                if travels {
                    sets[set][rank as usize].extend_from_slice(tokens.as_slice());
                }
            }
        }
        let [keys, queries, foreign_keys, foreign_queries] =
            sets.map(|by_rank: Vec<Vec<Range>>| by_rank.into_iter().map(Ranges::from_unsorted).collect());
        Work {
            moved,
            keys,
            queries,
            foreign_keys,
            foreign_queries,
            held,
            area: found.area,
            sent: found.sent,
            received: found.received,
        }
    }

    /// The rank that computes the cells between queries of one rank and keys of another.
    pub fn rank_of(&self, row_owner: u32, column_owner: u32) -> u32 {
        let at = self
            .moved
            .binary_search_by_key(&[row_owner, column_owner], |m| [m[0], m[1]]);
        at.map_or(row_owner, |i| self.moved[i][2])
    }

    /// What tells one work of a mask on a placement from another.
    pub fn hash(&self, h: &mut Hasher) {
        h.word(self.moved.len() as i64);
        for &[rows, columns, rank] in &self.moved {
            h.words([i64::from(rows), i64::from(columns), i64::from(rank)]);
        }
    }

    /// What `rank` computes: of its own queries, numbered by run, with the keys that every rank fetches; and of its guests,
    /// in global coordinates.
    pub fn of_rank(&self, mask: &Mask, placement: &Placement, rank: usize) -> (Needs, Vec<Slice>) {
        let queries = placement.side(Side::Q);
        let (mut home, mut guests): (Vec<(usize, Slice)>, Vec<Slice>) = (Vec::new(), Vec::new());
        self.for_each(mask, placement, |computing, row_owner, cut| {
            if computing != rank {
                return;
            }
            if row_owner == rank {
                home.push((queries.first_run_after(cut.q.start), cut));
            } else {
                guests.push(cut);
            }
        });
        let needs = Needs {
            remote: self.keys.clone(),
            parts: number(home, queries),
        };
        (needs, guests)
    }

    /// Calls `see(computing rank, row owner, slice)` for slices that together are the mask, tight and each inside one run of
    /// queries. Neighbouring runs of keys that one rank computes stay together.
    pub fn for_each(&self, mask: &Mask, placement: &Placement, mut see: impl FnMut(usize, usize, Slice)) {
        // (rank, row owner, slice) under way.
        let mut last: Option<(u32, u32, Slice)> = None;
        for_each_pair(mask, placement, |query, key, cut| {
            let rank = self.rank_of(query.owner, key.owner);
            match &mut last {
                // The pairs of a slice and a query run come one after the other, with the slice's band.
                Some((r, _, s))
                    if *r == rank && s.q == cut.q && s.band == cut.band && s.k.end == cut.k.start =>
                {
                    s.k.end = cut.k.end;
                }
                _ => {
                    if let Some((r, owner, s)) = last.replace((rank, query.owner, cut)) {
                        see(r as usize, owner as usize, s.tighten());
                    }
                }
            }
        });
        if let Some((r, owner, s)) = last {
            see(r as usize, owner as usize, s.tighten());
        }
    }
}

/// Whether everything sent to every rank comes to more bytes than an assignment can count.
fn too_many_bytes(placement: &Placement, price: &Price) -> bool {
    let tokens = |side| i128::from(placement.side(side).total());
    let keys = tokens(Side::K) * i128::from(price.key_out + price.key_back);
    let queries = tokens(Side::Q) * i128::from(price.query_out + price.query_back);
    (keys + queries) * placement.world() as i128 > i128::from(i64::MAX)
}

/// The parts of `slices` whose queries lie in `received`, the queries of one receive buffer; numbered by its runs.
pub(super) fn parts_of(slices: &[Slice], received: &[PlacedRun]) -> Vec<Part> {
    let mut parts = Vec::new();
    for slice in slices {
        let first = received.partition_point(|r| r.tokens.end <= slice.q.start);
        for (run, placed) in received.iter().enumerate().skip(first) {
            if placed.tokens.start >= slice.q.end {
                break;
            }
            let part = slice.cut(&placed.tokens, &slice.k).tighten();
            if !part.q.is_empty() {
                parts.push(Part {
                    slice: part,
                    run,
                    row_shift: placed.row - placed.tokens.start,
                });
            }
        }
    }
    parts.sort_by_key(|p| p.run);
    parts
}
