//! Masks made from bytes, by every way there is to make one.

use crate::bytes::Bytes;
use magi_attn::types::{Band, Mask, MaskType, Range, Result, Slice, TypedSlice};

/// Most slices of a mask, so that looking at every cell stays quick.
const MAX_SLICES: usize = 48;
/// Most blocks that a block-causal mask is asked for; more would only take time.
const MAX_BLOCKS: i128 = 4096;

/// What a mask was asked to be.
pub enum Request {
    /// By typed slices and totals.
    Typed(Vec<TypedSlice>, i64, i64),
    /// By slices with any band and totals.
    Banded(Vec<Slice>, i64, i64),
    /// By a builder, whose answer it holds.
    Built(Result<Mask>),
}

fn range(b: &mut Bytes) -> Range {
    let (start, second) = (b.number(), b.number());
    // Ranges in order are more useful, others must be refused.
    if b.u8() & 15 == 15 {
        Range::new(start, second)
    } else {
        Range::new(start.min(second), start.max(second))
    }
}

fn band(b: &mut Bytes) -> Band {
    let side = |b: &mut Bytes, none: i64| match b.below(3) {
        0 => none,
        1 => b.number().wrapping_sub(32),
        _ => b.number(),
    };
    Band::new(side(b, Band::NO_LO), side(b, Band::NO_HI))
}

/// Ascending from 0 more often than not.
fn cu_seqlens(b: &mut Bytes, n: usize) -> Vec<i64> {
    let mut at = b.mostly(0);
    let mut cu = Vec::with_capacity(n);
    for _ in 0..n {
        cu.push(at);
        at = if b.u8() & 31 == 31 {
            b.number()
        } else {
            at.saturating_add(b.number())
        };
    }
    cu
}

fn built(b: &mut Bytes) -> Result<Mask> {
    match b.below(3) {
        0 => {
            let n = b.below(12);
            let (q, flags) = (cu_seqlens(b, n), b.u8());
            let k = if flags & 2 == 0 {
                q.clone()
            } else {
                cu_seqlens(b, n)
            };
            let window = (b.number().wrapping_sub(1), b.number().wrapping_sub(1));
            Mask::from_cu_seqlens(&q, &k, flags & 1 == 1, window, b.number())
        }
        1 => {
            let (q, k) = (b.number(), b.number());
            Mask::from_sliding_window(
                q,
                k,
                (b.number().wrapping_sub(1), b.number().wrapping_sub(1)),
                b.number(),
            )
        }
        _ => {
            let n = 1 + b.below(8);
            let (cu, block) = (cu_seqlens(b, n), b.number());
            let most = cu.iter().copied().max().unwrap_or(0);
            let block = if i128::from(most) / i128::from(block.max(1)) > MAX_BLOCKS {
                most
            } else {
                block
            };
            Mask::from_block_causal_cu_seqlens(&cu, block)
        }
    }
}

/// Reads what to ask for. At most `MAX_SLICES` slices; `Slice`s whose sides cannot be added to positions are left to
/// `Mask::from_slices` to refuse.
pub fn request(b: &mut Bytes) -> Request {
    let kind = b.below(3);
    if kind == 2 {
        return Request::Built(built(b));
    }
    let (total_q, total_k, n) = (b.number(), b.number(), b.below(MAX_SLICES));
    if kind == 0 {
        let mut typed = Vec::with_capacity(n);
        for _ in 0..n {
            let mask_type = MaskType::from_i32(b.below(4) as i32).unwrap();
            typed.push(TypedSlice {
                q: range(b),
                k: range(b),
                mask_type,
            });
        }
        return Request::Typed(typed, total_q, total_k);
    }
    let slices = (0..n).map(|_| Slice::new(range(b), range(b), band(b))).collect();
    Request::Banded(slices, total_q, total_k)
}

impl Request {
    /// The library's answer.
    pub fn answer(self) -> Result<Mask> {
        match self {
            Request::Typed(slices, q, k) => Mask::new(&slices, q, k),
            Request::Banded(slices, q, k) => Mask::from_slices(slices, q, k),
            Request::Built(mask) => mask,
        }
    }
}
