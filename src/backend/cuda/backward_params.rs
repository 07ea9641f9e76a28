//! `magi_attn_backward_params` of kernels/params.h.

use crate::types::{Item, RowLimits, Tile};

/// What a launch of the backward kernel over key tiles is given beside its tensor maps. Strides count elements; pairs are
/// the local tensor and the receive buffer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BackwardParams {
    /// In the order of the work.
    pub tiles: *const Tile,
    /// What `Tile::item0` counts.
    pub items: *const Item,
    /// What `Item::limits` counts.
    pub limits: *const RowLimits,
    /// {next work, blocks done, even and odd parts begun}; 0 before a launch, and after it.
    pub counters: *mut i32,
    /// `[tokens_q, heads_q, head_dim]`, added to; aligned to 16 bytes.
    pub dq: *mut f32,
    /// `[tokens_k, heads_kv, head_dim]`.
    pub dk: [*mut u8; 2],
    /// `[tokens_k, heads_kv, head_dim_v]`.
    pub dv: [*mut u8; 2],
    /// `[tile_count, heads_kv, splits, floats of a piece]` with more than one split.
    pub piece: *mut f32,
    /// `[tile_count, heads_kv, warps]`; 0 before a launch, and after it.
    pub piece_done: *mut i32,
    /// Strides of `dq`: multiples of 4.
    pub dq_token: i64,
    /// As above.
    pub dq_head: i64,
    /// Strides of `dk`.
    pub dk_token: [i64; 2],
    /// As above.
    pub dk_head: [i64; 2],
    /// Strides of `dv`.
    pub dv_token: [i64; 2],
    /// As above.
    pub dv_head: [i64; 2],
    /// Number of tiles.
    pub tile_count: i32,
    /// Key heads.
    pub heads_kv: i32,
    /// Query heads of a key head.
    pub group: i32,
    /// Key heads that are walked together; divides `heads_kv`.
    pub section: i32,
    /// Parts of a group that blocks of their own compute; divides `group`.
    pub splits: i32,
    /// Queries.
    pub tokens_q: i32,
    /// Of the tensors; the kernel's may be larger.
    pub head_dim: i32,
    /// As above.
    pub head_dim_v: i32,
    /// Copies of one block of q, or of one tile of k.
    pub copies_k: i32,
    /// Copies of one block of dout, or of one tile of v.
    pub copies_v: i32,
    /// `OUT_F32`, `ACCUMULATE`.
    pub flags: i32,
    /// Factor on a logit, to base 2; with softcap on its tanh.
    pub scale_log2: f32,
    /// softmax_scale.
    pub scale: f32,
    /// softmax_scale / softcap.
    pub softcap_scale: f32,
}

impl BackwardParams {
    /// `dk` and `dv` are f32, else the input dtype.
    pub const OUT_F32: i32 = 1;
    /// `dk` and `dv`, both f32, are added to.
    pub const ACCUMULATE: i32 = 2;
}
