//! Matrix products over packed panels: all of attention's multiplications are one of two forms of C = A B.

use super::vector::Vector;

/// Columns of a panel. Every packed width is a multiple of it.
pub(super) const PANEL: usize = 8;
/// Most rows of a product.
pub(super) const MAX_ROWS: usize = 128;

/// What one row of the score matrix sees: columns `[lo, hi)`; nothing when `hi <= lo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// First visible column.
    pub lo: u32,
    /// One past the last.
    pub hi: u32,
}

/// Operands of a product.
pub(super) struct Product<'a> {
    /// `rows` rows of `depth` elements, `a_stride` apart.
    pub a: &'a [f64],
    /// Elements from one row of A to the next.
    pub a_stride: usize,
    /// Panel after panel: `depth` rows of `PANEL` columns each.
    pub b: &'a [f64],
    /// Columns of A and rows of B.
    pub depth: usize,
    /// `rows` rows of `cols` elements, `cols` apart.
    pub c: &'a mut [f64],
    /// Columns of B and C: a multiple of `PANEL`.
    pub cols: usize,
    /// One for each row.
    pub bounds: &'a [Bounds],
}

impl Product<'_> {
    /// Whether all that the kernels touch lies inside the operands.
    pub fn fits(&self) -> bool {
        let rows = self.bounds.len();
        rows == 0
            || (rows <= MAX_ROWS
                && self.cols.is_multiple_of(PANEL)
                && self.depth <= self.a_stride
                && self.a.len() >= (rows - 1) * self.a_stride + self.depth
                && self.b.len() >= self.depth * self.cols
                && self.c.len() >= rows * self.cols)
    }
}

/// Rows that are computed together, and the union of what they see.
#[derive(Clone, Copy, Default)]
struct Strip {
    start: usize,
    count: usize,
    lo: usize,
    hi: usize,
}

/// Cuts the rows into strips of `main` rows, the rest into 4, 2 and 1; strips that see nothing are left out.
#[inline(always)]
fn strips(bounds: &[Bounds], main: usize) -> ([Strip; MAX_ROWS], usize) {
    let mut all = [Strip::default(); MAX_ROWS];
    let mut found = 0;
    let mut start = 0;
    while start < bounds.len() {
        let left = bounds.len() - start;
        let count = [main, 4, 2, 1]
            .into_iter()
            .find(|&n| n <= main && n <= left)
            .unwrap_or(1);
        let (mut lo, mut hi) = (u32::MAX, 0);
        for b in bounds[start..start + count].iter().filter(|b| b.lo < b.hi) {
            lo = lo.min(b.lo);
            hi = hi.max(b.hi);
        }
        if lo < hi {
            all[found] = Strip {
                start,
                count,
                lo: lo as usize,
                hi: hi as usize,
            };
            found += 1;
        }
        start += count;
    }
    (all, found)
}

/// Addresses and strides of one tile of C.
#[derive(Clone, Copy)]
struct Tile {
    a: *const f64,
    a_stride: usize,
    b: *const f64,
    panel_stride: usize,
    c: *mut f64,
    c_stride: usize,
    from: usize,
    to: usize,
    add: bool,
}

