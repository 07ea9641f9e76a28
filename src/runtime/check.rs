//! Everything that can be wrong with a call's tensors, found before anything is done.

use super::attn_args::{Backward, Forward};
use super::key::Key;
use super::on_stream::expect_none;
use super::workspace::MAX_SINKS;
use crate::backend::Backend;
use crate::device::Stream;
use crate::types::{AttnShape, DType, Device, Error, Result, Side, Status, Tensor};

/// A tensor with the name its parameter has.
pub(super) type Named<'a> = (&'a str, &'a Tensor);

/// Tokens, heads and device that a call's tensors must match.
#[derive(Clone, Copy)]
pub(super) struct Extents {
    pub tokens_q: i64,
    pub tokens_k: i64,
    pub shape: AttnShape,
    pub device: Device,
}

/// The CPU has no streams. Whether a stream belongs to its CUDA device is found when the call gets its turn.
pub(super) fn stream(device: Device, stream: Stream) -> Result<()> {
    match device {
        Device::Cpu => expect_none(stream),
        Device::Cuda(_) => Ok(()),
    }
}

/// Host memory, last stride 1.
pub(super) fn place(named: Named<'_>) -> Result<()> {
    place_on(named, Device::Cpu)
}

fn place_name(device: Device) -> String {
    match device {
        Device::Cpu => "in host memory".to_owned(),
        Device::Cuda(ordinal) => format!("on CUDA device {ordinal}"),
    }
}

/// Memory of `device`, last stride 1.
pub(super) fn place_on((name, t): Named<'_>, device: Device) -> Result<()> {
    if t.device() != device {
        let message = format!(
            "{name} lies {}; this call works {}",
            place_name(t.device()),
            place_name(device)
        );
        return Err(Error::new(Status::DeviceMismatch, message));
    }
    let last = t.shape().len() - 1;
    if t.shape()[last] > 1 && t.stride()[last] != 1 {
        let message = format!(
            "{name} has stride {} in its last dimension; it must be 1",
            t.stride()[last]
        );
        return Err(Error::new(Status::InvalidStride, message));
    }
    Ok(())
}

/// Outputs name no element twice, and share no memory with inputs or with each other.
pub(super) fn written(outputs: &[Named<'_>], inputs: &[Named<'_>]) -> Result<()> {
    for (i, (name, t)) in outputs.iter().enumerate() {
        if t.overlaps_itself() {
            let message = format!(
                "{name} has stride {:?}, which names an element twice; an output must not",
                t.stride()
            );
            return Err(Error::new(Status::InvalidStride, message));
        }
        for (other, o) in inputs.iter().chain(&outputs[..i]) {
            if t.overlaps(o) {
                return Err(Error::new(
                    Status::TensorOverlap,
                    format!("{name} overlaps {other} in memory"),
                ));
            }
        }
    }
    Ok(())
}

/// A global tensor `[total, ..]` and a local one `[local tokens, ..]` of one dtype and trailing shape.
pub(super) fn movement(
    key: &Key,
    side: Side,
    (gname, global): Named<'_>,
    (lname, local): Named<'_>,
    s: Stream,
) -> Result<()> {
    key.context().check_open()?;
    let device = key.context().device();
    stream(device, s)?;
    place_on((gname, global), device)?;
    place_on((lname, local), device)?;
    rows(gname, global, key.placement(side).total())?;
    rows(lname, local, key.placement(side).tokens(key.context().rank()))?;
    same_rows((lname, local), (gname, global))
}

/// As `movement`, between a contiguous share and the plan's layout.
pub(super) fn sharded(
    key: &Key,
    side: Side,
    share_rows: i64,
    share: &Tensor,
    local_x: &Tensor,
    s: Stream,
) -> Result<()> {
    key.context().check_open()?;
    let device = key.context().device();
    stream(device, s)?;
    place_on(("share", share), device)?;
    place_on(("local_x", local_x), device)?;
    rows("share", share, share_rows)?;
    rows(
        "local_x",
        local_x,
        key.placement(side).tokens(key.context().rank()),
    )?;
    same_rows(("local_x", local_x), ("share", share))
}

