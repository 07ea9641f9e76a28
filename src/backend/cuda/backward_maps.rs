//! Tensor maps of the backward kernel over key tiles: `BackwardMaps` of kernels/attn/backward_producer.cuh.

use super::backward_kernel::BackwardKernel;
use super::backward_launch::{KeysCall, Stats};
use super::forward_maps::keys;
use crate::device::cuda::{Promotion, Swizzle, TensorMap, Tiled};
use crate::types::{DType, Error, Result, Tensor};

/// The kernel's first parameter, and what its second one says of it.
#[derive(Clone, Copy, Debug)]
pub struct BackwardMaps {
    /// q, dout, keys and values of both sources, row sums.
    pub maps: [TensorMap; 7],
    /// Copies of one block of q, or of one tile of keys.
    pub copies_k: i32,
    /// Copies of one block of dout, or of one tile of values.
    pub copies_v: i32,
}

/// lse2 and delta of `step` queries of a head.
fn stats(s: &Stats, tokens: i64, heads: i64, step: i32) -> Result<TensorMap> {
    let bytes = |elements: i64| elements as u64 * size_of::<f32>() as u64;
    TensorMap::tiled(&Tiled {
        dtype: DType::F32,
        data: s.lse2.cast(),
        dims: &[tokens as u64, 2, heads as u64],
        strides: &[bytes(s.padded * heads), bytes(s.padded)],
        extent: &[step as u32, 2, 1],
        swizzle: Swizzle::None,
        promotion: Promotion::B128,
    })
}

/// The maps of a call. A tensor that is not there, or has no tokens, gets another's map: no copy names it.
pub fn encode(call: &KeysCall, kernel: &BackwardKernel) -> Result<BackwardMaps> {
    let (d, dv) = kernel.choice.head_dims;
    let (rows, step) = (i64::from(kernel.rows), i64::from(kernel.step));
    let side = |one: &Tensor, sources: &[Option<Tensor>; 2], head_dim: i64| -> Result<[Option<(TensorMap, i32)>; 3]> {
        let map = |t: Option<Tensor>, block: i64| {
            t.filter(|t| t.tokens() > 0)
                .map(|t| keys(&t, head_dim, block))
                .transpose()
        };
        Ok([map(Some(*one), step)?, map(sources[0], rows)?, map(sources[1], rows)?])
    };
    let of_k = side(&call.q, &call.k, d)?;
    let of_v = side(&call.dout, &call.v, dv)?;
    let any = of_k.iter().flatten().next();
    let any = any.ok_or_else(|| Error::internal("a backward launch without queries and keys"))?.0;
    let copies = |maps: &[Option<(TensorMap, i32)>; 3]| maps.iter().flatten().map(|m| m.1).max().unwrap_or(1);
    let map = |m: Option<(TensorMap, i32)>| m.map_or(any, |m| m.0);
    let stats = match call.q.tokens() {
        0 => any,
        tokens => stats(&call.stats, tokens, call.q.shape()[1], kernel.step)?,
    };
    Ok(BackwardMaps {
        maps: [
            map(of_k[0]),
            map(of_v[0]),
            map(of_k[1]),
            map(of_k[2]),
            map(of_v[1]),
            map(of_v[2]),
            stats,
        ],
        copies_k: copies(&of_k),
        copies_v: copies(&of_v),
    })
}
