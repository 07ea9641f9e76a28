//! The shape of attention, apart from its mask.

use super::{DType, Error, Result, Status};

/// Heads, head dimensions and dtype of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttnShape {
    /// Query heads; a multiple of `heads_kv`.
    pub heads_q: i64,
    /// Key and value heads; query head `h` reads key head `h / (heads_q / heads_kv)`.
    pub heads_kv: i64,
    /// Elements of a query or key row, 8 to 1,024.
    pub head_dim: i64,
    /// Elements of a value row, 8 to 1,024.
    pub head_dim_v: i64,
    /// Type of q, k, v and out.
    pub dtype: DType,
}

/// cbindgen:ignore
impl AttnShape {
    /// Largest number of heads of either kind.
    pub const MAX_HEADS: i64 = 65_536;

    /// The shape, when every field is in its range.
    pub fn validate(self) -> Result<AttnShape> {
        let bad = |name: &str, value: i64, want: &str| {
            Err(Error::argument(format!("{name} is {value}; it must be {want}")))
        };
        if !(1..=Self::MAX_HEADS).contains(&self.heads_q) {
            return bad("heads_q", self.heads_q, "1 to 65536");
        }
        if self.heads_kv < 1 || self.heads_q % self.heads_kv != 0 {
            return bad(
                "heads_kv",
                self.heads_kv,
                &format!("a positive divisor of heads_q ({})", self.heads_q),
            );
        }
        for (name, value) in [("head_dim", self.head_dim), ("head_dim_v", self.head_dim_v)] {
            if !(8..=1024).contains(&value) {
                return bad(name, value, "8 to 1024");
            }
        }
        if !self.dtype.is_attention() {
            let message = format!(
                "attention dtype is {}; it must be f64, f32, bf16 or f16",
                self.dtype.name()
            );
            return Err(Error::new(Status::DtypeMismatch, message));
        }
        Ok(self)
    }

    /// Query heads that share one key head.
    pub fn group(&self) -> i64 {
        self.heads_q / self.heads_kv
    }
}