/// Two tensors in the plan's layout, the second of them an output.
pub(super) fn rolled(key: &Key, side: Side, from: &Tensor, to: &Tensor, s: Stream) -> Result<()> {
    key.context().check_open()?;
    let device = key.context().device();
    stream(device, s)?;
    let (input, output) = (("local_x", from), ("local_y", to));
    for (name, t) in [input, output] {
        place_on((name, t), device)?;
        rows(name, t, key.placement(side).tokens(key.context().rank()))?;
    }
    same_rows(output, input)?;
    written(&[output], &[input])
}

fn rows(name: &str, t: &Tensor, want: i64) -> Result<()> {
    if t.tokens() == want {
        return Ok(());
    }
    Err(Error::new(
        Status::ShapeMismatch,
        format!("{name} has {} tokens (shape[0]); it must have {want}", t.tokens()),
    ))
}

fn same_rows((name, t): Named<'_>, (other, o): Named<'_>) -> Result<()> {
    t.expect_dtype(name, o.dtype())
        .map_err(|e| Error::new(e.status, format!("{}, that of {other}", e.message)))?;
    if t.shape()[1..] == o.shape()[1..] {
        return Ok(());
    }
    let message = format!(
        "{name} has shape {:?}; behind the tokens it must be that of {other}, {:?}",
        t.shape(),
        o.shape()
    );
    Err(Error::new(Status::ShapeMismatch, message))
}

/// One attention tensor: place, dtype, shape.
fn attention(named: Named<'_>, dtypes: &[DType], shape: &[i64], e: &Extents) -> Result<()> {
    place_on(named, e.device)?;
    let (name, t) = named;
    if !dtypes.contains(&t.dtype()) {
        let want: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
        let message = format!(
            "{name} has dtype {}; it must be {}",
            t.dtype().name(),
            want.join(" or ")
        );
        return Err(Error::new(Status::DtypeMismatch, message));
    }
    t.expect_shape(name, shape)
}

/// The dtype of inputs and the accumulator type, once where they are the same.
fn either(dtype: DType) -> Vec<DType> {
    let mut both = vec![dtype, dtype.accumulator()];
    both.dedup();
    both
}

/// q is divided by the cap before it meets k: below this, queries of ordinary size would become infinite and their logits
/// NaN.
const LEAST_SOFTCAP: f64 = 1e-100;

/// `of` is what stands before the names in messages.
pub(super) fn numbers(of: &str, softmax_scale: f64, softcap: f64) -> Result<()> {
    if !softmax_scale.is_finite() {
        return Err(Error::argument(format!(
            "{of}softmax_scale is {softmax_scale}; it must be finite"
        )));
    }
    if !(softcap.is_finite() && softcap >= 0.0) {
        return Err(Error::argument(format!(
            "{of}softcap is {softcap}; it must be finite and 0 or more"
        )));
    }
    if softcap > 0.0 && softcap < LEAST_SOFTCAP {
        return Err(Error::argument(format!(
            "{of}softcap is {softcap:e}; it must be 0 or at least {LEAST_SOFTCAP:e}"
        )));
    }
    Ok(())
}

/// q, k and v.
fn inputs(q: &Tensor, k: &Tensor, v: &Tensor, e: &Extents) -> Result<()> {
    let s = &e.shape;
    attention(("args.q", q), &[s.dtype], &[e.tokens_q, s.heads_q, s.head_dim], e)?;
    attention(
        ("args.k", k),
        &[s.dtype],
        &[e.tokens_k, s.heads_kv, s.head_dim],
        e,
    )?;
    attention(
        ("args.v", v),
        &[s.dtype],
        &[e.tokens_k, s.heads_kv, s.head_dim_v],
        e,
    )
}

/// A sink of either layout.
fn sink(t: &Tensor, e: &Extents) -> Result<()> {
    place_on(("args.sink", t), e.device)?;
    t.expect_dtype("args.sink", DType::F32)?;
    let heads = e.shape.heads_q;
    let count = match *t.shape() {
        [n, h] if h == heads => n,
        [tokens, n, h] if tokens == e.tokens_q && h == heads => n,
        _ => {
            let want = format!("[s, {heads}] or [{}, s, {heads}]", e.tokens_q);
            let message = format!("args.sink has shape {:?}; it must be {want}", t.shape());
            return Err(Error::new(Status::ShapeMismatch, message));
        }
    };
    if !(1..=MAX_SINKS).contains(&count) {
        let message = format!("args.sink has {count} sinks; there can be 1 to {MAX_SINKS}");
        return Err(Error::new(Status::ShapeMismatch, message));
    }
    Ok(())
}

