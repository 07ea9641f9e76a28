//! Backward pass, in two sweeps that recompute the scores: a unit of the first owns query rows and makes their dq, a
//! unit of the second owns keys and makes their dk and dv.
//!
//! So nothing is written by two threads, no order has to be enforced, gradients are summed in f64 and rounded once a
//! call, and the bits do not depend on the number of threads. It costs 7 products where a single sweep needs 5; that
//! one would have to add to dq from many keys' units in a fixed order, and in the accumulator type.

use super::blocks::{Blocking, Reach, block_count, block_range, key_bounds, query_bounds};
use super::kernels::Kernels;
use super::panel::{Rows, pack_panels, pack_rows};
use super::problem::{Problem, query_factor, source_views};
use super::product::{Bounds, PANEL, Product};
use super::rows::Queries;
use super::scratch::{filled, states};
use super::threads;
use super::view::View;
use crate::backend::BackwardArgs;
use crate::types::{Error, Range, Result, Slice};

/// What all units of a call share.
struct Backward {
    kernels: &'static Kernels,
    problem: Problem,
    blocking: Blocking,
    dout: View,
    lse: View,
    delta: View,
    dq: View,
    dk: [Option<View>; 2],
    dv: [Option<View>; 2],
    /// Factor of q when it is packed.
    scale: f64,
    cap: f64,
    softmax_scale: f64,
}

/// What one thread works in. `own` is what the unit owns (queries, then keys), `other` what it walks.
struct Scratch {
    own: [Vec<f64>; 2],
    sums: [Vec<f64>; 2],
    /// Other side with a row in every column: what the scores and `dout . v` are computed from.
    across: [Vec<f64>; 2],
    /// Other side with a row in every row: what the gradients are computed from.
    along: [Vec<f64>; 2],
    s: Vec<f64>,
    dp: Vec<f64>,
    row: Vec<f64>,
    lse: Vec<f64>,
    delta: Vec<f64>,
    bounds: Vec<Bounds>,
}

/// Adds the gradients of attention over the slices.
pub(super) fn backward(kernels: &'static Kernels, cap_threads: usize, a: &BackwardArgs<'_>) -> Result<()> {
    let call = Backward::new(kernels, a)?;
    let (blocking, shape) = (call.blocking, call.problem.shape);
    let tokens = call.problem.q.tokens();
    let blocks = block_count(blocking.tokens, tokens);
    let query_reach = Reach::new(
        call.problem.slices.iter().map(|s| s.slice.q),
        blocking.tokens,
        blocks,
    )?;
    let keys = KeyBlocks::new(&call)?;
    let query_units = blocking.query_units(blocks);
    let key_units = keys.count() * shape.heads_kv as usize;
    let work = call.problem.work(4 * shape.head_dim + 3 * shape.head_dim_v);
    let count = threads::worth(cap_threads, query_units.max(key_units), work);
    let mut scratch = states(count, || call.scratch())?;
    threads::run(&mut scratch, query_units, |w, unit| {
        let (block, kv, part) = blocking.query_unit(unit);
        let block = blocks - 1 - block;
        let range = block_range(block, blocking.tokens, tokens);
        call.queries(
            w,
            &blocking.query_rows(range, kv, part),
            kv,
            query_reach.of(block),
        );
    });
    let heads_kv = shape.heads_kv as usize;
    threads::run(&mut scratch, key_units, |w, unit| {
        let (source, range) = keys.range(unit / heads_kv);
        call.keys(w, source, range, unit % heads_kv, keys.reach.of(unit / heads_kv));
    });
    Ok(())
}

/// The blocks of keys of both sources, in one numbering.
struct KeyBlocks {
    size: i64,
    tokens: [i64; 2],
    counts: [usize; 2],
    reach: Reach,
}

impl KeyBlocks {
    fn new(call: &Backward) -> Result<KeyBlocks> {
        let size = call.blocking.keys;
        let tokens = call.problem.k.map(|k| k.map_or(0, |k| k.tokens()));
        let counts = tokens.map(|t| block_count(size, t));
        // Keys of source 1 are numbered behind the last whole block of source 0.
        let behind = counts[0] as i64 * size;
        let slices = call.problem.slices.iter();
        let ranges = slices.map(|s| {
            if s.source == 0 {
                s.slice.k
            } else {
                s.slice.k.shift(behind)
            }
        });
        let reach = Reach::new(ranges, size, counts[0] + counts[1])?;
        Ok(KeyBlocks {
            size,
            tokens,
            counts,
            reach,
        })
    }

    fn count(&self) -> usize {
        self.counts[0] + self.counts[1]
    }

    fn range(&self, block: usize) -> (usize, Range) {
        let source = usize::from(block >= self.counts[0]);
        let block = if source == 0 {
            block
        } else {
            block - self.counts[0]
        };
        (source, block_range(block, self.size, self.tokens[source]))
    }
}

