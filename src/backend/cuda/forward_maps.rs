//! Tensor maps of the forward kernel: `ForwardMaps` of kernels/attn/forward_shape.cuh.

use super::forward_kernel::ForwardKernel;
use super::forward_launch::ForwardCall;
use crate::device::cuda::{Current, Promotion, Swizzle, TensorMap, Tiled};
use crate::types::{Error, Result, Status, Tensor};

/// Rows of the output that a warp copies at once.
const OUT_ROWS: i64 = 16;

/// Columns of a copy: 128 bytes, the width of the swizzle.
const CHUNK: i64 = 64;

/// The kernel's first parameter, and what its second one says of it.
#[derive(Clone, Copy, Debug)]
pub struct ForwardMaps {
    /// q, keys and values of both sources, out.
    pub maps: [TensorMap; 6],
    /// Bytes of a tile of Q as copied.
    pub q_bytes: i32,
    /// Copies of one block of keys.
    pub copies_k: i32,
    /// Copies of one block of values, or of rows of the output.
    pub copies_v: i32,
}

/// What the copy engine asks of a tensor `[tokens, heads, head_dim]`: an address and strides that are multiples of 16
/// bytes, none negative. `Status::InvalidStride` names the tensor.
pub fn check(name: &str, t: &Tensor) -> Result<()> {
    let size = t.dtype().size() as i64;
    let refuse = |message: String| Err(Error::new(Status::InvalidStride, message));
    if t.elements() == 0 {
        return Ok(());
    }
    if !(t.data() as usize).is_multiple_of(16) {
        return refuse(format!(
            "{name} lies at {:p}, which is not a multiple of 16 bytes",
            t.data()
        ));
    }
    for (dimension, what) in ["tokens", "heads"].iter().enumerate() {
        let bytes = t.stride()[dimension] * size;
        if t.shape()[dimension] > 1 && (bytes < 0 || bytes % 16 != 0 || bytes >= 1 << 40) {
            return refuse(format!(
                "{name} has a stride of {} elements ({bytes} bytes) between {what}; on a CUDA device it must be a \
                 multiple of {} elements, 0 or more",
                t.stride()[dimension],
                16 / size
            ));
        }
    }
    Ok(())
}

/// Bytes from one index of a dimension to the next; where there is but one index the stride may be anything.
pub(super) fn stride(t: &Tensor, dimension: usize) -> u64 {
    if t.shape()[dimension] > 1 {
        t.stride()[dimension] as u64 * t.dtype().size() as u64
    } else {
        16
    }
}

/// Queries: `pack` heads of a token are neighbouring rows of a tile.
fn queries(current: &Current<'_>, q: &Tensor, block_q: i64, pack: i64) -> Result<TensorMap> {
    let (tokens, heads) = (q.tokens() as u64, q.shape()[1] as u64);
    let (head, token) = (stride(q, 1), stride(q, 0));
    TensorMap::tiled(
        current,
        &Tiled {
            dtype: q.dtype(),
            data: q.data(),
            dims: &[q.shape()[2] as u64, pack as u64, tokens, heads / pack as u64],
            strides: &[
                head,
                token,
                if heads > pack as u64 {
                    head * pack as u64
                } else {
                    16
                },
            ],
            extent: &[CHUNK as u32, pack as u32, (block_q / pack) as u32, 1],
            swizzle: Swizzle::B128,
            promotion: Promotion::B128,
        },
    )
}

/// Rows of keys, values or the output: one copy for all columns of a block when they are whole chunks, else one for each
/// chunk, which ends where the columns do. Returns the number of copies too.
pub(super) fn rows(current: &Current<'_>, t: &Tensor, head_dim: i64, block: i64) -> Result<(TensorMap, i32)> {
    let own = t.shape()[2];
    let chunks = (head_dim + CHUNK - 1) / CHUNK;
    let whole = own == head_dim && own % CHUNK == 0;
    let map = TensorMap::tiled(
        current,
        &Tiled {
            dtype: t.dtype(),
            data: t.data(),
            dims: &[
                if whole { CHUNK } else { own } as u64,
                t.tokens() as u64,
                if whole { chunks } else { 1 } as u64,
                t.shape()[1] as u64,
            ],
            strides: &[stride(t, 0), 128, stride(t, 1)],
            extent: &[
                CHUNK as u32,
                block as u32,
                if whole { chunks } else { 1 } as u32,
                1,
            ],
            swizzle: Swizzle::B128,
            promotion: Promotion::B128,
        },
    )?;
    Ok((map, if whole { 1 } else { chunks as i32 }))
}

