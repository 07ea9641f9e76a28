//! Sums of dq that the kernel over key tiles zeroes and converts beside its products, one section of heads after the other:
//! what the launches around it must know of that.

use std::ptr::null_mut;

use super::backward_launch::{KeysLaunch, KeysOutputs, Operands};
use super::backward_params::BackwardParams;
use crate::types::Tensor;

/// Rows of a head that are converted at once: MAGI_BACKWARD_PIECE_ROWS.
pub const PIECE_ROWS: i64 = 8;
/// Floats that are zeroed at once: MAGI_BACKWARD_ZERO_PIECE.
pub const ZERO_PIECE: i64 = 4096;

/// Sections of heads of a launch, at least two, and where its thread blocks count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sections {
    /// How many.
    pub count: i64,
    /// Query heads of each. Those of the first are zeroed before the launch.
    pub heads: i64,
    /// Thread blocks of the launch.
    pub blocks: i64,
    /// `words(count, blocks)` of them: 0 before the launch.
    pub words: *mut i32,
}

/// Words that thread blocks count in: a ticket, two for each section, one for each block.
pub fn words(sections: i64, blocks: i64) -> usize {
    (1 + 2 * sections + blocks) as usize
}

impl Sections {
    /// `words` of these.
    pub fn words(&self) -> usize {
        words(self.count, self.blocks)
    }

    /// How many pieces each thread block has converted, once the launch is done.
    pub fn converted(&self) -> *const i32 {
        self.words.wrapping_add((1 + 2 * self.count) as usize)
    }

    /// Those of a launch whose sums are in the workspace, rows of a head together, and whose list was made; `None` when all
    /// heads are one section, when heads are split, and when pieces could not be counted.
    pub fn of(keys: &KeysLaunch<'_>, o: &Operands, out: &KeysOutputs, words: *mut i32) -> Option<Sections> {
        let dq = out.dq?;
        let heads_kv = keys.shape.heads_kv;
        let each = keys.section(o, out);
        let sections = Sections {
            count: heads_kv / each,
            heads: each * (keys.shape.heads_q / heads_kv),
            blocks: keys.blocks(o),
            words,
        };
        let counted = zero_pieces(&sections, &dq) * sections.count < i64::from(i32::MAX)
            && pieces(&dq) + sections.blocks < i64::from(i32::MAX);
        (sections.count > 1 && keys.split.parts == 1 && keys.split.owners > 0 && counted).then_some(sections)
    }

    /// What the kernel is told. `to`: what sums may be converted to.
    pub(super) fn tell(&self, params: &mut BackwardParams, dq: &Tensor, to: Option<&Tensor>) {
        params.sums = self.words;
        params.sections = self.count as i32;
        params.section_heads = self.heads as i32;
        params.section_sums = self.heads * dq.stride()[1];
        params.zero_pieces = zero_pieces(self, dq) as i32;
        params.dq_out = to.map_or(null_mut(), |t| t.data());
        if let Some(to) = to {
            (params.dq_out_token, params.dq_out_head) = (to.stride()[0], to.stride()[1]);
            params.pieces = pieces(dq) as i32;
            params.head_pieces = head_pieces(dq) as i32;
            params.section_pieces = self.heads as i32 * params.head_pieces;
        }
    }
}

/// Of a section of sums.
fn zero_pieces(sections: &Sections, dq: &Tensor) -> i64 {
    (sections.heads * dq.stride()[1] + ZERO_PIECE - 1) / ZERO_PIECE
}

/// Of one head.
fn head_pieces(dq: &Tensor) -> i64 {
    (dq.tokens() + PIECE_ROWS - 1) / PIECE_ROWS
}

/// Of all heads.
fn pieces(dq: &Tensor) -> i64 {
    head_pieces(dq) * dq.shape()[1]
}
