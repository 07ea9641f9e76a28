//! Element by element: casts, division, zeros, the search for NaN.

use super::element::{load, store};
use super::view::{expect_attention, expect_host};
use super::walk::each_run;
use crate::types::{Error, Result, Tensor};

/// See `Backend::cast`.
pub(super) fn cast(src: &Tensor, dst: &Tensor, accumulate: bool) -> Result<()> {
    for (name, t) in [("src", src), ("dst", dst)] {
        expect_host(name, t)?;
        expect_attention(name, t)?;
    }
    src.expect_shape("src", dst.shape())?;
    convert(src, dst, accumulate);
    Ok(())
}

/// `dst = src` or `dst += src` of checked tensors.
pub(super) fn convert(src: &Tensor, dst: &Tensor, accumulate: bool) {
    let (from, to) = (src.dtype(), dst.dtype());
    each_run([src, dst], |run| {
        for i in 0..run.len {
            let at = run.get(1, i);
            // SAFETY: the walk stays on elements of both tensors; dst was handed in as an output.
            unsafe {
                let mut x = load(from, run.get(0, i));
                if accumulate {
                    x += load(to, at);
                }
                store(to, at, x);
            }
        }
    });
}

/// See `Backend::divide`.
pub(super) fn divide(dst: &Tensor, by: i64) -> Result<()> {
    expect_host("dst", dst)?;
    expect_attention("dst", dst)?;
    if by == 0 {
        return Err(Error::argument("by is 0; it must not be"));
    }
    let dtype = dst.dtype();
    each_run([dst], |run| {
        for i in 0..run.len {
            let at = run.get(0, i);
            // SAFETY: as in `convert`.
            unsafe { store(dtype, at, load(dtype, at) / by as f64) }
        }
    });
    Ok(())
}

/// See `Backend::fill_zero`.
pub(super) fn fill_zero(dst: &Tensor) -> Result<()> {
    expect_host("dst", dst)?;
    let size = dst.dtype().size();
    each_run([dst], |run| {
        let dense = run.is_dense([size]);
        let (pieces, bytes) = if dense {
            (1, run.len * size)
        } else {
            (run.len, size)
        };
        for i in 0..pieces {
            // SAFETY: as in `convert`; all bytes zero is zero in every dtype.
            unsafe { run.get(0, i).write_bytes(0, bytes) }
        }
    });
    Ok(())
}

/// See `Backend::has_nan`.
pub(super) fn has_nan(t: &Tensor) -> Result<bool> {
    expect_host("tensor", t)?;
    if !t.dtype().is_attention() {
        return Ok(false);
    }
    let mut found = false;
    each_run([t], |run| {
        // SAFETY: the walk stays on elements of the tensor.
        found = found || (0..run.len).any(|i| unsafe { load(t.dtype(), run.get(0, i)) }.is_nan());
    });
    Ok(found)
}
