//! From the slices of a stage to tile lists: for every tile of rows, the runs that they see.
//!
//! A list grows with tiles and with the slices that meet them, never with the tokens that a run holds. It belongs to
//! one tile shape, so it stands beside the plan and outside its hash.

mod builder;
mod open;

use crate::types::{Band, Error, Range, Result, Slice, StageSlice, TileList, TileShape};
use builder::Builder;

/// Rows of the tensors that a stage's slices speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageRows {
    /// Queries of the local tensor.
    pub q: i64,
    /// Keys of the local tensor and of the receive buffer.
    pub k: [i64; 2],
}

/// Query tiles and the runs of keys that they see: what forward walks, and backward for dq alone.
///
/// `slices` share no cell. The list is the same whatever their order. O(s log s + pairs of tiles and slices that meet).
///
/// `Status::InvalidArgument` for a tile shape that is not valid, a source that is neither 0 nor 1, or a list that
/// `i32` cannot number; `Status::InvalidRange` for totals that are negative or above `TileList::MAX_TOKENS`, and for
/// slices with visible cells outside of them.
pub fn query_tiles(slices: &[StageSlice], rows: &StageRows, shape: &TileShape) -> Result<TileList> {
    let tight = checked(slices, rows, shape)?;
    let mut builder = Builder::new(shape);
    builder.cover(0, rows.q, tight)?;
    Ok(builder.finish())
}

/// The transpose: key tiles, those of the local tensor first, and the runs of queries that see them: what backward
/// walks. In its items the band bounds `query - key`.
///
/// Order, cost and errors as `query_tiles`.
pub fn key_tiles(slices: &[StageSlice], rows: &StageRows, shape: &TileShape) -> Result<TileList> {
    let tight = checked(slices, rows, shape)?;
    let mut builder = Builder::new(shape);
    for (source, &keys) in (0u8..).zip(&rows.k) {
        let turned = tight
            .iter()
            .filter(|s| s.source == source)
            .map(|s| StageSlice {
                slice: transpose(&s.slice),
                source: 0,
            })
            .collect();
        builder.cover(source, keys, turned)?;
    }
    Ok(builder.finish())
}

/// Tight slices that see something, once everything about them fits the list's integers.
fn checked(slices: &[StageSlice], rows: &StageRows, shape: &TileShape) -> Result<Vec<StageSlice>> {
    shape.validate()?;
    for (name, total) in [("q", rows.q), ("k[0]", rows.k[0]), ("k[1]", rows.k[1])] {
        let most = TileList::MAX_TOKENS;
        if !(0..=most).contains(&total) {
            return Err(Error::range(format!(
                "{name} has {total} rows; a tile list takes 0 to {most}"
            )));
        }
    }
    let mut tight = Vec::with_capacity(slices.len());
    for (i, s) in slices.iter().enumerate() {
        let Some(&keys) = rows.k.get(usize::from(s.source)) else {
            let source = s.source;
            return Err(Error::argument(format!(
                "slices[{i}] has source {source}; it must be 0 or 1"
            )));
        };
        let slice = s.slice.tighten();
        let Slice { q, k, .. } = slice;
        if q.is_empty() {
            continue;
        }
        if q.start < 0 || q.end > rows.q || k.start < 0 || k.end > keys {
            return Err(Error::range(format!(
                "slices[{i}] sees cells of queries {q} and keys {k}; there are {} queries and {keys} keys",
                rows.q
            )));
        }
        tight.push(StageSlice { slice, ..*s });
    }
    Ok(tight)
}

/// The same cells with queries and keys exchanged.
fn transpose(s: &Slice) -> Slice {
    let lo = if s.band.has_hi() { -s.band.hi } else { Band::NO_LO };
    let hi = if s.band.has_lo() { -s.band.lo } else { Band::NO_HI };
    Slice::new(
        Range::new(s.k.start, s.k.end),
        Range::new(s.q.start, s.q.end),
        Band::new(lo, hi),
    )
}
