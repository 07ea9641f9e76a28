//! Forward pass: a unit owns a block of query rows and walks the keys that its slices show it.

use super::blocks::{Blocking, Reach, block_count, block_range, query_bounds};
use super::kernels::Kernels;
use super::panel::{Rows, pack_panels, pack_rows};
use super::problem::{Problem, query_factor};
use super::product::{Bounds, PANEL, Product};
use super::rows::Running;
use super::scratch::{filled, states};
use super::threads;
use super::view::{View, expect_host};
use crate::backend::ForwardArgs;
use crate::types::{DType, Range, Result, Slice, Tensor};

/// What all units of a call share.
struct Forward {
    kernels: &'static Kernels,
    problem: Problem,
    blocking: Blocking,
    blocks: usize,
    reach: Reach,
    out: View,
    lse: View,
    scale: f64,
    cap: f64,
}

/// What one thread works in. Bounded by the blocking, whatever the number of tokens.
struct Scratch {
    q: Vec<f64>,
    out: Vec<f64>,
    s: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    row: Vec<f64>,
    running: Vec<Running>,
    bounds: Vec<Bounds>,
    /// Largest logit of every query head.
    max: Vec<f64>,
}

/// Merges attention over the slices into the running result.
pub(super) fn forward(kernels: &'static Kernels, cap_threads: usize, a: &ForwardArgs<'_>) -> Result<()> {
    let problem = Problem::new(a.shape, &a.q, &a.k, &a.v, a.slices)?;
    let shape = problem.shape;
    let acc = shape.dtype.accumulator();
    let tokens = problem.q.tokens();
    let out = View::shaped("out", &a.out, &[tokens, shape.heads_q, shape.head_dim_v], acc)?;
    let lse = View::shaped("lse", &a.lse, &[tokens, shape.heads_q], acc)?;
    if let Some(m) = &a.max_logits {
        check_max_logits(m, shape.heads_q)?;
    }
    let blocking = Blocking::new(&shape);
    let blocks = block_count(blocking.tokens, tokens);
    let reach = Reach::new(problem.slices.iter().map(|s| s.slice.q), blocking.tokens, blocks)?;
    let units = blocking.query_units(blocks);
    let count = threads::worth(
        cap_threads,
        units,
        problem.work(shape.head_dim + shape.head_dim_v),
    );
    let call = Forward {
        kernels,
        problem,
        blocking,
        blocks,
        reach,
        out,
        lse,
        scale: query_factor(a.softmax_scale, a.softcap),
        cap: a.softcap,
    };
    let mut scratch = states(count, || call.scratch())?;
    threads::run(&mut scratch, units, |s, unit| call.unit(s, unit));
    if let Some(m) = &a.max_logits {
        let m = max_view(m)?;
        for head in 0..m.heads() {
            let top = scratch
                .iter()
                .map(|s| s.max[head])
                .fold(f64::NEG_INFINITY, f64::max);
            m.set(0, head, m.get(0, head).max(top));
        }
    }
    Ok(())
}

/// Fails unless `[heads]` f32 in host memory.
pub(super) fn check_max_logits(m: &Tensor, heads: i64) -> Result<()> {
    m.expect_shape("max_logits", &[heads])?;
    m.expect_dtype("max_logits", DType::F32)?;
    expect_host("max_logits", m)
}

/// `[heads]` as one token of heads.
pub(super) fn max_view(m: &Tensor) -> Result<View> {
    // SAFETY: the same elements under one more dimension of extent 1.
    let t = unsafe {
        Tensor::from_raw(
            m.data(),
            m.dtype(),
            m.device(),
            &[1, m.shape()[0]],
            &[0, m.stride()[0]],
        )
    };
    View::new("max_logits", &t, None)
}

impl Forward {
    fn scratch(&self) -> Result<Scratch> {
        let shape = &self.problem.shape;
        let rows = self.blocking.rows();
        let (d, dv) = (
            shape.head_dim as usize,
            (shape.head_dim_v as usize).next_multiple_of(PANEL),
        );
        let keys = (self.blocking.keys as usize).next_multiple_of(PANEL);
        Ok(Scratch {
            q: filled(rows * d, 0.0)?,
            out: filled(rows * dv, 0.0)?,
            s: filled(rows * keys, 0.0)?,
            k: filled(keys * d, 0.0)?,
            v: filled(keys * dv, 0.0)?,
            row: filled(d.next_multiple_of(PANEL).max(dv), 0.0)?,
            running: filled(rows, Running { max: 0.0, sum: 0.0 })?,
            bounds: filled(rows, Bounds::default())?,
            max: filled(shape.heads_q as usize, f64::NEG_INFINITY)?,
        })
    }

