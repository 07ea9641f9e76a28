//! Arguments of the attention passes.

use crate::types::{AttnShape, StageSlice, Tensor};

/// One forward call over the slices of a stage.
#[derive(Clone, Copy, Debug)]
pub struct ForwardArgs<'a> {
    /// `[tokens_q, heads_q, head_dim]`, `shape.dtype`.
    pub q: Tensor,
    /// `[tokens_k, heads_kv, head_dim]` of each source (`StageSlice::source`); `None` when no slice names it.
    pub k: [Option<Tensor>; 2],
    /// `[tokens_k, heads_kv, head_dim_v]` of each source.
    pub v: [Option<Tensor>; 2],
    /// Local slices; their visible cells lie inside the tensors. Empty ones are skipped.
    pub slices: &'a [StageSlice],
    /// Heads, head dimensions and dtype.
    pub shape: AttnShape,
    /// Factor of `q . k`.
    pub softmax_scale: f64,
    /// Logits become `softcap * tanh(logit / softcap)`; 0 is off.
    pub softcap: f64,
    /// `[tokens_q, heads_q, head_dim_v]`, accumulator type: running output, read and written.
    pub out: Tensor,
    /// `[tokens_q, heads_q]`, accumulator type: running natural-log sum, read and written.
    pub lse: Tensor,
    /// `[heads_q]` f32: running maximum of the scaled and capped logits.
    pub max_logits: Option<Tensor>,
}

/// One backward call over the slices of a stage.
#[derive(Clone, Copy, Debug)]
pub struct BackwardArgs<'a> {
    /// `[tokens_q, heads_q, head_dim]`, `shape.dtype`.
    pub q: Tensor,
    /// `[tokens_k, heads_kv, head_dim]` of each source.
    pub k: [Option<Tensor>; 2],
    /// `[tokens_k, heads_kv, head_dim_v]` of each source.
    pub v: [Option<Tensor>; 2],
    /// `[tokens_q, heads_q, head_dim_v]`, `shape.dtype`.
    pub dout: Tensor,
    /// `[tokens_q, heads_q]`, accumulator type: the final lse, over all stages and the sink.
    pub lse: Tensor,
    /// `[tokens_q, heads_q]`, accumulator type: from `attn_delta` of the final output.
    pub delta: Tensor,
    /// Local slices, as in the forward call.
    pub slices: &'a [StageSlice],
    /// Heads, head dimensions and dtype.
    pub shape: AttnShape,
    /// Factor of `q . k`.
    pub softmax_scale: f64,
    /// As in the forward call.
    pub softcap: f64,
    /// Like q in the accumulator type; added to.
    pub dq: Tensor,
    /// Like k in the accumulator type; added to. Present where `k` is.
    pub dk: [Option<Tensor>; 2],
    /// Like v in the accumulator type; added to.
    pub dv: [Option<Tensor>; 2],
}
