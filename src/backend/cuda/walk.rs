//! What the helper kernels are told about tensors: the structs of kernels/helper/walk.h.

use crate::types::{Error, MAX_DIMS, Result, Status, Tensor};

/// Elements that a thread converts at once where it can.
const WIDE: i64 = 8;

/// Most bytes that a thread moves at once.
const MOST_BYTES: i64 = 16;

/// `magi_walk`: every index of one or two equally shaped tensors, cut into units of consecutive elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Product of the extents.
    pub units: i64,
    /// Units of dimension 0, the innermost; indices of the others.
    pub extent: [i64; MAX_DIMS],
    /// Bytes from one to the next in the first tensor.
    pub first: [i64; MAX_DIMS],
    /// The same in the second tensor.
    pub second: [i64; MAX_DIMS],
    /// Dimensions, 1 to 8.
    pub dims: i32,
    /// Elements of a unit, or bytes where elements are only moved.
    pub unit: i32,
}

/// One of the tensors of a walk.
#[derive(Clone, Copy)]
struct Strided {
    address: i64,
    size: i64,
    step: [i64; MAX_DIMS],
}

impl Strided {
    fn of(t: &Tensor) -> Strided {
        Strided {
            address: t.data() as usize as i64,
            size: t.dtype().size() as i64,
            step: [0; MAX_DIMS],
        }
    }

    /// Whether units of `bytes` bytes are aligned, when dimension 0 is made of such units.
    fn takes(&self, bytes: i64, dims: usize) -> bool {
        let aligned = |x: i64| x % bytes == 0;
        aligned(self.address) && self.step[1..dims.max(1)].iter().all(|&s| aligned(s))
    }
}

impl Walk {
    /// A walk that converts elements: 8 at a time where all tensors lie so that they can be read at once. Only the
    /// dimensions from `from` on are walked over; `rows` are further steps in bytes, one for each tensor, that a kernel
    /// adds. The shape has elements, and the tensors have the same.
    pub fn converting(tensors: &[&Tensor], from: usize, rows: &[i64]) -> Walk {
        let (mut extent, mut strided, dims) = merged(tensors, from);
        let wide = extent[0] % WIDE == 0
            && strided.iter().zip(rows).all(|(s, &row)| {
                let bytes = (s.size * WIDE).min(MOST_BYTES);
                s.step[0] == s.size && s.takes(bytes, dims) && row % bytes == 0
            });
        let unit = if wide { WIDE } else { 1 };
        extent[0] /= unit;
        strided.iter_mut().for_each(|s| s.step[0] *= unit);
        Walk::build(&extent, &strided, dims, unit)
    }

    /// A walk that moves bytes: as many as 16 at a time. Otherwise as `converting`; the tensors have the same dtype.
    pub fn moving(tensors: &[&Tensor], from: usize, rows: &[i64]) -> Walk {
        let (mut extent, mut strided, dims) = merged(tensors, from);
        let mut unit = strided[0].size;
        if strided.iter().all(|s| s.step[0] == s.size) {
            let bytes = extent[0] * unit;
            let fits = |u: i64| {
                bytes % u == 0
                    && strided
                        .iter()
                        .zip(rows)
                        .all(|(s, &row)| s.takes(u, dims) && row % u == 0)
            };
            while unit < MOST_BYTES && fits(unit * 2) {
                unit *= 2;
            }
            extent[0] = bytes / unit;
            strided.iter_mut().for_each(|s| s.step[0] = unit);
        }
        Walk::build(&extent, &strided, dims, unit)
    }

    fn build(extent: &[i64; MAX_DIMS], strided: &[Strided], dims: usize, unit: i64) -> Walk {
        Walk {
            units: extent.iter().product(),
            extent: *extent,
            first: strided[0].step,
            second: strided.get(1).map_or([0; MAX_DIMS], |s| s.step),
            dims: dims as i32,
            unit: unit as i32,
        }
    }
}

