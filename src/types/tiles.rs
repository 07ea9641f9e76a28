//! Tile lists: what a kernel walks instead of slices. `kernels/params.h` holds the same structs for the device, and
//! `docs/kernels.md` says how they are read.

use super::{Band, Error, Range, Result, Slice};

/// How a pass is cut into tiles: rows that one thread block owns, and steps in which it walks what they see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileShape {
    /// Rows of a tile: queries in the forward pass, keys in the backward pass.
    pub rows: i32,
    /// Tokens of one step along a run: keys in the forward pass, queries in the backward pass.
    pub step: i32,
}

/// cbindgen:ignore
impl TileShape {
    /// Most rows of a tile and tokens of a step.
    pub const MAX: i32 = 1 << 12;

    /// Tiles of so many rows, walked in steps of so many tokens.
    pub const fn new(rows: i32, step: i32) -> TileShape {
        TileShape { rows, step }
    }

    /// `Status::InvalidArgument` unless rows and step are 1 to `MAX`.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("rows", self.rows), ("step", self.step)] {
            if !(1..=Self::MAX).contains(&value) {
                let most = Self::MAX;
                return Err(Error::argument(format!(
                    "{name} of the tile shape is {value}; it must be 1 to {most}"
                )));
            }
        }
        Ok(())
    }

    /// Number of steps that walk `run`, which is not empty. The first begins where the run does.
    pub const fn steps(&self, run: &Range) -> i64 {
        let step = self.step as i64;
        (run.end - run.start + step - 1) / step
    }
}

/// The rows that one thread block owns, and where its items stand in the list. `magi_tile` of kernels/params.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tile {
    /// First row.
    pub row0: i32,
    /// Number of rows; fewer than the shape's only at the end of the tensor.
    pub rows: i32,
    /// First item.
    pub item0: i32,
    /// Number of items; 0 when no row sees anything.
    pub items: i32,
    /// Steps of all its items: what the tile costs a kernel.
    pub steps: i32,
    /// Where its rows lie: 0 local tensor, 1 receive buffer (keys only).
    pub source: i32,
    /// Where its first piece keeps its part of the result, when it is a piece of a tile; else 0, as `plan::tiles` makes
    /// it.
    pub slot: i32,
    /// Number of pieces << 16 | which of them this is. 0, as `plan::tiles` makes it, or 1 << 16: whole.
    pub pieces: i32,
}

/// A run of tokens that rows of a tile see. `magi_item` of kernels/params.h.
///
/// Every token of the run is seen by at least one row of the tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Item {
    /// First token of the run.
    pub run0: i32,
    /// One past its last token.
    pub run1: i32,
    /// Where the first step begins: `run0`.
    pub start: i32,
    /// First token of the steps that every row of the tile sees entirely: `start` plus a multiple of the step.
    pub full0: i32,
    /// One past the last token of those steps; equal to `full0` when there is none.
    pub full1: i32,
    /// First row that sees something of the run, relative to the tile's first.
    pub row0: i32,
    /// One past the last such row.
    pub row1: i32,
    /// Least `token - row` in coordinates of the tensors; `Item::NO_LO` when unbounded.
    pub lo: i32,
    /// Greatest `token - row`; `Item::NO_HI` when unbounded.
    pub hi: i32,
    /// Where the run lies: 0 local tensor, 1 receive buffer (keys only).
    pub source: i32,
    /// Index of the limits of the tile's first row; `Item::NO_LIMITS` when the band says it all.
    pub limits: i32,
    /// 0.
    pub reserved: i32,
}

/// cbindgen:ignore
impl Item {
    /// No lower bound.
    pub const NO_LO: i32 = -(1 << 30);
    /// No upper bound.
    pub const NO_HI: i32 = 1 << 30;
    /// Rows have no limits of their own.
    pub const NO_LIMITS: i32 = -1;
}

/// Tokens `[lo, hi)` that one row of a tile sees in a run. `magi_row_limits` of kernels/params.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RowLimits {
    /// First token.
    pub lo: i32,
    /// One past the last token; equal to `lo` when the row sees none.
    pub hi: i32,
}

