//! Do two tensors share memory? Exact for interleaved views of one buffer, careful for the rest.

use super::Tensor;

/// One dimension of a tensor in bytes: `count` steps of `stride`, which is positive.
#[derive(Clone, Copy)]
struct Dim {
    stride: i128,
    count: i128,
}

/// A tensor as its lowest address and its dimensions by falling stride; dimensions of extent 1 are left out.
struct Footprint {
    low: i128,
    dims: Vec<Dim>,
    element: i128,
}

impl Footprint {
    /// `None` for a tensor without elements.
    fn of(t: &Tensor) -> Option<Footprint> {
        if t.elements() == 0 {
            return None;
        }
        let element = t.dtype().size() as i128;
        let (mut low, mut dims) = (t.data() as usize as i128, Vec::new());
        for (&n, &s) in t.shape().iter().zip(t.stride()) {
            let (count, stride) = (i128::from(n), i128::from(s) * element);
            if stride < 0 {
                low += (count - 1) * stride;
            }
            if count > 1 && stride != 0 {
                dims.push(Dim {
                    stride: stride.abs(),
                    count,
                });
            }
        }
        dims.sort_by_key(|d| std::cmp::Reverse(d.stride));
        Some(Footprint { low, dims, element })
    }
}

/// Bytes from the first to past the last element of `dims`.
fn extent(dims: &[Dim], element: i128) -> i128 {
    dims.iter().map(|d| (d.count - 1) * d.stride).sum::<i128>() + element
}

/// Whether `a` at 0 and `b` at `offset` may share a byte. Peels off outer dimensions that both have with the same
/// stride: then only neighbouring steps of that dimension can meet.
fn may_meet(a: &[Dim], ae: i128, b: &[Dim], be: i128, offset: i128) -> bool {
    if offset >= extent(a, ae) || -offset >= extent(b, be) {
        return false;
    }
    let (Some(da), Some(db)) = (a.first(), b.first()) else {
        return true;
    };
    let (inner_a, inner_b) = (extent(&a[1..], ae), extent(&b[1..], be));
    if da.stride != db.stride || inner_a > da.stride || inner_b > da.stride {
        return true;
    }
    let r = offset.rem_euclid(da.stride);
    may_meet(&a[1..], ae, &b[1..], be, r) || may_meet(&a[1..], ae, &b[1..], be, r - da.stride)
}

impl Tensor {
    /// Whether the two tensors may share a byte. Exact for dense tensors and for views of one buffer that differ by
    /// an offset (q, k and v side by side in each token, or in each head); other strides that interleave count as
    /// sharing.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        if self.device() != other.device() {
            return false;
        }
        match (Footprint::of(self), Footprint::of(other)) {
            (Some(a), Some(b)) => may_meet(&a.dims, a.element, &b.dims, b.element, b.low - a.low),
            _ => false,
        }
    }

    /// Whether two indices of the tensor may name the same byte: a stride of 0, or one smaller than what lies inside
    /// it. Such a tensor can be read but not written.
    pub fn overlaps_itself(&self) -> bool {
        let Some(f) = Footprint::of(self) else {
            return false;
        };
        let zero = self
            .shape()
            .iter()
            .zip(self.stride())
            .any(|(&n, &s)| n > 1 && s == 0);
        zero || (0..f.dims.len()).any(|i| f.dims[i].stride < extent(&f.dims[i + 1..], f.element))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DType, Device};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn view(offset: i64, shape: &[i64], stride: &[i64]) -> Tensor {
        let data = std::ptr::without_provenance_mut((1 << 20) + (offset * 2) as usize);
        // SAFETY: only addresses are compared; nothing is read.
        unsafe { Tensor::from_raw(data, DType::F16, Device::Cpu, shape, stride) }
    }

    fn elements(t: &Tensor) -> Vec<i64> {
        let mut all = vec![t.data() as usize as i64];
        for (&n, &s) in t.shape().iter().zip(t.stride()) {
            all = all
                .iter()
                .flat_map(|&e| (0..n).map(move |i| e + i * s * 2))
                .collect();
        }
        all
    }

    #[test]
    fn views_of_one_buffer_do_not_overlap() {
        let (h, d) = (4, 8);
        // [tokens, 3, heads, dim]: q, k and v beside each other in each token.
        let token = |i| view(i * h * d, &[10, h, d], &[3 * h * d, d, 1]);
        // [tokens, heads, 3, dim]: beside each other in each head.
        let head = |i| view(i * d, &[10, h, d], &[3 * h * d, 3 * d, 1]);
        for (i, j) in [(0, 1), (1, 2), (2, 0)] {
            assert!(!token(i).overlaps(&token(j)));
            assert!(!head(i).overlaps(&head(j)));
        }
        assert!(token(1).overlaps(&token(1)) && head(0).overlaps(&token(0)));
    }

    proptest! {
        #[test]
        fn never_misses_a_shared_element(
            a in (0..60i64, 1..4i64, 1..4i64, 1..5i64, -30..30i64, -12..12i64),
            b in (0..60i64, 1..4i64, 1..4i64, 1..5i64, -30..30i64, -12..12i64),
        ) {
            let make = |(o, t, h, d, st, sh)| view(o + 100, &[t, h, d], &[st, sh, 1]);
            let (x, y) = (make(a), make(b));
            let (ex, ey) = (elements(&x), elements(&y));
            let sx: HashSet<i64> = ex.iter().copied().collect();
            if ey.iter().any(|e| sx.contains(e)) {
                prop_assert!(x.overlaps(&y));
            }
            if sx.len() < ex.len() {
                prop_assert!(x.overlaps_itself());
            }
        }
    }
}
