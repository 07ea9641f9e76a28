//! Launchers of kernels/ranges.cu. Ranges travel in the parameters of a launch, so that nothing has to be allocated or
//! kept alive: long lists take several launches.

use super::CudaBackend;
use super::check::{expect_attention, expect_ranges, expect_rows};
use super::walk::{View, Walk};
use crate::device::cuda::Arguments;
use crate::types::{Range, Result, Tensor};

/// Ranges of a launch with 4 KiB of parameters, and with 32 KiB: MAGI_RANGES_FEW and MAGI_RANGES_MANY.
pub const FEW: usize = 192;
/// See `FEW`.
pub const MANY: usize = 1920;

/// `magi_range`: rows `[start, ...)` of the spread tensor that lie at `packed` of the other.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedRange {
    /// First row in the spread tensor.
    pub start: i64,
    /// First row in the packed tensor, counted from the launch's first.
    pub packed: i64,
}

/// `magi_rows`: the rows of a launch.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Rows in all ranges.
    pub rows: i64,
    /// Bytes from one row to the next in the spread tensor.
    pub spread_step: i64,
    /// The same in the packed one.
    pub packed_step: i64,
    /// Ranges.
    pub count: i32,
    /// 0: spread to packed; 1: packed to spread.
    pub scatter: i32,
}

/// Ranges of one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    /// First row in the packed tensor.
    first: i64,
    rows: i64,
    ranges: Vec<PackedRange>,
}

/// Cuts `ranges` into launches of at most `most`; with `distinct` also so that no row is met twice in one launch: what
/// comes later in the list then comes later on the device.
fn batches(ranges: &[Range], most: usize, distinct: bool) -> Vec<Batch> {
    let mut done: Vec<Batch> = Vec::new();
    let mut met: std::collections::BTreeMap<i64, i64> = std::collections::BTreeMap::new();
    let mut row = 0;
    for r in ranges.iter().filter(|r| !r.is_empty()) {
        // Ranges that were met share no row: the last that starts before r's end is the only one that can reach into it.
        let again = distinct
            && met
                .range(..r.end)
                .next_back()
                .is_some_and(|(_, &end)| end > r.start);
        match done.last_mut().filter(|b| b.ranges.len() < most && !again) {
            Some(batch) => {
                batch.ranges.push(PackedRange {
                    start: r.start,
                    packed: row - batch.first,
                });
                batch.rows += r.len();
            }
            None => {
                met.clear();
                done.push(Batch {
                    first: row,
                    rows: r.len(),
                    ranges: vec![PackedRange {
                        start: r.start,
                        packed: 0,
                    }],
                });
            }
        }
        if distinct {
            met.insert(r.start, r.end);
        }
        row += r.len();
    }
    done
}

/// A list as a kernel's parameter: `N` ranges, of which the first are used.
fn fixed<const N: usize>(ranges: &[PackedRange]) -> [PackedRange; N] {
    let mut all = [PackedRange::default(); N];
    all[..ranges.len()].copy_from_slice(ranges);
    all
}

/// Bytes from one row to the next.
fn row_step(t: &Tensor) -> i64 {
    t.stride()[0] * t.dtype().size() as i64
}

impl Batch {
    fn rows(&self, spread: &Tensor, packed: &Tensor, scatter: bool) -> Rows {
        Rows {
            rows: self.rows,
            spread_step: row_step(spread),
            packed_step: row_step(packed),
            count: self.ranges.len() as i32,
            scatter: i32::from(scatter),
        }
    }

    /// The packed tensor's rows of this launch.
    fn of(&self, packed: &Tensor) -> *mut u8 {
        packed.rows(self.first, self.first + self.rows).data()
    }
}

impl CudaBackend {
    /// See `Backend::range_gather` and, with `scatter`, `Backend::range_scatter`.
    pub(super) fn copy_rows(
        &self,
        spread: (&str, &Tensor),
        packed: (&str, &Tensor),
        ranges: &[Range],
        scatter: bool,
    ) -> Result<()> {
        expect_ranges(self.gpu(), spread, packed, ranges)?;
        let (spread, packed) = ((spread.0, spread.1), packed.1);
        spread.1.expect_dtype(spread.0, packed.dtype())?;
        let spread = spread.1;
        if packed.elements() == 0 {
            return Ok(());
        }
        let walk = Walk::moving(&[spread, packed], 1, &[row_step(spread), row_step(packed)]);
        let most = if ranges.len() > FEW { MANY } else { FEW };
        for batch in batches(ranges, most, scatter) {
            let rows = batch.rows(spread, packed, scatter);
            let (at, from, units) = (spread.data(), batch.of(packed), batch.rows * walk.units);
            let mut arguments = Arguments::new();
            arguments.push(&walk).push(&rows).push(&at).push(&from);
            // SAFETY: parameters as in kernels/ranges.cu; ranges and rows were checked.
            unsafe {
                if batch.ranges.len() <= FEW {
                    let list = fixed::<FEW>(&batch.ranges);
                    arguments.push(&list);
                    self.launch_over("ranges", "range_copy_few", units, &mut arguments)?;
                } else {
                    let list = fixed::<MANY>(&batch.ranges);
                    arguments.push(&list);
                    self.launch_over("ranges", "range_copy_many", units, &mut arguments)?;
                }
            }
        }
        Ok(())
    }

