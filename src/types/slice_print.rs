//! Prints a rectangle with a band in the four mask types.

use super::{MaskType, Range, Slice, TypedSlice};

impl Slice {
    /// The same cells as at most three typed slices: disjoint, none empty, in ascending rows, at most one for a row.
    ///
    /// Going down the rows of a tightened slice, the first key is the left edge until the lower diagonal leaves it
    /// and follows that diagonal from there on; the last key follows the upper diagonal until it reaches the right
    /// edge and is the edge from there on. So there are two rows where the shape changes, and three shapes at most.
    pub fn to_typed(&self) -> Vec<TypedSlice> {
        let Slice { q, k, band } = self.tighten();
        if q.is_empty() {
            return Vec::new();
        }
        // From row `low` on the lower diagonal is the left end; before row `high` the upper one is the right end.
        let low = if band.has_lo() { k.start - band.lo } else { q.end };
        let high = if band.has_hi() { k.end - band.hi } else { q.start };
        let mut out = Vec::with_capacity(3);
        let mut push = |rows: (i64, i64), keys: (i64, i64), mask_type| {
            let typed = TypedSlice {
                q: Range::new(rows.0, rows.1),
                k: Range::new(keys.0, keys.1),
                mask_type,
            };
            if !typed.q.is_empty() {
                let full = Slice::from_typed(&typed).is_full();
                let mask_type = if full { MaskType::Full } else { mask_type };
                out.push(TypedSlice { mask_type, ..typed });
            }
        };
        if low < high {
            push((q.start, low), (k.start, low + band.hi), MaskType::Causal);
            push((low, high), (k.start, k.end), MaskType::BiCausal);
            push((high, q.end), (high + band.lo, k.end), MaskType::InvCausal);
        } else {
            push((q.start, high), (k.start, k.end), MaskType::Causal);
            push((high, low), (k.start, k.end), MaskType::Full);
            push((low, q.end), (k.start, k.end), MaskType::InvCausal);
        }
        out
    }
}
