//! `magi_attn_backward_queries_params` of kernels/params.h.

use crate::types::{Item, RowLimits, Tile};

/// What a launch of the dq kernel is given beside its tensor maps. Strides count elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BackwardQueriesParams {
    /// In the order of the work.
    pub tiles: *const Tile,
    /// What `Tile::item0` counts.
    pub items: *const Item,
    /// What `Item::limits` counts.
    pub limits: *const RowLimits,
    /// {next work, blocks done}; 0 before a launch, and after it.
    pub counters: *mut i32,
    /// `[tokens, heads_q, head_dim]`.
    pub dq: *mut u8,
    /// Strides of `dq`.
    pub dq_token: i64,
    /// As above.
    pub dq_head: i64,
    /// Number of tiles.
    pub tile_count: i32,
    /// Query heads.
    pub units: i32,
    /// Query heads of a key head.
    pub group: i32,
    /// Query heads that are walked together; divides `units`.
    pub section: i32,
    /// Keys of the local tensor and of the receive buffer.
    pub tokens_k: [i32; 2],
    /// Of the tensors; the kernel's may be larger.
    pub head_dim: i32,
    /// `F32`, `ACCUMULATE`.
    pub flags: i32,
    /// Copies of one block of keys, or of one piece of q.
    pub copies_k: i32,
    /// Copies of one block of values, or of one piece of dout.
    pub copies_v: i32,
    /// softmax_scale.
    pub scale: f32,
    /// Factor on a logit, to base 2; with softcap on its tanh.
    pub scale_log2: f32,
    /// softmax_scale / softcap.
    pub softcap_scale: f32,
    /// 0.
    pub reserved0: i32,
}

impl BackwardQueriesParams {
    /// `dq` is f32, else the input dtype.
    pub const F32: i32 = 1;
    /// `dq`, which is f32, is added to.
    pub const ACCUMULATE: i32 = 2;
}
