//! Walks over the elements of equally shaped tensors, whatever their strides.

use crate::types::{MAX_DIMS, Tensor};

/// One innermost run: `len` elements of each tensor, `step` bytes apart, from `at`.
pub(super) struct Run<const N: usize> {
    /// First element of each tensor.
    pub at: [*mut u8; N],
    /// Bytes from one element to the next.
    pub step: [isize; N],
    /// Elements.
    pub len: usize,
}

impl<const N: usize> Run<N> {
    /// Address of element `i` in tensor `t`.
    pub fn get(&self, t: usize, i: usize) -> *mut u8 {
        self.at[t].wrapping_offset(i as isize * self.step[t])
    }

    /// Whether the elements of every tensor are consecutive, `sizes` bytes each.
    pub fn is_dense(&self, sizes: [usize; N]) -> bool {
        self.len == 1
            || self
                .step
                .iter()
                .zip(sizes)
                .all(|(&step, size)| step == size as isize)
    }
}

/// Calls `f` for runs that together hold every index of the common shape once. Dimensions that are dense in each other
/// in all tensors are merged, so that dense tensors are one run.
///
/// The tensors must have the same shape; extra ones are not looked at.
pub(super) fn each_run<const N: usize>(tensors: [&Tensor; N], mut f: impl FnMut(Run<N>)) {
    let Some(first) = tensors.first() else {
        return;
    };
    if first.elements() == 0 {
        return;
    }
    let bytes = |t: usize, dim: usize| tensors[t].stride()[dim] as isize * tensors[t].dtype().size() as isize;
    let mut shape = [1i64; MAX_DIMS];
    let mut step = [[0isize; N]; MAX_DIMS];
    // Dimension 0 of these is the innermost.
    let mut dims = 0;
    for dim in (0..first.shape().len()).rev() {
        let extent = first.shape()[dim];
        if extent == 1 {
            continue;
        }
        let strides: [isize; N] = std::array::from_fn(|t| bytes(t, dim));
        let merges = dims > 0 && (0..N).all(|t| strides[t] == step[dims - 1][t] * shape[dims - 1] as isize);
        if merges {
            shape[dims - 1] *= extent;
        } else {
            (shape[dims], step[dims]) = (extent, strides);
            dims += 1;
        }
    }
    let mut index = [0i64; MAX_DIMS];
    let mut at: [*mut u8; N] = std::array::from_fn(|t| tensors[t].data());
    loop {
        f(Run {
            at,
            step: step[0],
            len: shape[0] as usize,
        });
        let mut dim = 1;
        loop {
            if dim >= dims {
                return;
            }
            index[dim] += 1;
            let wraps = index[dim] == shape[dim];
            let moves = if wraps { 1 - shape[dim] } else { 1 };
            for (at, step) in at.iter_mut().zip(step[dim]) {
                *at = at.wrapping_offset(step * moves as isize);
            }
            if !wraps {
                break;
            }
            index[dim] = 0;
            dim += 1;
        }
    }
}
