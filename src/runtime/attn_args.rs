//! Arguments of attention, as the C ABI hands them over.

use super::check::Named;
use crate::types::Tensor;

/// Arguments of a forward pass. tq, tk: query and key tokens; "acc" is the accumulator type.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    /// `[tq, heads_q, head_dim]`.
    pub q: Tensor,
    /// `[tk, heads_kv, head_dim]`.
    pub k: Tensor,
    /// `[tk, heads_kv, head_dim_v]`.
    pub v: Tensor,
    /// f32 `[s, heads_q]` or `[tq, s, heads_q]`, s from 1 to 8.
    pub sink: Option<Tensor>,
    /// Factor on q . k; 0 means 1 / sqrt(head_dim).
    pub softmax_scale: f64,
    /// 0 for none.
    pub softcap: f64,
    /// Output `[tq, heads_q, head_dim_v]`, input dtype or acc.
    pub out: Tensor,
    /// Output acc `[tq, heads_q]`.
    pub lse: Option<Tensor>,
    /// Output f32 `[heads_q]`.
    pub max_logits: Option<Tensor>,
}

impl Forward {
    /// Every tensor by its name.
    pub(super) fn tensors(&self) -> Vec<Named<'_>> {
        let all = [
            Some(("args.q", &self.q)),
            Some(("args.k", &self.k)),
            Some(("args.v", &self.v)),
            self.sink.as_ref().map(|t| ("args.sink", t)),
            Some(("args.out", &self.out)),
            self.lse.as_ref().map(|t| ("args.lse", t)),
            self.max_logits.as_ref().map(|t| ("args.max_logits", t)),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Arguments of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// As in forward.
    pub q: Tensor,
    /// As in forward.
    pub k: Tensor,
    /// As in forward.
    pub v: Tensor,
    /// As in forward.
    pub sink: Option<Tensor>,
    /// What forward gave, input dtype or acc.
    pub out: Tensor,
    /// What forward gave.
    pub lse: Tensor,
    /// `[tq, heads_q, head_dim_v]`, input dtype.
    pub dout: Tensor,
    /// As in forward.
    pub softmax_scale: f64,
    /// As in forward.
    pub softcap: f64,
    /// Output like q, input dtype or acc.
    pub dq: Tensor,
    /// Output like k, input dtype or acc.
    pub dk: Tensor,
    /// Output like v, input dtype or acc.
    pub dv: Tensor,
    /// Output like sink, acc; given exactly when sink is.
    pub dsink: Option<Tensor>,
    /// dq is added to.
    pub accumulate_dq: bool,
    /// dk is added to.
    pub accumulate_dk: bool,
    /// dv is added to.
    pub accumulate_dv: bool,
    /// dsink is added to.
    pub accumulate_dsink: bool,
}

impl Backward {
    /// Every tensor by its name.
    pub(super) fn tensors(&self) -> Vec<Named<'_>> {
        let all = [
            Some(("args.q", &self.q)),
            Some(("args.k", &self.k)),
            Some(("args.v", &self.v)),
            self.sink.as_ref().map(|t| ("args.sink", t)),
            Some(("args.out", &self.out)),
            Some(("args.lse", &self.lse)),
            Some(("args.dout", &self.dout)),
            Some(("args.dq", &self.dq)),
            Some(("args.dk", &self.dk)),
            Some(("args.dv", &self.dv)),
            self.dsink.as_ref().map(|t| ("args.dsink", t)),
        ];
        all.into_iter().flatten().collect()
    }
}

/// The factor that `given` stands for.
pub(super) fn scale(given: f64, head_dim: i64) -> f64 {
    if given == 0.0 {
        1.0 / (head_dim as f64).sqrt()
    } else {
        given
    }
}
