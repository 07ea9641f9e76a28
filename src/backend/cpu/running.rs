//! Per-row work around the attention passes: the start of a running result, delta, and the sink.

use super::forward::{check_max_logits, max_view};
use super::scratch::filled;
use super::view::{View, expect_host};
use crate::types::{DType, Error, Result, Status, Tensor};

/// Sink logits, one `[tokens, heads]` view for each sink; a sink shared by all tokens has token stride 0.
struct Sink {
    sinks: Vec<View>,
    per_token: bool,
}

impl Sink {
    /// A checked view of `[s, heads]` or `[tokens, s, heads]`, s from 1 to 8.
    fn new(name: &str, t: &Tensor, dtype: DType, tokens: i64, heads: i64) -> Result<Sink> {
        expect_host(name, t)?;
        t.expect_dtype(name, dtype)?;
        let per_token = t.shape().len() == 3;
        let s = match *t.shape() {
            [s, h] if h == heads => s,
            [n, s, h] if n == tokens && h == heads => s,
            _ => 0,
        };
        if !(1..=8).contains(&s) {
            let message = format!(
                "{name} has shape {:?}; it must be [s, {heads}] or [{tokens}, s, {heads}] with s from 1 to 8",
                t.shape()
            );
            return Err(Error::new(Status::ShapeMismatch, message));
        }
        let stride = t.stride();
        let (token, sink, head) = if per_token {
            (stride[0], stride[1], stride[2])
        } else {
            (0, stride[0], stride[1])
        };
        // Shared sinks are there even without tokens: dsink is then 0.
        let shape = [if per_token { tokens } else { tokens.max(1) }, heads];
        let mut sinks = Vec::with_capacity(8);
        for i in 0..s {
            let bytes = (i * sink) as isize * dtype.size() as isize;
            let data = t.data().wrapping_offset(bytes);
            // SAFETY: the elements of one sink, all of them elements of `t`; with stride 0 the same for every token.
            let one = unsafe { Tensor::from_raw(data, dtype, t.device(), &shape, &[token, head]) };
            sinks.push(View::new(name, &one, Some(dtype))?);
        }
        Ok(Sink { sinks, per_token })
    }

    /// Log of the sum of exponentials of one query's sinks.
    fn logsumexp(&self, token: i64, head: usize) -> f64 {
        let logits = self.sinks.iter().map(|s| s.get(token, head));
        let max = logits.clone().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            // -inf, or a NaN, which a maximum drops.
            return logits.sum();
        }
        max + libm::log(logits.map(|z| libm::exp(z - max)).sum::<f64>())
    }
}

/// See `Backend::attn_init`.
pub(super) fn init(
    out: &Tensor,
    lse: &Tensor,
    max_logits: Option<&Tensor>,
    sink: Option<&Tensor>,
) -> Result<()> {
    let (out_view, lse_view) = (View::new("out", out, None)?, View::new("lse", lse, None)?);
    let (tokens, heads) = (out_view.tokens(), out_view.heads());
    lse.expect_shape("lse", &[tokens, heads as i64])?;
    let sink = sink
        .map(|s| Sink::new("sink", s, DType::F32, tokens, heads as i64))
        .transpose()?;
    if let Some(m) = max_logits {
        check_max_logits(m, heads as i64)?;
    }
    let zeros = filled(out_view.width(), 0.0)?;
    for token in 0..tokens {
        for head in 0..heads {
            out_view.write(token, head, &zeros);
            let start = sink
                .as_ref()
                .map_or(f64::NEG_INFINITY, |s| s.logsumexp(token, head));
            lse_view.set(token, head, start);
        }
    }
    if let Some(m) = max_logits {
        let m = max_view(m)?;
        (0..heads).for_each(|head| m.set(0, head, f64::NEG_INFINITY));
    }
    Ok(())
}

/// See `Backend::attn_delta`.
pub(super) fn delta(out: &Tensor, dout: &Tensor, delta: &Tensor) -> Result<()> {
    let (a, b) = (View::new("out", out, None)?, View::new("dout", dout, None)?);
    dout.expect_shape("dout", out.shape())?;
    delta.expect_shape("delta", &out.shape()[..2])?;
    let to = View::new("delta", delta, None)?;
    let (mut x, mut y) = (filled(a.width(), 0.0)?, filled(a.width(), 0.0)?);
    for token in 0..a.tokens() {
        for head in 0..a.heads() {
            a.read(token, head, &mut x);
            b.read(token, head, &mut y);
            // A row that sees nothing has out 0, and its dout, whatever it holds, reaches no gradient: not the sink's either.
            let product = |(&x, y): (&f64, &f64)| if x == 0.0 { 0.0 } else { x * y };
            to.set(token, head, x.iter().zip(&y).map(product).sum());
        }
    }
    Ok(())
}

/// See `Backend::sink_backward`.
pub(super) fn sink_backward(sink: &Tensor, lse: &Tensor, delta: &Tensor, dsink: &Tensor) -> Result<()> {
    let (lse_view, delta_view) = (View::new("lse", lse, None)?, View::new("delta", delta, None)?);
    delta.expect_shape("delta", lse.shape())?;
    dsink.expect_shape("dsink", sink.shape())?;
    let (tokens, heads) = (lse_view.tokens(), lse_view.heads());
    let from = Sink::new("sink", sink, DType::F32, tokens, heads as i64)?;
    let to = Sink::new("dsink", dsink, lse.dtype(), tokens, heads as i64)?;
    let gradient = |z: &View, token: i64, head: usize| {
        let p = libm::exp(z.get(token, head) - lse_view.get(token, head));
        // A sink of -inf weighs nothing, even where the query sees nothing else (lse = -inf).
        if z.get(token, head) == f64::NEG_INFINITY {
            0.0
        } else {
            -p * delta_view.get(token, head)
        }
    };
    for (z, dz) in from.sinks.iter().zip(&to.sinks) {
        for head in 0..heads {
            if from.per_token {
                (0..tokens).for_each(|token| dz.set(token, head, gradient(z, token, head)));
            } else {
                // The order of this sum is that of the tokens, on one thread.
                dz.set(0, head, (0..tokens).map(|token| gradient(z, token, head)).sum());
            }
        }
    }
    Ok(())
}

/// See `Backend::max_rows`.
pub(super) fn max_rows(src: &Tensor, dst: &Tensor) -> Result<()> {
    check_max_logits(dst, dst.elements())?;
    src.expect_shape("src", &[src.tokens(), dst.elements()])?;
    src.expect_dtype("src", DType::F32)?;
    let (from, to) = (View::new("src", src, None)?, max_view(dst)?);
    for head in 0..to.heads() {
        let all = (0..from.tokens()).map(|row| from.get(row, head));
        to.set(0, head, all.fold(f64::NEG_INFINITY, f64::max));
    }
    Ok(())
}