    /// See `Backend::range_reduce`.
    pub(super) fn reduce_rows(&self, src: &Tensor, dst: &Tensor, ranges: &[Range]) -> Result<()> {
        expect_ranges(self.gpu(), ("dst", dst), ("src", src), ranges)?;
        expect_attention(self.gpu(), "src", src)?;
        expect_attention(self.gpu(), "dst", dst)?;
        if src.elements() == 0 {
            return Ok(());
        }
        // The kernel reads the packed tensor and writes the spread one, whose offsets come first.
        let walk = Walk::converting(&[dst, src], 1, &[row_step(dst), row_step(src)]);
        let name = format!("range_reduce_{}_{}", src.dtype().name(), dst.dtype().name());
        for batch in batches(ranges, FEW, true) {
            let rows = batch.rows(dst, src, true);
            let (to, from, list) = (dst.data(), batch.of(src), fixed::<FEW>(&batch.ranges));
            let mut arguments = Arguments::new();
            arguments
                .push(&walk)
                .push(&rows)
                .push(&to)
                .push(&from)
                .push(&list);
            // SAFETY: as in `copy_rows`.
            unsafe { self.launch_over("ranges", &name, batch.rows * walk.units, &mut arguments)? };
        }
        Ok(())
    }

    /// See `Backend::lse_reduce`.
    pub(super) fn merge_rows(
        &self,
        (out_src, lse_src): (&Tensor, &Tensor),
        (out_dst, lse_dst): (&Tensor, &Tensor),
        ranges: &[Range],
    ) -> Result<()> {
        let gpu = self.gpu();
        expect_ranges(gpu, ("out_dst", out_dst), ("out_src", out_src), ranges)?;
        let (_, heads, width) = expect_rows(gpu, "out_src", out_src)?;
        expect_rows(gpu, "out_dst", out_dst)?;
        expect_rows(gpu, "lse_src", lse_src)?;
        expect_rows(gpu, "lse_dst", lse_dst)?;
        lse_src.expect_shape("lse_src", &out_src.shape()[..2])?;
        lse_dst.expect_shape("lse_dst", &out_dst.shape()[..2])?;
        if lse_src.elements() == 0 {
            return Ok(());
        }
        let (out_to, lse_to) = (View::of(out_dst), View::of(lse_dst));
        let (heads, width) = (heads as i32, width as i32);
        let name = format!("lse_reduce_{}_{}", out_src.dtype().name(), out_dst.dtype().name());
        for batch in batches(ranges, FEW, true) {
            let rows = batch.rows(out_dst, out_src, true);
            let list = fixed::<FEW>(&batch.ranges);
            let of_batch = |t: &Tensor| View {
                data: batch.of(t),
                ..View::of(t)
            };
            let (out_from, lse_from) = (of_batch(out_src), of_batch(lse_src));
            let mut arguments = Arguments::new();
            arguments.push(&rows).push(&out_from).push(&lse_from);
            arguments.push(&out_to).push(&lse_to);
            arguments.push(&heads).push(&width).push(&list);
            // A warp for each row and head.
            let threads = batch.rows * i64::from(heads) * 32;
            // SAFETY: as in `copy_rows`.
            unsafe { self.launch_over("ranges", &name, threads, &mut arguments)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(i64, i64)]) -> Vec<Range> {
        pairs.iter().map(|&(a, b)| Range::new(a, b)).collect()
    }

    /// (row of the spread tensor, row of the packed one) of every launch.
    fn rows(batches: &[Batch]) -> Vec<Vec<(i64, i64)>> {
        let of = |b: &Batch| {
            let ends = b.ranges.iter().skip(1).map(|r| r.packed).chain([b.rows]);
            let of_range = |(r, end): (&PackedRange, i64)| {
                let (start, packed) = (r.start, r.packed);
                (packed..end).map(move |row| (start + row - packed, b.first + row))
            };
            b.ranges.iter().zip(ends).flat_map(of_range).collect()
        };
        batches.iter().map(of).collect()
    }

    #[test]
    fn rows_keep_their_places_in_any_number_of_launches() {
        let list = ranges(&[(10, 12), (3, 3), (0, 1), (20, 23), (7, 8)]);
        let want = [(10, 0), (11, 1), (0, 2), (20, 3), (21, 4), (22, 5), (7, 6)];
        for most in 1..6 {
            let all = rows(&batches(&list, most, true));
            assert_eq!(all.concat(), want);
            assert_eq!(all.len(), 4usize.div_ceil(most));
        }
        assert!(batches(&ranges(&[(4, 4)]), 8, true).is_empty());
    }

    #[test]
    fn a_row_that_comes_again_waits_for_the_next_launch() {
        let list = ranges(&[(0, 4), (8, 10), (3, 5), (5, 8), (0, 10)]);
        let all = rows(&batches(&list, 8, true));
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [6, 5, 10]);
        for launch in &all {
            let mut spread: Vec<i64> = launch.iter().map(|&(row, _)| row).collect();
            spread.sort_unstable();
            spread.dedup();
            assert_eq!(spread.len(), launch.len());
        }
        assert_eq!(batches(&list, 8, false).len(), 1);
    }
}