/// Extents and steps of the dimensions from `from` on, innermost first; those that are dense in each other in all tensors
/// are one, and those of extent 1 are left out.
fn merged(tensors: &[&Tensor], from: usize) -> ([i64; MAX_DIMS], Vec<Strided>, usize) {
    let shape = tensors[0].shape();
    let mut extent = [1i64; MAX_DIMS];
    let mut strided: Vec<Strided> = tensors.iter().map(|t| Strided::of(t)).collect();
    let mut dims = 0;
    for dim in (from..shape.len()).rev().filter(|&d| shape[d] != 1) {
        let step = |i: usize, s: &Strided| tensors[i].stride()[dim] * s.size;
        let continues = dims > 0
            && strided
                .iter()
                .enumerate()
                .all(|(i, s)| step(i, s) == s.step[dims - 1] * extent[dims - 1]);
        if continues {
            extent[dims - 1] *= shape[dim];
            continue;
        }
        extent[dims] = shape[dim];
        for (i, s) in strided.iter_mut().enumerate() {
            s.step[dims] = step(i, s);
        }
        dims += 1;
    }
    if dims == 0 {
        // A single element counts as dense.
        strided.iter_mut().for_each(|s| s.step[0] = s.size);
        dims = 1;
    }
    (extent, strided, dims)
}

/// `magi_view`: a `[tokens, heads, width]` or `[tokens, heads]` tensor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// First element.
    pub data: *mut u8,
    /// Bytes from one token to the next.
    pub token: i64,
    /// Bytes from one head to the next.
    pub head: i64,
    /// A magi_dtype, f64 to f16.
    pub dtype: i32,
    /// 0.
    pub reserved: i32,
}

impl View {
    /// The view of a tensor of two or three dimensions.
    pub fn of(t: &Tensor) -> View {
        let size = t.dtype().size() as i64;
        View {
            data: t.data(),
            token: t.stride()[0] * size,
            head: t.stride()[1] * size,
            dtype: t.dtype() as i32,
            reserved: 0,
        }
    }
}

/// `magi_sinks`: sinks shared by all tokens, or with a token step.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sinks {
    /// First element.
    pub data: *mut u8,
    /// Bytes from one token to the next; 0 where they are shared.
    pub token: i64,
    /// Bytes from one sink to the next.
    pub sink: i64,
    /// Bytes from one head to the next.
    pub head: i64,
    /// Sinks; 0: none.
    pub count: i32,
    /// A magi_dtype.
    pub dtype: i32,
}

impl Sinks {
    /// No sinks.
    pub const NONE: Sinks = Sinks {
        data: std::ptr::null_mut(),
        token: 0,
        sink: 0,
        head: 0,
        count: 0,
        dtype: 1,
    };