/// Everything about a forward call.
pub(super) fn forward(a: &Forward, e: &Extents, s: Stream) -> Result<()> {
    stream(e.device, s)?;
    let (shape, acc) = (&e.shape, e.shape.dtype.accumulator());
    numbers("args.", a.softmax_scale, a.softcap)?;
    inputs(&a.q, &a.k, &a.v, e)?;
    attention(
        ("args.out", &a.out),
        &either(shape.dtype),
        &[e.tokens_q, shape.heads_q, shape.head_dim_v],
        e,
    )?;
    let mut read = vec![("args.q", &a.q), ("args.k", &a.k), ("args.v", &a.v)];
    let mut wrote = vec![("args.out", &a.out)];
    if let Some(t) = &a.sink {
        sink(t, e)?;
        read.push(("args.sink", t));
    }
    if let Some(t) = &a.lse {
        attention(("args.lse", t), &[acc], &[e.tokens_q, shape.heads_q], e)?;
        wrote.push(("args.lse", t));
    }
    if let Some(t) = &a.max_logits {
        attention(("args.max_logits", t), &[DType::F32], &[shape.heads_q], e)?;
        wrote.push(("args.max_logits", t));
    }
    written(&wrote, &read)
}

/// Everything about a backward call.
pub(super) fn backward(a: &Backward, e: &Extents, s: Stream) -> Result<()> {
    stream(e.device, s)?;
    let (shape, acc) = (&e.shape, e.shape.dtype.accumulator());
    let grads = either(shape.dtype);
    numbers("args.", a.softmax_scale, a.softcap)?;
    inputs(&a.q, &a.k, &a.v, e)?;
    let out_shape = [e.tokens_q, shape.heads_q, shape.head_dim_v];
    attention(("args.out", &a.out), &grads, &out_shape, e)?;
    attention(("args.lse", &a.lse), &[acc], &out_shape[..2], e)?;
    attention(("args.dout", &a.dout), &[shape.dtype], &out_shape, e)?;
    attention(("args.dq", &a.dq), &grads, a.q.shape(), e)?;
    attention(("args.dk", &a.dk), &grads, a.k.shape(), e)?;
    attention(("args.dv", &a.dv), &grads, a.v.shape(), e)?;
    let mut read = vec![("args.q", &a.q), ("args.k", &a.k), ("args.v", &a.v)];
    read.extend([("args.out", &a.out), ("args.lse", &a.lse), ("args.dout", &a.dout)]);
    let mut wrote = vec![("args.dq", &a.dq), ("args.dk", &a.dk), ("args.dv", &a.dv)];
    match (&a.sink, &a.dsink) {
        (None, None) => {
            if a.accumulate_dsink {
                return Err(Error::argument(
                    "args.flags asks to accumulate dsink, but there is no sink",
                ));
            }
        }
        (Some(t), Some(d)) => {
            sink(t, e)?;
            attention(("args.dsink", d), &[acc], t.shape(), e)?;
            read.push(("args.sink", t));
            wrote.push(("args.dsink", d));
        }
        (Some(_), None) => {
            return Err(Error::new(
                Status::NullPointer,
                "args.dsink is NULL though args.sink is given",
            ));
        }
        (None, Some(_)) => return Err(Error::argument("args.dsink is given though args.sink is NULL")),
    }
    written(&wrote, &read)
}

/// Fails when one of the tensors holds a NaN, naming it.
pub(super) fn no_nan(backend: &dyn Backend, tensors: &[Named<'_>]) -> Result<()> {
    for (name, t) in tensors {
        if backend.has_nan(**t)? {
            return Err(Error::argument(format!(
                "{name} holds a NaN (looked for because the sanity check is on)"
            )));
        }
    }
    Ok(())
}
