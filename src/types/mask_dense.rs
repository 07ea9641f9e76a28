//! A mask from a bit matrix: few slices that cover exactly the bits that are set.

use super::{Band, Error, Mask, Range, Result, Slice};

/// Most slices that are made; a matrix that needs more is noise, not a mask.
const MAX_SLICES: usize = 1 << 20;

/// A slice that grows row by row. Its left end stays where it is for some rows and then moves by one key a row; its
/// right end moves by one key a row and then stays: the ends of a rectangle with a band.
#[derive(Clone, Copy)]
struct Shape {
    first_row: i64,
    /// Keys of the first row.
    first: Range,
    /// Keys of the last row so far.
    last: Range,
    /// `k - q` of the left end, once it moves.
    diagonal: Option<i64>,
    /// Whether the right end has come to rest.
    rests: bool,
}

impl Shape {
    fn new(row: i64, keys: Range) -> Shape {
        Shape {
            first_row: row,
            first: keys,
            last: keys,
            diagonal: None,
            rests: false,
        }
    }

    /// Whether the next row's keys may start at `key`.
    fn may_start(&self, key: i64) -> bool {
        key == self.last.start + 1 || (key == self.last.start && self.diagonal.is_none())
    }

    /// Whether the next row's keys may end at `key`.
    fn may_end(&self, key: i64) -> bool {
        key == self.last.end || (key == self.last.end + 1 && !self.rests)
    }

    fn grow(&mut self, row: i64, keys: Range) {
        if keys.start != self.last.start {
            self.diagonal = Some(keys.start - row);
        }
        self.rests |= keys.end == self.last.end;
        self.last = keys;
    }

    /// The slice of the rows up to `end`.
    fn slice(&self, end: i64) -> Slice {
        let upper = self.first.end - 1 - self.first_row;
        let band = Band::new(self.diagonal.unwrap_or(Band::NO_LO), upper);
        let keys = Range::new(self.first.start, self.last.end);
        Slice::new(Range::new(self.first_row, end), keys, band).tighten()
    }
}

/// Shapes that reach the current row, by key, and the slices of those that ended.
#[derive(Default)]
struct Cover {
    growing: Vec<Shape>,
    done: Vec<Slice>,
    /// Keys of the shapes that continue into one run, while it is looked at.
    tiling: Vec<Range>,
}

impl Cover {
    /// Takes in the runs of set bits of `row`, ascending.
    ///
    /// A run that the shapes above it can tile continues them; any other starts a shape of its own. So a slice ends
    /// only where its cells do, or where the shape of the run below it no longer fits.
    fn row(&mut self, row: i64, runs: &[Range]) {
        let above = std::mem::take(&mut self.growing);
        let mut next = 0;
        for run in runs {
            // Both ends of a shape move by one key at most.
            while next < above.len() && above[next].last.start < run.start - 1 {
                self.done.push(above[next].slice(row));
                next += 1;
            }
            let from = (next..above.len().min(next + 2)).find(|&i| self.tile(&above[i..], run));
            let Some(from) = from else {
                self.growing.push(Shape::new(row, *run));
                continue;
            };
            self.done.extend(above[next..from].iter().map(|s| s.slice(row)));
            next = from + self.tiling.len();
            for (shape, keys) in above[from..].iter().zip(&self.tiling) {
                let mut shape = *shape;
                shape.grow(row, *keys);
                self.growing.push(shape);
            }
        }
        self.done.extend(above[next..].iter().map(|s| s.slice(row)));
    }

