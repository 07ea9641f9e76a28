//! Tensor maps of the backward kernels: `BackwardMaps` of kernels/attn/backward_maps.cuh and `BackwardQueriesMaps` of
//! kernels/attn/backward_queries_producer.cuh.

use super::backward_kernel::BackwardKernel;
use super::backward_launch::{Operands, Stats};
use super::backward_rows::Pair;
use super::forward_maps::{rows, stride};
use crate::device::cuda::{Current, Promotion, Swizzle, TensorMap, Tiled};
use crate::types::{DType, Error, Result, Tensor};

/// Rows that one copy of queries brings to the dq kernel: those of a warpgroup.
const QUERIES_COPY: i64 = 64;

/// A kernel's first parameter, and what its second one says of it.
#[derive(Clone, Copy, Debug)]
pub struct BackwardMaps {
    /// q, dout, keys and values of both sources, row sums; dq, for the kernel that adds to it.
    pub maps: [TensorMap; 8],
    /// Copies of one block of q or of keys.
    pub copies_k: i32,
    /// Copies of one block of dout or of values.
    pub copies_v: i32,
}

/// Tokens that copies bring.
#[derive(Clone, Copy, Debug)]
struct Extents {
    /// Of q and dout.
    queries: i64,
    /// Of keys and values.
    keys: i64,
    /// Of row sums.
    stats: i32,
}

/// Maps of the kernel over key tiles, which adds to `dq` where it is given.
pub fn of_keys(
    current: &Current<'_>,
    o: &Operands,
    dq: Option<&Tensor>,
    kernel: &BackwardKernel,
) -> Result<BackwardMaps> {
    let extents = Extents {
        queries: kernel.step.into(),
        keys: kernel.rows.into(),
        stats: kernel.step,
    };
    let mut found = encode(current, o, kernel.choice.head_dims, &extents)?;
    if let Some(t) = dq.filter(|t| t.tokens() > 0) {
        found.maps[7] = sums(current, t, kernel.step)?;
    }
    Ok(found)
}

/// Maps of the kernel over query tiles.
pub fn of_queries(current: &Current<'_>, o: &Operands, kernel: &BackwardKernel) -> Result<BackwardMaps> {
    let extents = Extents {
        queries: QUERIES_COPY,
        keys: kernel.step.into(),
        stats: kernel.rows,
    };
    encode(current, o, kernel.choice.head_dims, &extents)
}

/// lse2 and delta of some queries of a head, from any one on: a stretch of the pairs of even queries or of those of odd ones,
/// of which there are half as many as queries.
fn stats(current: &Current<'_>, s: &Stats, heads: i64, queries: i32) -> Result<TensorMap> {
    let (pairs, elements) = (s.padded as u64 / 2, size_of::<Pair>() / size_of::<f32>());
    let bytes = pairs * size_of::<Pair>() as u64;
    TensorMap::tiled(
        current,
        &Tiled {
            dtype: DType::F32,
            data: s.pairs.cast(),
            dims: &[pairs * elements as u64, 2, heads as u64],
            strides: &[bytes, 2 * bytes],
            extent: &[queries as u32 / 2 * elements as u32, 1, 1],
            swizzle: Swizzle::None,
            promotion: Promotion::B128,
        },
    )
}

/// dq in f32, by the boxes that are added at a time: the queries of a step and 128 bytes of their columns.
fn sums(current: &Current<'_>, dq: &Tensor, step: i32) -> Result<TensorMap> {
    let dims = [dq.shape()[2], dq.tokens(), dq.shape()[1]].map(|n| n as u64);
    TensorMap::tiled(
        current,
        &Tiled {
            dtype: DType::F32,
            data: dq.data(),
            dims: &dims,
            strides: &[stride(dq, 0), stride(dq, 1)],
            extent: &[32, step as u32, 1],
            swizzle: Swizzle::B128,
            promotion: Promotion::None,
        },
    )
}

/// Of the queries' tensor and of both sources of keys, and the number of copies; a tensor that is not there, or has no
/// tokens, has no map.
fn side(
    current: &Current<'_>,
    queries: &Tensor,
    sources: &[Option<Tensor>; 2],
    head_dim: i64,
    extents: &Extents,
) -> Result<([Option<TensorMap>; 3], i32)> {
    let mut copies = 1;
    let mut map = |t: Option<Tensor>, tokens: i64| {
        let Some(t) = t.filter(|t| t.tokens() > 0) else {
            return Ok(None);
        };
        let (map, needed) = rows(current, &t, head_dim, tokens)?;
        copies = needed;
        Ok::<_, Error>(Some(map))
    };
    let maps = [
        map(Some(*queries), extents.queries)?,
        map(sources[0], extents.keys)?,
        map(sources[1], extents.keys)?,
    ];
    Ok((maps, copies))
}

fn encode(
    current: &Current<'_>,
    o: &Operands,
    head_dims: (i64, i64),
    extents: &Extents,
) -> Result<BackwardMaps> {
    let ([q, k0, k1], copies_k) = side(current, &o.q, &o.k, head_dims.0, extents)?;
    let ([dout, v0, v1], copies_v) = side(current, &o.dout, &o.v, head_dims.1, extents)?;
    let all = [q, dout, k0, k1, v0, v1];
    let any = all.iter().flatten().next();
    // No copy names what is not there.
    let any = *any.ok_or_else(|| Error::internal("a backward launch without queries and keys"))?;
    let [q, dout, k0, k1, v0, v1] = all.map(|map| map.unwrap_or(any));
    let stats = match o.q.tokens() {
        0 => any,
        _ => stats(current, &o.stats, o.q.shape()[1], extents.stats)?,
    };
    Ok(BackwardMaps {
        maps: [q, dout, k0, k1, v0, v1, stats, any],
        copies_k,
        copies_v,
    })
}
