//! How many heads are walked together, so that what they share stays in the L2 cache.

use crate::device::cuda::Gpu;
use crate::types::Tensor;

/// How often `bytes` fit into the part of the L2 cache that a launch counts on.
pub(super) fn fit(gpu: &Gpu, bytes: i64) -> i64 {
    i64::from(gpu.properties().l2_bytes) * 5 / 8 / bytes.max(1)
}

/// Key heads whose keys and values stay there together: a divisor of `heads`. `keys` and `values` are those of both sources.
pub(super) fn key_heads(
    gpu: &Gpu,
    heads: i64,
    keys: &[Option<Tensor>; 2],
    values: &[Option<Tensor>; 2],
) -> i64 {
    let bytes = keys
        .iter()
        .chain(values)
        .flatten()
        .map(|t| t.tokens() * t.shape()[2] * t.dtype().size() as i64)
        .sum();
    let fit = fit(gpu, bytes);
    (1..=heads)
        .rev()
        .find(|n| heads % n == 0 && *n <= fit)
        .unwrap_or(1)
}