/// The maps of a call. A source that is not there gets the other's map, and one without tokens that of q: no item names
/// it.
pub fn encode(
    current: &Current<'_>,
    call: &ForwardCall,
    kernel: &ForwardKernel,
    pack: i64,
) -> Result<ForwardMaps> {
    let (d, dv) = kernel.choice.head_dims;
    let (block_q, block_k) = (i64::from(kernel.block_q), i64::from(kernel.block_k));
    let q = queries(current, &call.q, block_q, pack)?;
    let side = |sources: &[Option<Tensor>; 2], head_dim: i64| -> Result<([TensorMap; 2], i32)> {
        let mut maps = [q; 2];
        let mut copies = 1;
        let there = |t: &Option<Tensor>| t.filter(|t| t.tokens() > 0);
        for (map, source) in maps.iter_mut().zip(sources) {
            if let Some(t) = there(source) {
                (*map, copies) = rows(current, &t, head_dim, block_k)?;
            }
        }
        Ok((maps, copies))
    };
    let (k, copies_k) = side(&call.k, d)?;
    let (v, mut copies_v) = side(&call.v, dv)?;
    let mut out = q;
    if !kernel.choice.general && call.out.tokens() > 0 {
        // As many copies as for values, which may have no tokens.
        (out, copies_v) = rows(current, &call.out, dv, OUT_ROWS)?;
    }
    let chunks = (d + CHUNK - 1) / CHUNK;
    Ok(ForwardMaps {
        maps: [q, k[0], k[1], v[0], v[1], out],
        q_bytes: (chunks * CHUNK * 2 * pack * (block_q / pack)) as i32,
        copies_k,
        copies_v,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DType, Device};

    /// `[3, 2, 64]` at an address that is never read.
    fn tensor(dtype: DType, address: usize, token: i64, head: i64) -> Tensor {
        let data = std::ptr::without_provenance_mut(address);
        // SAFETY: only described.
        unsafe { Tensor::from_raw(data, dtype, Device::Cuda(0), &[3, 2, 64], &[token, head, 1]) }
    }

    #[test]
    fn a_refusal_names_tensor_stride_and_what_is_wanted() {
        let said = |name: &str, t: Tensor| {
            let e = check(name, &t).unwrap_err();
            assert_eq!(e.status, Status::InvalidStride, "{e}");
            e.message
        };
        let wanted = "on a CUDA device it must be a multiple of 8 elements, 0 or more";
        for (name, dtype) in [("args.q", DType::Bf16), ("args.dout", DType::F16)] {
            let of = |token, head| said(name, tensor(dtype, 4096, token, head));
            assert_eq!(
                of(132, 64),
                format!("{name} has a stride of 132 elements (264 bytes) between tokens; {wanted}")
            );
            assert_eq!(
                of(256, 65),
                format!("{name} has a stride of 65 elements (130 bytes) between heads; {wanted}")
            );
            assert_eq!(
                of(-128, 64),
                format!("{name} has a stride of -128 elements (-256 bytes) between tokens; {wanted}")
            );
        }
        assert_eq!(
            said("args.out", tensor(DType::F32, 4096, 130, 64)),
            "args.out has a stride of 130 elements (520 bytes) between tokens; on a CUDA device it must be a multiple of 4 \
             elements, 0 or more"
        );
        let huge = said("args.k", tensor(DType::Bf16, 4096, 1 << 39, 64));
        assert!(
            huge.starts_with("args.k has a stride of 549755813888 elements"),
            "{huge}"
        );
        assert_eq!(
            said("args.v", tensor(DType::Bf16, 4104, 128, 64)),
            "args.v lies at 0x1008, which is not a multiple of 16 bytes"
        );
    }

    #[test]
    fn what_the_copy_engine_takes_is_accepted() {
        for (token, head) in [(128, 64), (136, 72), (64, 1024), (0, 0)] {
            check("args.q", &tensor(DType::Bf16, 4096, token, head)).unwrap();
        }
        check("args.dq", &tensor(DType::F32, 4096, 132, 68)).unwrap();
        // Strides of which there is one index, and addresses of nothing, may be anything.
        let data = std::ptr::without_provenance_mut(4097);
        // SAFETY: only described.
        let of = |shape: &[i64]| unsafe {
            Tensor::from_raw(data, DType::Bf16, Device::Cuda(0), shape, &[-7, 3, 1])
        };
        check("args.q", &of(&[0, 2, 64])).unwrap();
        let one = std::ptr::without_provenance_mut(4096);
        // SAFETY: only described.
        let one = unsafe { Tensor::from_raw(one, DType::Bf16, Device::Cuda(0), &[1, 1, 64], &[-7, 3, 1]) };
        check("args.q", &one).unwrap();
    }
}
