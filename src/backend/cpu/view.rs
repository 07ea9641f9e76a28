//! Checked views of `[tokens, heads, width]` tensors in host memory.

use super::element::{load, load_row, store};
use crate::types::{DType, Device, Error, Range, Result, Status, Tensor};

/// Fails unless the tensor lies in host memory and has an address if it has elements.
pub(super) fn expect_host(name: &str, t: &Tensor) -> Result<()> {
    if t.device() != Device::Cpu {
        let message = format!(
            "{name} lies on {:?}; the cpu backend works on host memory",
            t.device()
        );
        return Err(Error::new(Status::DeviceMismatch, message));
    }
    if t.data().is_null() && t.elements() > 0 {
        let message = format!("{name} is NULL and has {} elements", t.elements());
        return Err(Error::new(Status::NullPointer, message));
    }
    Ok(())
}

/// Fails unless f64, f32, bf16 or f16.
pub(super) fn expect_attention(name: &str, t: &Tensor) -> Result<()> {
    if t.dtype().is_attention() {
        return Ok(());
    }
    let message = format!(
        "{name} has dtype {}; it must be f64, f32, bf16 or f16",
        t.dtype().name()
    );
    Err(Error::new(Status::DtypeMismatch, message))
}

/// Fails unless every range lies inside `tokens` and together they have `rows` tokens.
pub(super) fn expect_ranges(ranges: &[Range], tokens: i64, rows: i64) -> Result<()> {
    if let Some(r) = ranges
        .iter()
        .find(|r| !r.is_empty() && (r.start < 0 || r.end > tokens))
    {
        return Err(Error::range(format!(
            "range {r} lies outside the {tokens} rows of the tensor"
        )));
    }
    let total: i64 = ranges.iter().map(Range::len).sum();
    if total == rows {
        return Ok(());
    }
    let message = format!("the ranges have {total} tokens and the packed tensor {rows} rows");
    Err(Error::new(Status::ShapeMismatch, message))
}

/// A `[tokens, heads, width]` or `[tokens, heads]` (width 1) tensor of an attention dtype whose elements of one head
/// are consecutive.
#[derive(Clone, Copy)]
pub(super) struct View {
    data: *mut u8,
    dtype: DType,
    tokens: i64,
    heads: usize,
    width: usize,
    token_bytes: isize,
    head_bytes: isize,
}

// SAFETY: a view is a `Tensor` that was checked; the promise made for the tensor covers use from any thread.
unsafe impl Send for View {}
// SAFETY: as above. Who writes which rows is for the users of a view to keep apart.
unsafe impl Sync for View {}

impl View {
    /// A view of `t`, which must be host memory of `dtype` (any attention dtype when `None`) with two or three
    /// dimensions and, in the third, stride 1.
    pub fn new(name: &str, t: &Tensor, dtype: Option<DType>) -> Result<View> {
        expect_host(name, t)?;
        expect_attention(name, t)?;
        if let Some(dtype) = dtype {
            t.expect_dtype(name, dtype)?;
        }
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
        let bytes = t.dtype().size() as isize;
        Ok(View {
            data: t.data(),
            dtype: t.dtype(),
            tokens: shape[0],
            heads: shape[1] as usize,
            width: width as usize,
            token_bytes: stride[0] as isize * bytes,
            head_bytes: stride[1] as isize * bytes,
        })
    }

    /// `new`, of exactly this shape and dtype.
    pub fn shaped(name: &str, t: &Tensor, shape: &[i64], dtype: DType) -> Result<View> {
        t.expect_shape(name, shape)?;
        View::new(name, t, Some(dtype))
    }

    /// Extent of the first dimension.
    pub fn tokens(&self) -> i64 {
        self.tokens
    }

    /// Extent of the second dimension.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Extent of the third dimension.
    pub fn width(&self) -> usize {
        self.width
    }

    fn at(&self, token: i64, head: usize) -> *mut u8 {
        assert!((0..self.tokens).contains(&token) && head < self.heads);
        self.data
            .wrapping_offset(token as isize * self.token_bytes + head as isize * self.head_bytes)
    }

    /// Reads the elements of one token and head into `to[..width]`.
    pub fn read(&self, token: i64, head: usize, to: &mut [f64]) {
        let to = &mut to[..self.width];
        // SAFETY: token and head were checked, so the elements are among those that the tensor promises.
        unsafe { load_row(self.dtype, self.at(token, head), to) }
    }

    /// Writes `from[..width]` to one token and head.
    pub fn write(&self, token: i64, head: usize, from: &[f64]) {
        let at = self.at(token, head);
        for (i, &x) in from[..self.width].iter().enumerate() {
            // SAFETY: as in `read`; the tensor was handed in as an output.
            unsafe { store(self.dtype, at.wrapping_add(i * self.dtype.size()), x) }
        }
    }

    /// Adds `factor * by[..width]` to one token and head.
    pub fn add(&self, token: i64, head: usize, by: &[f64], factor: f64) {
        let at = self.at(token, head);
        for (i, &x) in by[..self.width].iter().enumerate() {
            let at = at.wrapping_add(i * self.dtype.size());
            // SAFETY: as in `write`.
            unsafe { store(self.dtype, at, load(self.dtype, at) + factor * x) }
        }
    }

    /// The first element of one token and head.
    pub fn get(&self, token: i64, head: usize) -> f64 {
        // SAFETY: as in `read`; a view has at least one element a head.
        unsafe { load(self.dtype, self.at(token, head)) }
    }

    /// Sets the first element of one token and head.
    pub fn set(&self, token: i64, head: usize, x: f64) {
        // SAFETY: as in `write`.
        unsafe { store(self.dtype, self.at(token, head), x) }
    }
}