    fn unit(&self, w: &mut Scratch, unit: usize) {
        let (block, kv, part) = self.blocking.query_unit(unit);
        // Under a causal mask the last queries see most: they come first, so that no long unit is left for the end.
        let block = self.blocks - 1 - block;
        if self.reach.of(block).next().is_none() {
            return;
        }
        let range = block_range(block, self.blocking.tokens, self.problem.q.tokens());
        let rows = self.blocking.query_rows(range, kv, part);
        pack_rows(&self.problem.q, &rows, self.scale, &mut w.q);
        self.load(w, &rows);
        for i in self.reach.of(block) {
            let s = &self.problem.slices[i];
            let Some((k, v)) = self.problem.source(s.source) else {
                continue;
            };
            let slice = s.slice.cut(&range, &s.slice.k);
            let seen = slice.visible_keys();
            let mut first = seen.start;
            while first < seen.end {
                let keys = Range::new(first, (first + self.blocking.keys).min(seen.end));
                self.step(w, &rows, &slice, (&k, &v), keys, kv);
                first = keys.end;
            }
        }
        self.save(w, &rows);
    }

    /// Takes over what earlier calls left: `out` is normalised, so its weight is exp(lse).
    fn load(&self, w: &mut Scratch, rows: &Rows) {
        let stride = self.out.width().next_multiple_of(PANEL);
        for (i, (token, head)) in rows.iter().enumerate() {
            let lse = self.lse.get(token, head);
            let out = &mut w.out[i * stride..(i + 1) * stride];
            out.fill(0.0);
            w.running[i] = Running { max: lse, sum: 0.0 };
            if lse != f64::NEG_INFINITY {
                self.out.read(token, head, out);
                w.running[i].sum = 1.0;
            }
        }
    }

    fn step(
        &self,
        w: &mut Scratch,
        rows: &Rows,
        slice: &Slice,
        (k, v): (&View, &View),
        keys: Range,
        kv: usize,
    ) {
        let keys_rows = Rows {
            token: keys.start,
            tokens: keys.len() as usize,
            head: kv,
            heads: 1,
        };
        let bounds = &mut w.bounds[..rows.len()];
        query_bounds(slice, rows, keys, bounds);
        let (n, d) = (keys_rows.len(), k.width());
        let cols = n.next_multiple_of(PANEL);
        let stride = v.width().next_multiple_of(PANEL);
        pack_panels(k, &keys_rows, 1.0, &mut w.row, Some(&mut w.k), None);
        let finite = pack_panels(v, &keys_rows, 1.0, &mut w.row, None, Some(&mut w.v));
        self.kernels.scores(&mut Product {
            a: &w.q,
            a_stride: d,
            b: &w.k,
            depth: d,
            c: &mut w.s,
            cols,
            bounds,
        });
        for (i, (_, head)) in rows.iter().enumerate() {
            // Rows that see nothing of this block are cleared: they may share a strip with rows that do.
            let s = &mut w.s[i * cols..(i + 1) * cols];
            let (factor, top) = self.kernels.softmax(s, bounds[i], self.cap, &mut w.running[i]);
            if factor != 1.0 {
                self.kernels
                    .scale(&mut w.out[i * stride..(i + 1) * stride], factor);
            }
            w.max[head] = w.max[head].max(top);
        }
        self.kernels.accumulate(
            &mut Product {
                a: &w.s,
                a_stride: cols,
                b: &w.v,
                depth: n,
                c: &mut w.out,
                cols: stride,
                bounds,
            },
            !finite,
        );
    }

    fn save(&self, w: &mut Scratch, rows: &Rows) {
        let stride = self.out.width().next_multiple_of(PANEL);
        for (i, (token, head)) in rows.iter().enumerate() {
            let Running { max, sum } = w.running[i];
            let out = &mut w.out[i * stride..(i + 1) * stride];
            if sum == 0.0 {
                // Nothing seen, now or before: (0, -inf).
                self.out.write(token, head, out);
                continue;
            }
            self.kernels.scale(out, 1.0 / sum);
            self.out.write(token, head, out);
            self.lse.set(token, head, max + libm::log(sum));
        }
    }
}