impl Backward {
    fn new(kernels: &'static Kernels, a: &BackwardArgs<'_>) -> Result<Backward> {
        let problem = Problem::new(a.shape, &a.q, &a.k, &a.v, a.slices)?;
        let shape = problem.shape;
        let acc = shape.dtype.accumulator();
        let (tokens, heads, d, dv) = (
            problem.q.tokens(),
            shape.heads_q,
            shape.head_dim,
            shape.head_dim_v,
        );
        let rows = problem.k.map(|k| k.map(|k| k.tokens()));
        let call = Backward {
            kernels,
            blocking: Blocking::new(&shape),
            dout: View::shaped("dout", &a.dout, &[tokens, heads, dv], shape.dtype)?,
            lse: View::shaped("lse", &a.lse, &[tokens, heads], acc)?,
            delta: View::shaped("delta", &a.delta, &[tokens, heads], acc)?,
            dq: View::shaped("dq", &a.dq, &[tokens, heads, d], acc)?,
            dk: source_views("dk", &a.dk, &rows, shape.heads_kv, d, acc)?,
            dv: source_views("dv", &a.dv, &rows, shape.heads_kv, dv, acc)?,
            scale: query_factor(a.softmax_scale, a.softcap),
            cap: a.softcap,
            softmax_scale: a.softmax_scale,
            problem,
        };
        for s in &call.problem.slices {
            let i = usize::from(s.source);
            if call.dk[i].is_none() || call.dv[i].is_none() {
                let message = format!("dk[{i}] and dv[{i}] are needed: a slice has source {i}");
                return Err(Error::argument(message));
            }
        }
        Ok(call)
    }

    fn scratch(&self) -> Result<Scratch> {
        let shape = &self.problem.shape;
        let rows = self.blocking.rows().next_multiple_of(PANEL);
        let widths = [shape.head_dim, shape.head_dim_v].map(|w| (w as usize).next_multiple_of(PANEL));
        let pair = || -> Result<[Vec<f64>; 2]> {
            Ok([filled(rows * widths[0], 0.0)?, filled(rows * widths[1], 0.0)?])
        };
        Ok(Scratch {
            own: pair()?,
            sums: pair()?,
            across: pair()?,
            along: pair()?,
            s: filled(rows * rows, 0.0)?,
            dp: filled(rows * rows, 0.0)?,
            row: filled(widths[0].max(widths[1]), 0.0)?,
            lse: filled(rows, 0.0)?,
            delta: filled(rows, 0.0)?,
            bounds: filled(rows, Bounds::default())?,
        })
    }

    /// lse and delta of queries; those that see nothing anywhere get +inf, which makes their probabilities 0.
    fn load_queries(&self, w: &mut Scratch, rows: &Rows) {
        for (i, (token, head)) in rows.iter().enumerate() {
            let lse = self.lse.get(token, head);
            w.lse[i] = if lse == f64::NEG_INFINITY {
                f64::INFINITY
            } else {
                lse
            };
            w.delta[i] = self.delta.get(token, head);
        }
    }

    /// dq of `rows`.
    fn queries(&self, w: &mut Scratch, rows: &Rows, kv: usize, slices: impl Iterator<Item = usize>) {
        let mut slices = slices.peekable();
        if slices.peek().is_none() {
            return;
        }
        let range = Range::new(rows.token, rows.token + rows.tokens as i64);
        pack_rows(&self.problem.q, rows, self.scale, &mut w.own[0]);
        pack_rows(&self.dout, rows, 1.0, &mut w.own[1]);
        self.load_queries(w, rows);
        w.sums[0].fill(0.0);
        for i in slices {
            let s = &self.problem.slices[i];
            let Some(kv_views) = self.problem.source(s.source) else {
                continue;
            };
            let slice = s.slice.cut(&range, &s.slice.k);
            let seen = slice.visible_keys();
            let mut first = seen.start;
            while first < seen.end {
                let keys = Range::new(first, (first + self.blocking.keys).min(seen.end));
                self.query_step(w, rows, &slice, kv_views, keys, kv);
                first = keys.end;
            }
        }
        let stride = self.dq.width().next_multiple_of(PANEL);
        for (sum, (token, head)) in w.sums[0].chunks_exact(stride).zip(rows.iter()) {
            self.dq.add(token, head, sum, self.softmax_scale);
        }
    }

