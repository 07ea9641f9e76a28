//! What memory safety of a launch rests on.

use crate::device::cuda::Gpu;
use crate::types::{Device, Error, Range, Result, Status, Tensor};

/// Fails unless the tensor lies on this device, has an address if it has elements, and is aligned to its elements.
pub fn expect_here(gpu: &Gpu, name: &str, t: &Tensor) -> Result<()> {
    if t.device() != Device::Cuda(gpu.ordinal()) {
        let message = format!(
            "{name} lies on {:?}; this call works on CUDA device {}",
            t.device(),
            gpu.ordinal()
        );
        return Err(Error::new(Status::DeviceMismatch, message));
    }
    if t.elements() == 0 {
        return Ok(());
    }
    if t.data().is_null() {
        let message = format!("{name} is NULL and has {} elements", t.elements());
        return Err(Error::new(Status::NullPointer, message));
    }
    if !(t.data() as usize).is_multiple_of(t.dtype().size()) {
        return Err(Error::argument(format!(
            "{name} is at {:p}, which is not aligned to its elements of {} bytes",
            t.data(),
            t.dtype().size()
        )));
    }
    Ok(())
}

/// As `expect_here`, and of an attention dtype.
pub fn expect_attention(gpu: &Gpu, name: &str, t: &Tensor) -> Result<()> {
    expect_here(gpu, name, t)?;
    if t.dtype().is_attention() {
        return Ok(());
    }
    let message = format!(
        "{name} has dtype {}; it must be f64, f32, bf16 or f16",
        t.dtype().name()
    );
    Err(Error::new(Status::DtypeMismatch, message))
}

/// As `expect_attention`, with two or three dimensions and, in the third, stride 1. Gives (tokens, heads, width).
pub fn expect_rows(gpu: &Gpu, name: &str, t: &Tensor) -> Result<(i64, i64, i64)> {
    expect_attention(gpu, name, t)?;
    let (shape, stride) = (t.shape(), t.stride());
    if shape.len() != 2 && shape.len() != 3 {
        let message = format!("{name} has shape {shape:?}; it must have two or three dimensions");
        return Err(Error::new(Status::ShapeMismatch, message));
    }
    let width = shape.get(2).copied().unwrap_or(1);
    if width > 1 && stride[2] != 1 {
        let message = format!(
            "{name} has stride {} in its last dimension; it must be 1",
            stride[2]
        );
        return Err(Error::new(Status::InvalidStride, message));
    }
    for (what, n) in [("heads", shape[1]), ("elements of a head", width)] {
        if n > i64::from(i32::MAX) {
            let message = format!("{name} has {n} {what}; at most 2^31 - 1 are supported");
            return Err(Error::new(Status::NotSupported, message));
        }
    }
    Ok((shape[0], shape[1], width))
}

/// Fails unless `packed` has the rows of the ranges of `spread`, one after the other.
pub fn expect_ranges(
    gpu: &Gpu,
    spread: (&str, &Tensor),
    packed: (&str, &Tensor),
    ranges: &[Range],
) -> Result<()> {
    for (name, t) in [spread, packed] {
        expect_here(gpu, name, t)?;
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
    let (tokens, rows) = (spread.1.tokens(), packed.1.tokens());
    let outside = |r: &&Range| !r.is_empty() && (r.start < 0 || r.end > tokens);
    if let Some(r) = ranges.iter().find(outside) {
        return Err(Error::range(format!(
            "range {r} lies outside the {tokens} rows of the tensor"
        )));
    }
    let total: i64 = ranges.iter().map(Range::len).sum();
    if total != rows {
        let message = format!("the ranges have {total} tokens and the packed tensor {rows} rows");
        return Err(Error::new(Status::ShapeMismatch, message));
    }
    Ok(())
}
