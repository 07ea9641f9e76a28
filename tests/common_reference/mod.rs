//! Textbook attention over a mask, for comparison: plain loops over visible cells, independent of the library.
//!
//! Works row by row, so that its memory is linear in the tokens; big masks take time, not memory.
#![allow(dead_code)] // Every test program includes all of it and uses its own part.

use half::{bf16, f16};
use magi_attn::types::{DType, Mask};

/// Sink logits.
#[derive(Clone)]
pub struct Sink {
    /// `[count, heads_q]`, or `[tokens_q, count, heads_q]` when `per_token`.
    pub logits: Vec<f64>,
    /// Sinks of one query, 1 to 8.
    pub count: usize,
    /// Whether every query has its own.
    pub per_token: bool,
}

impl Sink {
    fn index(&self, q: usize, t: usize, head: usize, heads: usize) -> usize {
        (if self.per_token { q * self.count + t } else { t }) * heads + head
    }
}

/// Operands, dense row-major `[tokens, heads, width]`.
#[derive(Clone)]
pub struct Operands {
    /// Query heads.
    pub heads_q: usize,
    /// Key heads.
    pub heads_kv: usize,
    /// Elements of a query or key row.
    pub d: usize,
    /// Elements of a value row.
    pub dv: usize,
    /// Factor of `q . k`.
    pub scale: f64,
    /// 0 is off.
    pub cap: f64,
    /// Queries.
    pub q: Vec<f64>,
    /// Keys.
    pub k: Vec<f64>,
    /// Values.
    pub v: Vec<f64>,
    /// Gradient of the output; empty, with queries there, to leave the gradients out.
    pub dout: Vec<f64>,
    /// Sinks.
    pub sink: Option<Sink>,
}

/// Results, shaped like the operands they belong to.
#[derive(Clone, Default)]
pub struct Answer {
    pub out: Vec<f64>,
    pub lse: Vec<f64>,
    pub max_logits: Vec<f64>,
    pub dq: Vec<f64>,
    pub dk: Vec<f64>,
    pub dv: Vec<f64>,
    pub dsink: Vec<f64>,
}

/// How the arithmetic rounds.
#[derive(Clone, Copy, PartialEq)]
pub enum Arithmetic {
    /// f64 throughout.
    Exact,
    /// Scores, softmax and sums in f32; probabilities and logit gradients rounded to the dtype before they are
    /// multiplied; out and the gradients rounded to the dtype.
    Textbook(DType),
}

/// `x` rounded to `dtype`.
pub fn round(dtype: DType, x: f64) -> f64 {
    match dtype {
        DType::Bf16 => bf16::from_f32(x as f32).to_f64(),
        DType::F16 => f16::from_f32(x as f32).to_f64(),
        DType::F32 => f64::from(x as f32),
        _ => x,
    }
}

/// The keys that query `q` sees, ascending within each slice.
pub fn visible_keys(mask: &Mask, q: usize) -> Vec<usize> {
    let rows = mask.slices().iter().filter(|s| s.q.contains(q as i64));
    let cells = rows.flat_map(|s| (s.k.start..s.k.end).filter(move |&k| s.contains(q as i64, k)));
    cells.map(|k| k as usize).collect()
}

/// Attention and, with `dout`, its gradients.
pub fn attention(mask: &Mask, o: &Operands, arithmetic: Arithmetic) -> Answer {
    let (tokens_q, tokens_k) = (mask.total_q() as usize, mask.total_k() as usize);
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(tokens_q / 256 + 1);
    let parts: Vec<Answer> = std::thread::scope(|scope| {
        let spawn = |w: usize| scope.spawn(move || share(mask, o, arithmetic, (w, workers)));
        let all: Vec<_> = (0..workers).map(spawn).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let mut sum = empty(tokens_q, tokens_k, o);
    for part in &parts {
        for (into, from) in [
            (&mut sum.out, &part.out),
            (&mut sum.dq, &part.dq),
            (&mut sum.dk, &part.dk),
            (&mut sum.dv, &part.dv),
            (&mut sum.dsink, &part.dsink),
        ] {
            into.iter_mut().zip(from).for_each(|(a, b)| *a += b);
        }
        sum.max_logits
            .iter_mut()
            .zip(&part.max_logits)
            .for_each(|(a, b)| *a = a.max(*b));
        // Every row was made by one worker; the others left -inf.
        for (a, b) in sum
            .lse
            .iter_mut()
            .zip(&part.lse)
            .filter(|(_, b)| **b != f64::NEG_INFINITY)
        {
            *a = *b;
        }
    }
    if let Arithmetic::Textbook(dtype) = arithmetic {
        for x in [&mut sum.out, &mut sum.dq, &mut sum.dk, &mut sum.dv] {
            x.iter_mut().for_each(|x| *x = round(dtype, *x));
        }
    }
    sum
}

fn empty(tokens_q: usize, tokens_k: usize, o: &Operands) -> Answer {
    let gradients = usize::from(tokens_q == 0 || !o.dout.is_empty());
    Answer {
        out: vec![0.0; tokens_q * o.heads_q * o.dv],
        lse: vec![f64::NEG_INFINITY; tokens_q * o.heads_q],
        max_logits: vec![f64::NEG_INFINITY; o.heads_q],
        dq: vec![0.0; gradients * tokens_q * o.heads_q * o.d],
        dk: vec![0.0; gradients * tokens_k * o.heads_kv * o.d],
        dv: vec![0.0; gradients * tokens_k * o.heads_kv * o.dv],
        dsink: vec![0.0; o.sink.as_ref().map_or(0, |s| gradients * s.logits.len())],
    }
}

/// Dot product with four partial sums.
fn dot(a: &[f64], b: &[f64], f: &impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = f(*sum + f(a * b));
        }
    }
    f(f(sums[0] + sums[1]) + f(sums[2] + sums[3]))
}

