//! Rows of one tensor inside ranges against consecutive rows of another.

use super::elementwise::convert;
use super::scratch::filled;
use super::view::{View, expect_attention, expect_host, expect_ranges};
use super::walk::each_run;
use crate::types::{Error, Range, Result, Status, Tensor};

/// Checks a pair of which `packed` has the rows of the ranges of `spread`, one after the other.
fn check(spread: (&str, &Tensor), packed: (&str, &Tensor), ranges: &[Range]) -> Result<()> {
    for (name, t) in [spread, packed] {
        expect_host(name, t)?;
        if t.shape().is_empty() {
            let message = format!("{name} has no dimensions; its first one must be rows");
            return Err(Error::new(Status::ShapeMismatch, message));
        }
    }
    if spread.1.shape()[1..] != packed.1.shape()[1..] {
        let (a, b) = (spread.1.shape(), packed.1.shape());
        let message = format!(
            "rows of {} {a:?} and {} {b:?} have different shapes",
            spread.0, packed.0
        );
        return Err(Error::new(Status::ShapeMismatch, message));
    }
    expect_ranges(ranges, spread.1.tokens(), packed.1.tokens())
}

/// Calls `f(rows of spread, rows of packed)` for every range that is not empty.
fn each_range(spread: &Tensor, packed: &Tensor, ranges: &[Range], mut f: impl FnMut(&Tensor, &Tensor)) {
    let mut row = 0;
    for r in ranges.iter().filter(|r| !r.is_empty()) {
        f(&spread.rows(r.start, r.end), &packed.rows(row, row + r.len()));
        row += r.len();
    }
}

/// Copies elements of the same dtype.
fn copy(src: &Tensor, dst: &Tensor) {
    let size = dst.dtype().size();
    each_run([src, dst], |run| {
        let (pieces, bytes) = if run.is_dense([size; 2]) {
            (1, run.len * size)
        } else {
            (run.len, size)
        };
        for i in 0..pieces {
            // SAFETY: the walk stays on elements of both tensors; dst was handed in as an output.
            unsafe { std::ptr::copy(run.get(0, i), run.get(1, i), bytes) }
        }
    });
}

/// See `Backend::range_gather`.
pub(super) fn gather(src: &Tensor, ranges: &[Range], dst: &Tensor) -> Result<()> {
    check(("src", src), ("dst", dst), ranges)?;
    src.expect_dtype("src", dst.dtype())?;
    each_range(src, dst, ranges, copy);
    Ok(())
}

/// See `Backend::range_scatter`.
pub(super) fn scatter(src: &Tensor, dst: &Tensor, ranges: &[Range]) -> Result<()> {
    check(("dst", dst), ("src", src), ranges)?;
    src.expect_dtype("src", dst.dtype())?;
    each_range(dst, src, ranges, |dst, src| copy(src, dst));
    Ok(())
}

/// See `Backend::range_reduce`.
pub(super) fn reduce(src: &Tensor, dst: &Tensor, ranges: &[Range]) -> Result<()> {
    check(("dst", dst), ("src", src), ranges)?;
    expect_attention("src", src)?;
    expect_attention("dst", dst)?;
    each_range(dst, src, ranges, |dst, src| convert(src, dst, true));
    Ok(())
}

/// See `Backend::lse_reduce`.
pub(super) fn lse_reduce(
    (out_src, lse_src): (&Tensor, &Tensor),
    (out_dst, lse_dst): (&Tensor, &Tensor),
    ranges: &[Range],
) -> Result<()> {
    check(("out_dst", out_dst), ("out_src", out_src), ranges)?;
    let (out_from, out_to) = (
        View::new("out_src", out_src, None)?,
        View::new("out_dst", out_dst, None)?,
    );
    let (lse_from, lse_to) = (
        View::new("lse_src", lse_src, None)?,
        View::new("lse_dst", lse_dst, None)?,
    );
    lse_src.expect_shape("lse_src", &out_src.shape()[..2])?;
    lse_dst.expect_shape("lse_dst", &out_dst.shape()[..2])?;
    let (mut a, mut b) = (filled(out_to.width(), 0.0)?, filled(out_to.width(), 0.0)?);
    let rows = ranges.iter().flat_map(|r| r.start..r.end);
    for (row, token) in rows.enumerate() {
        for head in 0..out_to.heads() {
            let (new, old) = (lse_from.get(row as i64, head), lse_to.get(token, head));
            if new == f64::NEG_INFINITY {
                continue;
            }
            out_from.read(row as i64, head, &mut b);
            if old == f64::NEG_INFINITY {
                out_to.write(token, head, &b);
                lse_to.set(token, head, new);
                continue;
            }
            out_to.read(token, head, &mut a);
            // The difference alone enters the weights, so that they sum to 1 however large the lse are.
            let merged = new.max(old) + libm::log1p(libm::exp(-(new - old).abs()));
            let weight = 1.0 / (1.0 + libm::exp(old - new));
            for (a, b) in a.iter_mut().zip(&b) {
                *a += weight * (b - *a);
            }
            out_to.write(token, head, &a);
            lse_to.set(token, head, merged);
        }
    }
    Ok(())
}
