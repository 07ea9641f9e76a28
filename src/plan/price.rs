//! Bytes that tokens take on their ways.

use super::cost::Direction;
use crate::types::{AttnShape, Config, DType};

/// Bytes of one token in one pass: on its way to the rank that computes with it, and of what is computed for it on the
/// way home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Price {
    /// k and v of a key.
    pub key_out: i64,
    /// Backward: its dk and dv.
    pub key_back: i64,
    /// Forward: q of a query. Backward: q, dout, lse and delta.
    pub query_out: i64,
    /// Forward: its out and lse. Backward: its dq.
    pub query_back: i64,
}

impl Price {
    /// The bytes of an attention shape, whose results travel in the types that `config` says.
    pub fn new(shape: &AttnShape, config: &Config, direction: Direction) -> Price {
        let bytes = |dtype: DType| dtype.size() as i64;
        let (plain, acc) = (bytes(shape.dtype), bytes(shape.dtype.accumulator()));
        let wire = |high: bool| if high { acc } else { plain };
        let (heads, qk, v) = (shape.heads_q, shape.head_dim, shape.head_dim_v);
        let key = shape.heads_kv * (qk + v);
        match direction {
            Direction::Forward => Price {
                key_out: key * plain,
                key_back: 0,
                query_out: heads * qk * plain,
                query_back: heads * (v * wire(config.forward_high_precision_reduce) + acc),
            },
            Direction::Backward => {
                let wire = wire(config.backward_high_precision_reduce);
                Price {
                    key_out: key * plain,
                    key_back: key * wire,
                    query_out: heads * ((qk + v) * plain + 2 * acc),
                    query_back: heads * qk * wire,
                }
            }
        }
    }
}