fn add(to: &mut [f64], factor: f64, by: &[f64], f: &impl Fn(f64) -> f64) {
    to.iter_mut()
        .zip(by)
        .for_each(|(to, by)| *to = f(*to + f(factor * by)));
}

fn share(mask: &Mask, o: &Operands, arithmetic: Arithmetic, worker: (usize, usize)) -> Answer {
    match arithmetic {
        Arithmetic::Exact => rows(mask, o, worker, &|x| x, &|x| x),
        Arithmetic::Textbook(dtype) => rows(mask, o, worker, &|x| f64::from(x as f32), &|x| round(dtype, x)),
    }
}

/// Every `worker.1`-th row from `worker.0` on; `f` rounds what is computed, `p` what is multiplied again.
fn rows(
    mask: &Mask,
    o: &Operands,
    worker: (usize, usize),
    f: &impl Fn(f64) -> f64,
    p: &impl Fn(f64) -> f64,
) -> Answer {
    let mut a = empty(mask.total_q() as usize, mask.total_k() as usize, o);
    for q in (worker.0..mask.total_q() as usize).step_by(worker.1) {
        let keys = visible_keys(mask, q);
        for head in 0..o.heads_q {
            let logits = forward_row(o, &mut a, (q, head), &keys, f, p);
            if !o.dout.is_empty() {
                backward_row(o, &mut a, (q, head), &keys, &logits, f, p);
            }
        }
    }
    a
}

/// Fills out, lse and max_logits; returns the logits with their slopes under the cap.
fn forward_row(
    o: &Operands,
    a: &mut Answer,
    (q, head): (usize, usize),
    keys: &[usize],
    f: &impl Fn(f64) -> f64,
    p: &impl Fn(f64) -> f64,
) -> Vec<(f64, f64)> {
    let (row, kv) = (q * o.heads_q + head, head / (o.heads_q / o.heads_kv));
    let query = &o.q[row * o.d..][..o.d];
    let logit = |&k: &usize| {
        let s = f(o.scale * dot(query, &o.k[(k * o.heads_kv + kv) * o.d..][..o.d], f));
        if o.cap == 0.0 {
            return (s, 1.0);
        }
        let t = f((s / o.cap).tanh());
        (f(o.cap * t), f(1.0 - t * t))
    };
    let logits: Vec<(f64, f64)> = keys.iter().map(logit).collect();
    let top = logits.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.0));
    a.max_logits[head] = a.max_logits[head].max(top);
    let sinks: Vec<f64> = match &o.sink {
        Some(s) => (0..s.count)
            .map(|t| s.logits[s.index(q, t, head, o.heads_q)])
            .collect(),
        None => Vec::new(),
    };
    let max = sinks.iter().fold(top, |m, &z| m.max(z));
    if max == f64::NEG_INFINITY {
        return logits;
    }
    let out = &mut a.out[row * o.dv..][..o.dv];
    let mut sum = sinks.iter().fold(0.0, |sum, z| f(sum + f((z - max).exp())));
    for (&k, s) in keys.iter().zip(&logits) {
        let weight = f((s.0 - max).exp());
        sum = f(sum + weight);
        add(out, p(weight), &o.v[(k * o.heads_kv + kv) * o.dv..][..o.dv], f);
    }
    out.iter_mut().for_each(|x| *x = f(*x / sum));
    a.lse[row] = f(max + f(sum.ln()));
    logits
}

fn backward_row(
    o: &Operands,
    a: &mut Answer,
    (q, head): (usize, usize),
    keys: &[usize],
    logits: &[(f64, f64)],
    f: &impl Fn(f64) -> f64,
    p: &impl Fn(f64) -> f64,
) {
    let (row, kv) = (q * o.heads_q + head, head / (o.heads_q / o.heads_kv));
    let lse = a.lse[row];
    if lse == f64::NEG_INFINITY {
        return;
    }
    let query = &o.q[row * o.d..][..o.d];
    let dout = &o.dout[row * o.dv..][..o.dv];
    let out: Vec<f64> = a.out[row * o.dv..][..o.dv].iter().map(|&x| p(x)).collect();
    let delta = dot(&out, dout, f);
    for (&k, &(s, slope)) in keys.iter().zip(logits) {
        let key_row = k * o.heads_kv + kv;
        let weight = f((s - lse).exp());
        let dp = dot(dout, &o.v[key_row * o.dv..][..o.dv], f);
        let ds = p(f(f(weight * f(dp - delta)) * slope));
        add(
            &mut a.dq[row * o.d..][..o.d],
            f(o.scale * ds),
            &o.k[key_row * o.d..][..o.d],
            f,
        );
        add(&mut a.dk[key_row * o.d..][..o.d], f(o.scale * ds), query, f);
        add(&mut a.dv[key_row * o.dv..][..o.dv], p(weight), dout, f);
    }
    if let Some(sink) = &o.sink {
        for t in 0..sink.count {
            let i = sink.index(q, t, head, o.heads_q);
            a.dsink[i] = f(a.dsink[i] - f((sink.logits[i] - lse).exp() * delta));
        }
    }
}
