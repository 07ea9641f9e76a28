//! The item that slices of a tile are being gathered into.

use crate::types::{Item, Range, RowLimits, Slice, StageSlice, TileList, TileShape};

/// One slice, or several that are walked together because each row carries limits of its own.
///
/// Tiles often cross the end of a document, or of a block of rows that share a prefix. An item for each slice would
/// walk the common tokens once a slice, and take a step for every few tokens of a tiny document; one run with a pair
/// of limits a row is walked once.
#[derive(Default)]
pub(super) struct OpenItem {
    /// The first slice; `None` when nothing is open.
    first: Option<StageSlice>,
    /// Number of slices.
    slices: usize,
    /// Tokens that its rows see together, without a gap: what no row of the tile sees must stay out of every run.
    run: Range,
    /// Tokens that each row of the tile sees; filled when a second slice is tried.
    limits: Vec<Range>,
    /// Rows of the tile.
    tile: Range,
}

/// Tokens that `row` sees in a slice where it sees some.
fn seen(slice: &Slice, row: i64) -> Range {
    Range::new(slice.k_lo(row), slice.k_hi(row))
}

impl OpenItem {
    /// Opens an item for `slice`, which is tight and lies in the rows of `tile`.
    pub(super) fn begin(&mut self, slice: &StageSlice, tile: &Range) {
        self.first = Some(*slice);
        self.slices = 1;
        self.run = slice.slice.k;
        self.limits.clear();
        self.tile = *tile;
    }

    /// Takes `next` in if one walk then needs fewer steps than two, no gap opens in the run, and every row still sees
    /// one interval. `next` begins no earlier than what is here.
    pub(super) fn take(&mut self, next: &StageSlice, shape: &TileShape) -> bool {
        let Some(first) = self.first else { return false };
        let keys = next.slice.k;
        let whole = Range::new(self.run.start, self.run.end.max(keys.end));
        if first.source != next.source
            || keys.start > self.run.end
            || shape.steps(&whole) >= shape.steps(&self.run) + shape.steps(&keys)
        {
            return false;
        }
        if self.limits.is_empty() {
            self.limits.resize(self.tile.len() as usize, Range::default());
            self.add(&first.slice);
        }
        let tile = self.tile.start;
        let touches = (next.slice.q.start..next.slice.q.end).all(|row| {
            let (old, new) = (self.limits[(row - tile) as usize], seen(&next.slice, row));
            old.is_empty() || old.end == new.start || new.end == old.start
        });
        if touches {
            self.add(&next.slice);
            self.run = whole;
            self.slices += 1;
        }
        touches
    }

    /// Widens the limits of the slice's rows.
    fn add(&mut self, slice: &Slice) {
        for row in slice.q.start..slice.q.end {
            let (old, new) = (
                &mut self.limits[(row - self.tile.start) as usize],
                seen(slice, row),
            );
            *old = if old.is_empty() {
                new
            } else {
                Range::new(old.start.min(new.start), old.end.max(new.end))
            };
        }
    }

    /// Appends the item to `list`, if one is open; its number of steps.
    pub(super) fn close(&mut self, list: &mut TileList) -> i64 {
        let Some(first) = self.first.take() else { return 0 };
        let item = match self.slices {
            1 => self.with_band(&first, &list.shape),
            _ => self.with_limits(&first, list),
        };
        list.items.push(item);
        list.shape.steps(&self.run)
    }

    fn with_band(&self, first: &StageSlice, shape: &TileShape) -> Item {
        let Slice { q, band, .. } = first.slice;
        // Ends of rows only move forward, so all rows together see from where the last begins to where the first ends.
        let common = if q == self.tile {
            Range::new(
                seen(&first.slice, q.end - 1).start,
                seen(&first.slice, q.start).end,
            )
        } else {
            Range::default()
        };
        Item {
            lo: if band.has_lo() {
                band.lo as i32
            } else {
                Item::NO_LO
            },
            hi: if band.has_hi() {
                band.hi as i32
            } else {
                Item::NO_HI
            },
            ..self.item(first, &q, &common, shape)
        }
    }

    fn with_limits(&self, first: &StageSlice, list: &mut TileList) -> Item {
        let row0 = self.limits.iter().take_while(|l| l.is_empty()).count() as i64;
        let below = self.limits.iter().rev().take_while(|l| l.is_empty()).count() as i64;
        let rows = Range::new(self.tile.start + row0, self.tile.end - below);
        // An empty row is [0, 0) here and so leaves nothing in common.
        let common = self.limits.iter().fold(self.run, |all, row| {
            Range::new(all.start.max(row.start), all.end.min(row.end))
        });
        let item = Item {
            limits: list.limits.len() as i32,
            ..self.item(first, &rows, &common, &list.shape)
        };
        let none = Range::new(self.run.start, self.run.start);
        // As many as a tile can have rows, so that the block of a short last tile reads nothing else.
        let rows = (0..list.shape.rows as usize).map(|r| self.limits.get(r).copied().unwrap_or_default());
        list.limits.extend(rows.map(|l| {
            let l = if l.is_empty() { none } else { l };
            RowLimits {
                lo: l.start as i32,
                hi: l.end as i32,
            }
        }));
        item
    }

    /// An item over the run without band or limits, of which all rows of the tile see `common`.
    fn item(&self, first: &StageSlice, rows: &Range, common: &Range, shape: &TileShape) -> Item {
        let (start, step) = (self.run.start, i64::from(shape.step));
        // Steps from the first that begins inside `common` to the last that ends there.
        let full0 = start + (common.start - start + step - 1).div_euclid(step) * step;
        let full1 = start + (common.end - start).div_euclid(step) * step;
        let (full0, full1) = if full0 < full1 {
            (full0, full1)
        } else {
            (start, start)
        };
        Item {
            run0: self.run.start as i32,
            run1: self.run.end as i32,
            start: start as i32,
            full0: full0 as i32,
            full1: full1 as i32,
            row0: (rows.start - self.tile.start) as i32,
            row1: (rows.end - self.tile.start) as i32,
            lo: Item::NO_LO,
            hi: Item::NO_HI,
            source: first.source.into(),
            limits: Item::NO_LIMITS,
            reserved: 0,
        }
    }
}
