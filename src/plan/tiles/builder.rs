//! Sweeps over the rows of a tensor and appends tile after tile.

use super::open::OpenItem;
use crate::plan::slices::join;
use crate::types::{Error, Range, Result, Slice, StageSlice, Tile, TileList, TileShape};
use std::cmp::Reverse;

/// How many earlier slices of a tile a slice is tried to merge with: what continues it stands next to it, or behind
/// the few others that begin at the same token.
const LOOK_BACK: usize = 4;

pub(super) struct Builder {
    list: TileList,
    /// Slices of the tile at hand, cut to its rows.
    cuts: Vec<StageSlice>,
    /// The same, merged where two make one.
    merged: Vec<StageSlice>,
    open: OpenItem,
}

impl Builder {
    pub(super) fn new(shape: &TileShape) -> Builder {
        Builder {
            list: TileList {
                shape: *shape,
                tiles: Vec::new(),
                items: Vec::new(),
                limits: Vec::new(),
                order: Vec::new(),
                areas: Vec::new(),
            },
            cuts: Vec::new(),
            merged: Vec::new(),
            open: OpenItem::default(),
        }
    }

    /// Appends the tiles of a tensor of `total` rows that lies in `source`. `slices` are tight and not empty; their
    /// queries are these rows.
    pub(super) fn cover(&mut self, source: u8, total: i64, mut slices: Vec<StageSlice>) -> Result<()> {
        slices.sort_unstable_by_key(|s| s.slice.q.start);
        let step = i64::from(self.list.shape.rows);
        let mut coming = slices.into_iter().peekable();
        let mut active: Vec<StageSlice> = Vec::new();
        for start in (0..total).step_by(step as usize) {
            let rows = Range::new(start, total.min(start + step));
            active.retain(|s| s.slice.q.end > rows.start);
            while let Some(s) = coming.next_if(|s| s.slice.q.start < rows.end) {
                active.push(s);
            }
            self.cuts.clear();
            self.cuts.extend(active.iter().map(|s| StageSlice {
                slice: s.slice.cut(&rows, &s.slice.k).tighten(),
                ..*s
            }));
            self.tile(source, &rows)?;
        }
        Ok(())
    }

    /// Appends the tile whose slices are in `cuts`.
    fn tile(&mut self, source: u8, rows: &Range) -> Result<()> {
        self.merge();
        let item0 = self.list.items.len();
        let mut steps = 0;
        for cut in &self.merged {
            if !self.open.take(cut, &self.list.shape) {
                steps += self.open.close(&mut self.list);
                self.open.begin(cut, rows);
            }
        }
        steps += self.open.close(&mut self.list);
        self.list
            .areas
            .push(self.merged.iter().map(|c| c.slice.area()).sum());
        self.list.tiles.push(Tile {
            row0: rows.start as i32,
            rows: rows.len() as i32,
            item0: number(item0 as i64)?,
            items: number((self.list.items.len() - item0) as i64)?,
            steps: number(steps)?,
            source: source.into(),
            slot: 0,
            pieces: 0,
        });
        number(self.list.limits.len() as i64)?;
        Ok(())
    }

    /// Fills `merged`, ascending by (source, key, row): cuts of which two make one slice are one.
    fn merge(&mut self) {
        self.cuts
            .sort_unstable_by_key(|c| (c.source, c.slice.k.start, c.slice.q.start));
        self.merged.clear();
        for cut in &self.cuts {
            let mut cut = *cut;
            // What was merged may merge again: two halves side by side, with two halves below.
            while let Some((at, slice)) = last_join(&self.merged, &cut) {
                self.merged.remove(at);
                cut.slice = slice;
            }
            self.merged.push(cut);
        }
        self.merged
            .sort_unstable_by_key(|c| (c.source, c.slice.k.start, c.slice.q.start));
    }

    pub(super) fn finish(mut self) -> TileList {
        let tiles = &self.list.tiles;
        self.list.order = (0..tiles.len() as i32).collect();
        self.list.order.sort_by_key(|&i| Reverse(tiles[i as usize].steps));
        self.list
    }
}

/// The nearest of the last few slices that makes one with `cut`, and what they make.
fn last_join(merged: &[StageSlice], cut: &StageSlice) -> Option<(usize, Slice)> {
    let from = merged.len().saturating_sub(LOOK_BACK);
    (from..merged.len())
        .rev()
        .filter(|&i| merged[i].source == cut.source)
        .find_map(|i| join(&merged[i].slice, &cut.slice).map(|slice| (i, slice)))
}

/// A count as the list's integer.
fn number(count: i64) -> Result<i32> {
    i32::try_from(count)
        .map_err(|_| Error::argument("the tile list is too long for 32-bit numbers; take larger tiles"))
}