    /// The sinks `[s, heads]` or `[tokens, s, heads]`, s from 1 to 8. `Status::ShapeMismatch` for others.
    pub fn of(name: &str, t: &Tensor, tokens: i64, heads: i64) -> Result<Sinks> {
        let count = match *t.shape() {
            [s, h] if h == heads => s,
            [n, s, h] if n == tokens && h == heads => s,
            _ => 0,
        };
        if !(1..=8).contains(&count) {
            let message = format!(
                "{name} has shape {:?}; it must be [s, {heads}] or [{tokens}, s, {heads}] with s from 1 to 8",
                t.shape()
            );
            return Err(Error::new(Status::ShapeMismatch, message));
        }
        let (size, stride) = (t.dtype().size() as i64, t.stride());
        let shared = stride.len() == 2;
        let at = |dim: usize| stride[dim + usize::from(!shared)] * size;
        Ok(Sinks {
            data: t.data(),
            token: if shared { 0 } else { stride[0] * size },
            sink: at(0),
            head: at(1),
            count: count as i32,
            dtype: t.dtype() as i32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DType, Device};

    fn tensor(address: usize, dtype: DType, shape: &[i64], stride: &[i64]) -> Tensor {
        // SAFETY: never dereferenced.
        unsafe { Tensor::from_raw(address as *mut u8, dtype, Device::Cuda(0), shape, stride) }
    }

    /// Byte offsets of all elements in both tensors, as the kernels compute them.
    fn visited(w: &Walk, sizes: [i64; 2], moving: bool) -> Vec<(i64, i64)> {
        let mut all = Vec::new();
        for unit in 0..w.units {
            let (mut index, mut a, mut b) = (unit, 0, 0);
            let last = w.dims as usize - 1;
            for d in 0..last {
                a += index % w.extent[d] * w.first[d];
                b += index % w.extent[d] * w.second[d];
                index /= w.extent[d];
            }
            a += index * w.first[last];
            b += index * w.second[last];
            let elements = if moving {
                i64::from(w.unit) / sizes[0]
            } else {
                i64::from(w.unit)
            };
            all.extend((0..elements).map(|i| (a + i * sizes[0], b + i * sizes[1])));
        }
        all.sort_unstable();
        all
    }

    fn wanted(a: &Tensor, b: &Tensor) -> Vec<(i64, i64)> {
        let mut all = vec![(0, 0)];
        for (dim, &n) in a.shape().iter().enumerate() {
            let step = |t: &Tensor| t.stride()[dim] * t.dtype().size() as i64;
            let next = |&(x, y): &(i64, i64)| (0..n).map(move |i| (x + i * step(a), y + i * step(b)));
            all = all.iter().flat_map(next).collect();
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn every_element_is_visited_once_whatever_the_strides() {
        let shapes: [(&[i64], &[i64], &[i64]); 6] = [
            (&[5, 4, 16], &[64, 16, 1], &[64, 16, 1]),
            (&[5, 4, 16], &[128, 32, 1], &[64, 16, 1]),
            (&[5, 4, 12], &[60, 12, 1], &[48, 12, 1]),
            (&[3, 1, 8], &[8, 99, 1], &[24, 7, 1]),
            (&[4, 6], &[1, 4], &[6, 1]),
            (&[7], &[2], &[1]),
        ];
        for (shape, first, second) in shapes {
            for (x, y) in [
                (DType::Bf16, DType::F32),
                (DType::F64, DType::F64),
                (DType::F16, DType::F16),
            ] {
                let (a, b) = (tensor(0x1000, x, shape, first), tensor(0x2000, y, shape, second));
                let sizes = [x.size() as i64, y.size() as i64];
                let walk = Walk::converting(&[&a, &b], 0, &[0, 0]);
                assert_eq!(visited(&walk, sizes, false), wanted(&a, &b), "{walk:?}");
                if x == y {
                    let walk = Walk::moving(&[&a, &b], 0, &[0, 0]);
                    assert_eq!(visited(&walk, sizes, true), wanted(&a, &b), "{walk:?}");
                }
            }
        }
    }

    #[test]
    fn units_are_as_wide_as_alignment_allows() {
        let (shape, dense) = ([5, 4, 16], [64, 16, 1]);
        let a = tensor(0x1000, DType::Bf16, &shape, &dense);
        let walk = Walk::converting(&[&a, &a], 0, &[0, 0]);
        assert_eq!(
            (walk.dims, walk.unit, walk.units),
            (1, 8, 40),
            "dense tensors are one run"
        );
        let odd = tensor(0x1002, DType::Bf16, &shape, &dense);
        assert_eq!(Walk::converting(&[&a, &odd], 0, &[0, 0]).unit, 1);
        assert_eq!(Walk::moving(&[&a, &odd], 0, &[0, 0]).unit, 2);
        assert_eq!(Walk::moving(&[&a, &a], 0, &[0, 0]).unit, 16);
        assert_eq!(Walk::moving(&[&a, &a], 1, &[128, 136]).unit, 8, "rows count too");
        let bytes = tensor(0x1001, DType::U8, &[3, 5], &[5, 1]);
        assert_eq!(Walk::moving(&[&bytes], 0, &[0]).unit, 1);
    }
}