/// The tiles of a pass over one stage, as compressed rows. Immutable once made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileList {
    /// What it was made for.
    pub shape: TileShape,
    /// Tiles in ascending (source, row). They cover every row of the tensors, also those that see nothing.
    pub tiles: Vec<Tile>,
    /// Items of all tiles; within a tile in ascending (source, run).
    pub items: Vec<Item>,
    /// `shape.rows` limits for every item that has limits.
    pub limits: Vec<RowLimits>,
    /// Tiles by falling steps, equal ones ascending: the order in which to hand them out.
    pub order: Vec<i32>,
    /// Visible cells of each tile.
    pub areas: Vec<i64>,
}

/// cbindgen:ignore
impl TileList {
    /// Version of the layout; `MAGI_TILES_VERSION` of kernels/params.h is the same.
    pub const VERSION: i32 = 2;
    /// Most tokens of a tensor. A band then fits between `Item::NO_LO` and `Item::NO_HI`, and `i32` holds every sum of
    /// a side of a band and a token.
    pub const MAX_TOKENS: i64 = 1 << 28;

    /// The items of tile `i`.
    pub fn items_of(&self, i: usize) -> &[Item] {
        let tile = &self.tiles[i];
        &self.items[tile.item0 as usize..][..tile.items as usize]
    }

    /// Tokens that row `row` of `tile`, 0 being its first, sees of `item`'s run; empty when none.
    pub fn seen(&self, tile: &Tile, item: &Item, row: i32) -> Range {
        if !(item.row0..item.row1).contains(&row) {
            return Range::new(item.run0.into(), item.run0.into());
        }
        if item.limits != Item::NO_LIMITS {
            let limits = self.limits[(item.limits + row) as usize];
            // Limits reach beyond an item that is part of a longer one.
            let lo = limits.lo.max(item.run0);
            return Range::new(lo.into(), limits.hi.min(item.run1).max(lo).into());
        }
        let slice = self.band_of(tile, item);
        let row = i64::from(tile.row0 + row);
        let lo = slice.k_lo(row);
        Range::new(lo, slice.k_hi(row).max(lo))
    }

    /// Visible cells of `item`, which is one of `tile`'s. Closed form, or one addition a row for items with limits.
    pub fn item_area(&self, tile: &Tile, item: &Item) -> i64 {
        if item.limits == Item::NO_LIMITS {
            return self.band_of(tile, item).area();
        }
        (item.row0..item.row1)
            .map(|row| self.seen(tile, item, row).len())
            .sum()
    }

    /// Visible cells of all tiles.
    pub fn area(&self) -> i64 {
        self.areas.iter().sum()
    }

    /// Steps of all tiles.
    pub fn steps(&self) -> i64 {
        self.tiles.iter().map(|t| i64::from(t.steps)).sum()
    }

    /// The list without tiles that have no items: for results that are added to, of which these change nothing.
    pub fn without_idle(mut self) -> TileList {
        let busy: Vec<bool> = self.tiles.iter().map(|t| t.items > 0).collect();
        let mut kept = 0;
        let places: Vec<i32> = busy
            .iter()
            .map(|&b| {
                kept += i32::from(b);
                kept - 1
            })
            .collect();
        let stays = |i: i32| busy[i as usize];
        self.order.retain(|&i| stays(i));
        self.order.iter_mut().for_each(|i| *i = places[*i as usize]);
        if self.areas.len() == busy.len() {
            let mut each = busy.iter();
            self.areas.retain(|_| each.next().is_some_and(|&b| b));
        }
        self.tiles.retain(|t| t.items > 0);
        self
    }

    /// Bytes of what is uploaded: tiles, items, limits and order.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.tiles[..])
            + size_of_val(&self.items[..])
            + size_of_val(&self.limits[..])
            + size_of_val(&self.order[..])
    }

    /// An item without limits as a slice: rows of the tile against the run.
    fn band_of(&self, tile: &Tile, item: &Item) -> Slice {
        let rows = Range::new((tile.row0 + item.row0).into(), (tile.row0 + item.row1).into());
        let band = Band::new(item.lo.into(), item.hi.into());
        Slice::new(rows, Range::new(item.run0.into(), item.run1.into()), band)
    }
}
