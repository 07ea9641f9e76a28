//! What forward and backward have in common: checked operands and the slices that hold cells.

use super::scratch::with_room;
use super::view::View;
use crate::types::{AttnShape, DType, Error, Range, Result, Slice, StageSlice, Tensor};

/// Checked queries, keys, values and slices.
pub(super) struct Problem {
    /// Heads, head dimensions and dtype.
    pub shape: AttnShape,
    /// Queries.
    pub q: View,
    /// Keys of each source.
    pub k: [Option<View>; 2],
    /// Values of each source.
    pub v: [Option<View>; 2],
    /// Slices with at least one visible cell, tight, inside q and the keys of their source.
    pub slices: Vec<StageSlice>,
}

impl Problem {
    /// Checks shapes, dtypes, strides, devices, and that every visible cell lies inside.
    pub fn new(
        shape: AttnShape,
        q: &Tensor,
        k: &[Option<Tensor>; 2],
        v: &[Option<Tensor>; 2],
        slices: &[StageSlice],
    ) -> Result<Problem> {
        let shape = shape.validate()?;
        let q = View::shaped("q", q, &[q.tokens(), shape.heads_q, shape.head_dim], shape.dtype)?;
        let rows = k.map(|k| k.map(|k| k.tokens()));
        let k = source_views("k", k, &rows, shape.heads_kv, shape.head_dim, shape.dtype)?;
        let v = source_views("v", v, &rows, shape.heads_kv, shape.head_dim_v, shape.dtype)?;
        let mut problem = Problem {
            shape,
            q,
            k,
            v,
            slices: with_room(slices.len())?,
        };
        for (i, s) in slices.iter().enumerate() {
            let tight = s.slice.tighten();
            if tight.q.is_empty() {
                continue;
            }
            problem.check_slice(i, &tight, s.source)?;
            problem.slices.push(StageSlice {
                slice: tight,
                source: s.source,
            });
        }
        Ok(problem)
    }

    fn check_slice(&self, i: usize, tight: &Slice, source: u8) -> Result<()> {
        let both = match source {
            0 | 1 => self.k[usize::from(source)].zip(self.v[usize::from(source)]),
            _ => None,
        };
        let Some((k, _)) = both else {
            let message = format!("slices[{i}] has source {source}, for which there is no k and v");
            return Err(Error::argument(message));
        };
        let inside = |r: &Range, tokens: i64| 0 <= r.start && r.end <= tokens;
        let tokens_k = k.tokens();
        if inside(&tight.q, self.q.tokens()) && inside(&tight.k, tokens_k) {
            return Ok(());
        }
        let (q, tokens_q) = (tight.q, self.q.tokens());
        Err(Error::range(format!(
            "slices[{i}] sees q {q} and k {} of source {source}; there are {tokens_q} and {tokens_k} tokens",
            tight.k
        )))
    }

    /// Multiplications of one pass whose products have `depth` columns in all.
    pub fn work(&self, depth: i64) -> f64 {
        let area: i64 = self.slices.iter().map(|s| s.slice.area()).sum();
        area as f64 * self.shape.heads_q as f64 * depth as f64
    }

    /// Keys and values of a source that a slice names.
    pub fn source(&self, source: u8) -> Option<(View, View)> {
        let i = usize::from(source);
        self.k[i].zip(self.v[i])
    }
}

/// Views of what belongs to the keys of each source: `[rows, heads, width]` of `dtype`.
pub(super) fn source_views(
    name: &str,
    tensors: &[Option<Tensor>; 2],
    rows: &[Option<i64>; 2],
    heads: i64,
    width: i64,
    dtype: DType,
) -> Result<[Option<View>; 2]> {
    let mut views = [None; 2];
    for (i, (view, t)) in views.iter_mut().zip(tensors).enumerate() {
        if let Some(t) = t {
            let name = format!("{name}[{i}]");
            let Some(rows) = rows[i] else {
                return Err(Error::argument(format!("{name} is given, but k[{i}] is not")));
            };
            *view = Some(View::shaped(&name, t, &[rows, heads, width], dtype)?);
        }
    }
    Ok(views)
}

/// What q is multiplied by when it is packed: with a cap, products are arguments of tanh, so `scale / cap`.
pub(super) fn query_factor(softmax_scale: f64, softcap: f64) -> f64 {
    if softcap != 0.0 {
        softmax_scale / softcap
    } else {
        softmax_scale
    }
}