    fn query_step(
        &self,
        w: &mut Scratch,
        rows: &Rows,
        slice: &Slice,
        (k, v): (View, View),
        keys: Range,
        kv: usize,
    ) {
        let others = Rows {
            token: keys.start,
            tokens: keys.len() as usize,
            head: kv,
            heads: 1,
        };
        query_bounds(slice, rows, keys, &mut w.bounds);
        let finite = pack_panels(
            &k,
            &others,
            1.0,
            &mut w.row,
            Some(&mut w.across[0]),
            Some(&mut w.along[0]),
        );
        pack_panels(&v, &others, 1.0, &mut w.row, Some(&mut w.across[1]), None);
        let cols = self.products(w, rows.len(), others.len());
        for i in 0..rows.len() {
            let (s, dp) = (
                &mut w.s[i * cols..(i + 1) * cols],
                &mut w.dp[i * cols..(i + 1) * cols],
            );
            let queries = Queries {
                lse: &w.lse[i..],
                delta: &w.delta[i..],
            };
            self.kernels.gradient_row(s, dp, &queries, w.bounds[i], self.cap);
        }
        self.kernels.accumulate(
            &mut Product {
                a: &w.s,
                a_stride: cols,
                b: &w.along[0],
                depth: others.len(),
                c: &mut w.sums[0],
                cols: k.width().next_multiple_of(PANEL),
                bounds: &w.bounds[..rows.len()],
            },
            !finite,
        );
    }

    /// Scores into `s` and `dout . v` into `dp`, for `rows` rows of `own` and `others` columns of `across`; returns
    /// the columns of a row.
    fn products(&self, w: &mut Scratch, rows: usize, others: usize) -> usize {
        let cols = others.next_multiple_of(PANEL);
        for (i, c) in [&mut w.s, &mut w.dp].into_iter().enumerate() {
            let depth = [self.problem.q.width(), self.dout.width()][i];
            self.kernels.scores(&mut Product {
                a: &w.own[i],
                a_stride: depth,
                b: &w.across[i],
                depth,
                c,
                cols,
                bounds: &w.bounds[..rows],
            });
        }
        cols
    }

    /// dk and dv of the keys in `range`, from all query heads of key head `kv`.
    fn keys(
        &self,
        w: &mut Scratch,
        source: usize,
        range: Range,
        kv: usize,
        slices: impl Iterator<Item = usize>,
    ) {
        let mut slices = slices.peekable();
        let views = self.problem.k[source].zip(self.problem.v[source]);
        let sums = self.dk[source].zip(self.dv[source]);
        let (Some((k, v)), Some((dk, dv)), true) = (views, sums, slices.peek().is_some()) else {
            return;
        };
        let rows = Rows {
            token: range.start,
            tokens: range.len() as usize,
            head: kv,
            heads: 1,
        };
        pack_rows(&k, &rows, 1.0, &mut w.own[0]);
        pack_rows(&v, &rows, 1.0, &mut w.own[1]);
        w.sums.iter_mut().for_each(|s| s.fill(0.0));
        for i in slices {
            let s = &self.problem.slices[i].slice;
            let slice = s.cut(&s.q, &range);
            let seen = slice.visible_rows();
            let mut first = seen.start;
            while first < seen.end {
                let tokens = Range::new(first, (first + self.blocking.tokens).min(seen.end));
                for part in 0..self.blocking.parts() {
                    self.key_step(w, &rows, &slice, &self.blocking.query_rows(tokens, kv, part));
                }
                first = tokens.end;
            }
        }
        // q was packed with its factor, which is the factor of dk too, but for the cap that it was divided by.
        let undo = if self.cap != 0.0 { self.cap } else { 1.0 };
        for (view, sums, factor) in [(dk, &w.sums[0], undo), (dv, &w.sums[1], 1.0)] {
            let stride = view.width().next_multiple_of(PANEL);
            for (sum, (token, head)) in sums.chunks_exact(stride).zip(rows.iter()) {
                view.add(token, head, sum, factor);
            }
        }
    }

    fn key_step(&self, w: &mut Scratch, rows: &Rows, slice: &Slice, others: &Rows) {
        key_bounds(slice, rows, others, &mut w.bounds);
        self.load_queries(w, others);
        let q = &self.problem.q;
        let (across, along) = (&mut w.across, &mut w.along);
        let finite = [
            pack_panels(
                q,
                others,
                self.scale,
                &mut w.row,
                Some(&mut across[0]),
                Some(&mut along[0]),
            ),
            pack_panels(
                &self.dout,
                others,
                1.0,
                &mut w.row,
                Some(&mut across[1]),
                Some(&mut along[1]),
            ),
        ];
        let cols = self.products(w, rows.len(), others.len());
        for i in 0..rows.len() {
            let (s, dp) = (
                &mut w.s[i * cols..(i + 1) * cols],
                &mut w.dp[i * cols..(i + 1) * cols],
            );
            let queries = Queries {
                lse: &w.lse,
                delta: &w.delta,
            };
            self.kernels
                .gradient_columns(s, dp, &queries, w.bounds[i], self.cap);
        }
        for (i, a) in [&w.s, &w.dp].into_iter().enumerate() {
            let width = [q.width(), self.dout.width()][i];
            self.kernels.accumulate(
                &mut Product {
                    a,
                    a_stride: cols,
                    b: &w.along[i],
                    depth: others.len(),
                    c: &mut w.sums[i],
                    cols: width.next_multiple_of(PANEL),
                    bounds: &w.bounds[..rows.len()],
                },
                !finite[i],
            );
        }
    }
}
