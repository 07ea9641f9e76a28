//! What the textbook kernels are told: the structs of kernels/params.h.

use crate::types::{DType, Item, RowLimits, Tensor, Tile, TileShape};

/// Rows of a tile and tokens of a step; `MAGI_TEXTBOOK_ROWS`.
pub const ROWS: i32 = 64;

/// The same for f64; `MAGI_TEXTBOOK_ROWS_F64`.
pub const ROWS_F64: i32 = 32;

/// What tile lists for tensors of `dtype` are made for, in all passes.
pub fn tile_shape(dtype: DType) -> TileShape {
    let rows = if dtype == DType::F64 { ROWS_F64 } else { ROWS };
    TileShape::new(rows, rows)
}

/// `magi_textbook_rows`: a `[tokens, heads, width]` or `[tokens, heads]` tensor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TextbookRows {
    /// First element; null where there is no tensor.
    pub data: *mut u8,
    /// Elements from one token to the next.
    pub token: i64,
    /// Elements from one head to the next.
    pub head: i64,
}

impl TextbookRows {
    /// No tensor.
    pub const NONE: TextbookRows = TextbookRows {
        data: std::ptr::null_mut(),
        token: 0,
        head: 0,
    };

    /// Of a tensor with at least two dimensions.
    pub fn of(t: &Tensor) -> TextbookRows {
        TextbookRows {
            data: t.data(),
            token: t.stride()[0],
            head: t.stride()[1],
        }
    }

    /// Of each source's tensor.
    pub fn pair(t: &[Option<Tensor>; 2]) -> [TextbookRows; 2] {
        t.each_ref()
            .map(|t| t.as_ref().map_or(TextbookRows::NONE, TextbookRows::of))
    }
}

/// `magi_textbook_params`: one call over a tile list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TextbookParams {
    /// In the order of the work.
    pub tiles: *const Tile,
    /// Items of all tiles.
    pub items: *const Item,
    /// Limits of all items.
    pub limits: *const RowLimits,
    /// `[tokens, heads_q, head_dim]`
    pub q: TextbookRows,
    /// `[tokens, heads_kv, head_dim]` of each source.
    pub k: [TextbookRows; 2],
    /// `[tokens, heads_kv, head_dim_v]` of each source.
    pub v: [TextbookRows; 2],
    /// `[tokens, heads_q]`: read and written by forward, read by backward.
    pub lse: TextbookRows,
    /// Forward: `[tokens, heads_q, head_dim_v]`, read and written.
    pub out: TextbookRows,
    /// Backward: like out, in the dtype of q.
    pub dout: TextbookRows,
    /// Backward: `[tokens, heads_q]`.
    pub delta: TextbookRows,
    /// Backward: like q; added to.
    pub dq: TextbookRows,
    /// Backward: like k; added to.
    pub dk: [TextbookRows; 2],
    /// Backward: like v; added to.
    pub dv: [TextbookRows; 2],
    /// Forward: `[heads_q]`, or null.
    pub max_logits: *mut f32,
    /// Elements from one head to the next.
    pub max_logits_head: i64,
    /// softmax_scale.
    pub scale: f64,
    /// Factor of q . k: the scale, or what makes it an argument of tanh.
    pub factor: f64,
    /// Logits are `softcap * tanh(factor * q . k)` with `capped`.
    pub softcap: f64,
    /// 0 or 1.
    pub capped: i32,
    /// Number of tiles.
    pub tile_count: i32,
    /// Query heads.
    pub heads_q: i32,
    /// Key heads.
    pub heads_kv: i32,
    /// Elements of a row of q and k.
    pub head_dim: i32,
    /// Elements of a row of v.
    pub head_dim_v: i32,
}