    /// Whether the first of `shapes`, with as many after it as needed, can tile `run` side by side; `tiling` then
    /// holds the keys of each.
    fn tile(&mut self, shapes: &[Shape], run: &Range) -> bool {
        self.tiling.clear();
        let mut start = run.start;
        for (i, shape) in shapes.iter().enumerate() {
            if !shape.may_start(start) {
                return false;
            }
            if shape.may_end(run.end) {
                self.tiling.push(Range::new(start, run.end));
                return true;
            }
            let Some(after) = shapes.get(i + 1) else {
                return false;
            };
            // A right end that has been moving goes on moving where that fits, others rest.
            let moves = !shape.rests && shape.last.end > shape.first.end;
            let stay = shape.last.end;
            let ends = if moves { [stay + 1, stay] } else { [stay, stay + 1] };
            let end = ends.into_iter().find(|&k| shape.may_end(k) && after.may_start(k));
            let Some(end) = end.filter(|&k| k > start && k < run.end) else {
                return false;
            };
            self.tiling.push(Range::new(start, end));
            start = end;
        }
        false
    }
}

/// The runs of set bits among the first `total` of `row`, least significant bit first.
fn runs_of(row: &[u8], total: i64, runs: &mut Vec<Range>) {
    runs.clear();
    let mut open: Option<i64> = None;
    for (bytes, base) in row.chunks(8).zip((0..total).step_by(64)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        let mut word = u64::from_le_bytes(padded);
        if total - base < 64 {
            word &= (1 << (total - base)) - 1;
        }
        let mut edges = word ^ ((word << 1) | u64::from(open.is_some()));
        while edges != 0 {
            let key = base + i64::from(edges.trailing_zeros());
            match open.take() {
                Some(start) => runs.push(Range::new(start, key)),
                None => open = Some(key),
            }
            edges &= edges - 1;
        }
    }
    if let Some(start) = open {
        runs.push(Range::new(start, total));
    }
}

impl Mask {
    /// The mask of a bit matrix: query q sees key k where bit `k % 8` (least significant first) of byte
    /// `q * row_bytes + k / 8` is set. Bits beyond `total_k` are not looked at.
    ///
    /// The slices are exact and few, not the fewest there are. One pass over the matrix: O(bytes + runs of bits).
    ///
    /// `Status::InvalidRange` for totals that no mask has; `Status::InvalidArgument` when `row_bytes` holds no row,
    /// `bits` no `total_q` rows, or more than 2^20 slices would be needed.
    pub fn from_dense(bits: &[u8], row_bytes: usize, total_q: i64, total_k: i64) -> Result<Mask> {
        let needed = Mask::dense_bytes(row_bytes, total_q, total_k)?;
        if bits.len() < needed {
            let message = format!("bits has {} bytes; {total_q} rows need {needed}", bits.len());
            return Err(Error::argument(message));
        }
        let mut cover = Cover::default();
        let mut runs = Vec::new();
        for q in 0..total_q {
            let start = q as usize * row_bytes;
            // A row of no keys may have no bytes at all.
            runs_of(&bits[start..start + row_bytes], total_k, &mut runs);
            cover.row(q, &runs);
            if cover.done.len() + cover.growing.len() > MAX_SLICES {
                let message = format!("bits needs more than {MAX_SLICES} slices, at row {q} of {total_q}");
                return Err(Error::argument(message));
            }
        }
        cover.row(total_q, &[]);
        let mut slices = cover.done;
        slices.sort_unstable();
        Mask::from_slices(slices, total_q, total_k)
    }

    /// Bytes of a bit matrix of `total_q` rows of `row_bytes` bytes. Errors as `from_dense`.
    pub fn dense_bytes(row_bytes: usize, total_q: i64, total_k: i64) -> Result<usize> {
        Mask::check_totals(total_q, total_k)?;
        let least = (total_k as usize).div_ceil(8);
        if row_bytes < least {
            return Err(Error::argument(format!(
                "row_bytes is {row_bytes}; {total_k} keys need {least} or more"
            )));
        }
        (total_q as usize)
            .checked_mul(row_bytes)
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or_else(|| {
                Error::argument(format!(
                    "row_bytes is {row_bytes}; {total_q} rows of it are more than memory can hold"
                ))
            })
    }
}
