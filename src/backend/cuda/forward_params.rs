//! `magi_attn_forward_params` of kernels/params.h.

use crate::types::{Item, RowLimits, Tile};

/// What a launch of the forward kernel is given beside its tensor maps. Strides count elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ForwardParams {
    /// In the order of the work.
    pub tiles: *const Tile,
    /// What `Tile::item0` counts.
    pub items: *const Item,
    /// What `Item::limits` counts.
    pub limits: *const RowLimits,
    /// {next work, blocks done}; 0 before a launch, and after it.
    pub counters: *mut i32,
    /// `[heads_q]`; 0 before a launch, and after it.
    pub maxima: *mut u32,
    /// `[tokens, heads_q, head_dim_v]`.
    pub out: *mut u8,
    /// `[tokens, heads_q]`, or null.
    pub lse: *mut f32,
    /// `[heads_q]`.
    pub max_logits: *mut f32,
    /// Null, or `[sinks]` of every token and head by the strides below.
    pub sink: *const f32,
    /// `[slots, units, rows of a tile, head_dim_v of the kernel]`, in the order of registers.
    pub piece_out: *mut f32,
    /// `[slots, units, rows of a tile]`.
    pub piece_lse: *mut f32,
    /// `[slots, units, warps of a tile]`; 0 before a launch, and after it.
    pub piece_done: *mut i32,
    /// With `ACCUMULATE`: the output to merge into, which may be `out` itself.
    pub earlier: *const f32,
    /// Strides of `out`.
    pub out_token: i64,
    /// As above.
    pub out_head: i64,
    /// Strides of `lse`.
    pub lse_token: i64,
    /// As above.
    pub lse_head: i64,
    /// Strides of `sink`; 0 for tokens when they share it.
    pub sink_token: i64,
    /// As above.
    pub sink_row: i64,
    /// As above.
    pub sink_head: i64,
    /// Strides of `earlier`.
    pub earlier_token: i64,
    /// As above.
    pub earlier_head: i64,
    /// Number of tiles.
    pub tile_count: i32,
    /// Query heads, or groups of `pack` of them.
    pub units: i32,
    /// Units of a key head.
    pub group: i32,
    /// Units that are walked together; divides `units`.
    pub section: i32,
    /// Query heads that share a tile.
    pub pack: i32,
    /// 65536 / pack + 1.
    pub pack_inverse: i32,
    /// Keys of the local tensor and of the receive buffer.
    pub tokens_k: [i32; 2],
    /// Of the tensors; the kernel's may be larger.
    pub head_dim_v: i32,
    /// Sinks of a token.
    pub sinks: i32,
    /// Of one tile of Q as copied.
    pub q_bytes: i32,
    /// `OUT_F32`, `ACCUMULATE`.
    pub flags: i32,
    /// Copies of one block of keys.
    pub copies_k: i32,
    /// Copies of one block of values.
    pub copies_v: i32,
    /// Factor on a logit, to base 2; with softcap on its tanh.
    pub scale_log2: f32,
    /// softmax_scale / softcap.
    pub softcap_scale: f32,
}

impl ForwardParams {
    /// `out` is f32, else the input dtype.
    pub const OUT_F32: i32 = 1;
    /// Merge into `(earlier, lse)`, both f32.
    pub const ACCUMULATE: i32 = 2;
}
