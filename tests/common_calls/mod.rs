//! What whole calls of the fast kernels have in common, forward and backward, over masks and over ranges on the device.

use std::sync::Arc;

use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::runtime::single::RangeLists;
use magi_attn::types::{DType, Device, Mask, Tensor};

/// Rows of a tensor that nothing sees become NaN.
pub fn hide(values: &mut [f64], row: usize, sees: &[bool]) {
    for (row, _) in values.chunks_mut(row).zip(sees).filter(|(_, sees)| !**sees) {
        row.fill(f64::NAN);
    }
}

/// Which queries see something, and which keys are seen.
pub fn seen(mask: &Mask) -> [Vec<bool>; 2] {
    let mut seen = [
        vec![false; mask.total_q() as usize],
        vec![false; mask.total_k() as usize],
    ];
    for s in mask.slices() {
        let (rows, keys) = (s.visible_rows(), s.visible_keys());
        for q in rows.start..rows.end {
            for k in keys.start..keys.end {
                if s.contains(q, k) {
                    seen[0][q as usize] = true;
                    seen[1][k as usize] = true;
                }
            }
        }
    }
    seen
}

/// The same values, where NaN is one.
pub fn equal(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x == y || x.is_nan() && y.is_nan())
}

/// Workspace of a call on the CPU.
pub struct HostSpace(Vec<u64>);

impl HostSpace {
    pub fn new(bytes: usize) -> HostSpace {
        HostSpace(vec![0; bytes / 8 + 64])
    }

    /// Where as many bytes begin, aligned as calls want it.
    pub fn at(&mut self) -> *mut u8 {
        let at = self.0.as_mut_ptr().cast::<u8>();
        at.wrapping_add(at.align_offset(256))
    }
}

/// Every way in which the kernels cannot take the tensor's place in memory, with what the refusal says beside its name. The
/// tensor is of bf16, has 9 tokens and two heads of 128 and is `Layout::Spaced`.
pub fn misplaced(t: &Tensor) -> [(Tensor, &'static str); 4] {
    let with = |offset: usize, stride: [i64; 3]| {
        let data = t.data().wrapping_add(offset);
        // SAFETY: only described: the call that gets it is refused.
        unsafe { Tensor::from_raw(data, t.dtype(), t.device(), t.shape(), &stride) }
    };
    assert_eq!((t.shape(), t.stride()), (&[9, 2, 128][..], &[280, 136, 1][..]));
    [
        (
            with(0, [279, 136, 1]),
            "has a stride of 279 elements (558 bytes) between tokens; on a CUDA device it must be a multiple of 8 elements",
        ),
        (
            with(0, [280, 135, 1]),
            "has a stride of 135 elements (270 bytes) between heads; on a CUDA device it must be a multiple of 8 elements",
        ),
        (with(2, [280, 136, 1]), "which is not a multiple of 16 bytes"),
        (
            with(0, [280, 136, 2]),
            "has stride 2 in its last dimension; it must be 1",
        ),
    ]
}

/// The mask as ranges in memory of the device.
pub struct Lists {
    memory: DeviceMemory,
    count: i64,
}

impl Lists {
    pub fn new(gpu: &Arc<Gpu>, mask: &Mask) -> Lists {
        let typed = mask.to_typed();
        let mut ints: Vec<i32> = Vec::new();
        ints.extend(typed.iter().flat_map(|t| [t.q.start as i32, t.q.end as i32]));
        ints.extend(typed.iter().flat_map(|t| [t.k.start as i32, t.k.end as i32]));
        ints.extend(typed.iter().map(|t| t.mask_type as i32));
        let bytes: Vec<u8> = ints.iter().flat_map(|i| i.to_ne_bytes()).collect();
        Lists {
            memory: DeviceMemory::upload(gpu, &bytes).unwrap(),
            count: typed.len() as i64,
        }
    }

    pub fn lists(&self) -> RangeLists {
        let n = self.count;
        let part = |first: i64, shape: &[i64]| {
            let at = self.memory.as_ptr().wrapping_add(4 * first as usize);
            // SAFETY: `new` uploaded as many integers.
            unsafe { Tensor::dense(at, DType::I32, Device::Cuda(0), shape) }
        };
        RangeLists {
            q_ranges: part(0, &[n, 2]),
            k_ranges: part(2 * n, &[n, 2]),
            mask_types: part(4 * n, &[n]),
        }
    }
}