/// C tile (`MR` rows, `NV` vectors) = or += the product over depth `[from, to)`.
///
/// # Safety
/// The processor has the instructions of `V`; the tile lies inside the operands.
#[inline(always)]
unsafe fn tile<V: Vector, const MR: usize, const NV: usize>(t: Tile) {
    // SAFETY: row i, depth k and vector v stay below MR, `to` and NV, which the caller promises to be inside.
    unsafe {
        let offset = |v: usize| (v * V::LANES / PANEL) * t.panel_stride + v * V::LANES % PANEL;
        let mut sum = [[V::splat(0.0); NV]; MR];
        for k in t.from..t.to {
            let mut b = [V::splat(0.0); NV];
            for (v, b) in b.iter_mut().enumerate() {
                *b = V::load(t.b.add(offset(v) + k * PANEL));
            }
            for (i, sum) in sum.iter_mut().enumerate() {
                let a = V::splat(*t.a.add(i * t.a_stride + k));
                for (sum, &b) in sum.iter_mut().zip(&b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
        }
        for (i, sum) in sum.iter().enumerate() {
            for (v, &sum) in sum.iter().enumerate() {
                let at = t.c.add(i * t.c_stride + v * V::LANES);
                if t.add { V::load(at).add(sum) } else { sum }.store(at);
            }
        }
    }
}

/// `tile` for a strip of any height.
///
/// # Safety
/// As `tile`; `rows` is `MAIN`, 4, 2 or 1.
#[inline(always)]
unsafe fn tile_rows<V: Vector, const MAIN: usize, const NV: usize>(t: Tile, rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            4 => tile::<V, 4, NV>(t),
            2 => tile::<V, 2, NV>(t),
            1 => tile::<V, 1, NV>(t),
            _ => tile::<V, MAIN, NV>(t),
        }
    }
}

/// Calls `f(first column, tile width in vectors)` over the columns: two vectors at a time, a single panel last.
#[inline(always)]
fn each_column_group<V: Vector>(cols: usize, mut f: impl FnMut(usize, bool)) {
    let mut j = 0;
    while j < cols {
        let wide = V::LANES < PANEL || cols - j >= 2 * PANEL;
        f(j, wide);
        j += if wide { 2 * V::LANES } else { V::LANES };
    }
}

/// C = A B. Only columns that a strip's rows see need be computed; others are left or hold anything.
///
/// # Safety
/// The processor has the instructions of `V`; `p.fits()`; bounds are at most `p.cols`.
#[inline(always)]
pub(super) unsafe fn scores<V: Vector, const MAIN: usize>(p: &mut Product<'_>) {
    let (strips, found) = strips(p.bounds, MAIN);
    each_column_group::<V>(p.cols, |j, wide| {
        let width = if wide { 2 * V::LANES } else { V::LANES };
        for s in strips[..found].iter().filter(|s| s.lo < j + width && j < s.hi) {
            // SAFETY: `fits` was checked: strip and columns lie inside.
            unsafe {
                let t = Tile {
                    a: p.a.as_ptr().add(s.start * p.a_stride),
                    a_stride: p.a_stride,
                    b: p.b.as_ptr().add(j * p.depth),
                    panel_stride: p.depth * PANEL,
                    c: p.c.as_mut_ptr().add(s.start * p.cols + j),
                    c_stride: p.cols,
                    from: 0,
                    to: p.depth,
                    add: false,
                };
                if wide {
                    tile_rows::<V, MAIN, 2>(t, s.count);
                } else {
                    tile_rows::<V, MAIN, 1>(t, s.count);
                }
            }
        }
    });
}

/// C += A B, where row i of A is zero outside its bounds; depth outside the union of a strip's bounds is skipped.
/// With `exact` every row is its own strip: nothing that a row does not see is multiplied, not even by zero.
///
/// # Safety
/// The processor has the instructions of `V`; `p.fits()`; bounds are at most `p.depth`.
#[inline(always)]
pub(super) unsafe fn accumulate<V: Vector, const MAIN: usize>(p: &mut Product<'_>, exact: bool) {
    let (strips, found) = strips(p.bounds, if exact { 1 } else { MAIN });
    each_column_group::<V>(p.cols, |j, wide| {
        for s in &strips[..found] {
            // SAFETY: as in `scores`.
            unsafe {
                let t = Tile {
                    a: p.a.as_ptr().add(s.start * p.a_stride),
                    a_stride: p.a_stride,
                    b: p.b.as_ptr().add(j * p.depth),
                    panel_stride: p.depth * PANEL,
                    c: p.c.as_mut_ptr().add(s.start * p.cols + j),
                    c_stride: p.cols,
                    from: s.lo,
                    to: s.hi,
                    add: true,
                };
                if wide {
                    tile_rows::<V, MAIN, 2>(t, s.count);
                } else {
                    tile_rows::<V, MAIN, 1>(t, s.count);
                }
            }
        }
    });
}
