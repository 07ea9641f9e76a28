//! Textbook attention: launchers of kernels/textbook_*.cu, for every device, dtype, stride, head dimension, scale and
//! softcap. Slower than the fast kernels by an order of magnitude, and deterministic.

use std::sync::Arc;

use super::check::{expect_here, expect_rows};
use super::embedded;
use super::kernels::{self, Kernels};
use super::textbook_params::{TextbookParams, TextbookRows, tile_shape};
use super::tile_lists::DeviceTiles;
use crate::backend::{BackwardArgs, ForwardArgs};
use crate::device::Stream;
use crate::device::cuda::{Arguments, Gpu, Launch, stream};
use crate::types::{AttnShape, DType, Error, Result, Status, Tensor};

/// Threads of a block.
const THREADS: u32 = 256;

/// The kernels on one device.
#[derive(Clone, Debug)]
pub struct Textbook {
    gpu: Arc<Gpu>,
    forward: Arc<Kernels>,
    backward: Arc<Kernels>,
}

/// What both passes have in common.
struct Operands<'a> {
    shape: AttnShape,
    q: &'a Tensor,
    k: &'a [Option<Tensor>; 2],
    v: &'a [Option<Tensor>; 2],
    softmax_scale: f64,
    softcap: f64,
}

impl Textbook {
    /// The kernels, loaded. The first time on a device may compile them, allocate and wait: prepare time.
    pub fn load(gpu: &Arc<Gpu>) -> Result<Textbook> {
        Ok(Textbook {
            gpu: gpu.clone(),
            forward: kernels::load(gpu, embedded::listed("textbook_forward")?)?,
            backward: kernels::load(gpu, embedded::listed("textbook_backward")?)?,
        })
    }

    /// Enqueues `Backend::attn_forward`. In place of `args.slices` it walks `tiles`: the query tiles of those slices, for
    /// the shape that `tile_shape` gives. They must outlive the work. Errors as the trait's, before anything is enqueued.
    pub fn forward(&self, stream: Stream, tiles: &DeviceTiles, args: &ForwardArgs<'_>) -> Result<()> {
        stream::expect_on(&self.gpu, stream)?;
        let operands = Operands {
            shape: args.shape.validate()?,
            q: &args.q,
            k: &args.k,
            v: &args.v,
            softmax_scale: args.softmax_scale,
            softcap: args.softcap,
        };
        let mut p = self.params(&operands, tiles)?;
        let s = &operands.shape;
        let (acc, tokens) = (s.dtype.accumulator(), args.q.tokens());
        p.out = self.rows("out", &args.out, &[tokens, s.heads_q, s.head_dim_v], acc)?;
        p.lse = self.rows("lse", &args.lse, &[tokens, s.heads_q], acc)?;
        if let Some(m) = &args.max_logits {
            expect_here(&self.gpu, "max_logits", m)?;
            m.expect_shape("max_logits", &[s.heads_q])?;
            m.expect_dtype("max_logits", DType::F32)?;
            (p.max_logits, p.max_logits_head) = (m.data().cast(), m.stride()[0]);
        }
        self.expect_queries(&operands, tiles)?;
        self.launch(&self.forward, "textbook_forward", stream, s.heads_q, &p, s.dtype)
    }

    /// Enqueues `Backend::attn_backward`. In place of `args.slices` it walks their query tiles and their key tiles, both
    /// for the shape that `tile_shape` gives. They must outlive the work. Errors as the trait's, before anything is
    /// enqueued.
    pub fn backward(
        &self,
        stream: Stream,
        query_tiles: &DeviceTiles,
        key_tiles: &DeviceTiles,
        args: &BackwardArgs<'_>,
    ) -> Result<()> {
        stream::expect_on(&self.gpu, stream)?;
        let operands = Operands {
            shape: args.shape.validate()?,
            q: &args.q,
            k: &args.k,
            v: &args.v,
            softmax_scale: args.softmax_scale,
            softcap: args.softcap,
        };
        let s = &operands.shape;
        let (acc, tokens) = (s.dtype.accumulator(), args.q.tokens());
        let (mut of_queries, of_keys) = (
            self.params(&operands, query_tiles)?,
            self.params(&operands, key_tiles)?,
        );
        let p = &mut of_queries;
        p.dout = self.rows("dout", &args.dout, &[tokens, s.heads_q, s.head_dim_v], s.dtype)?;
        p.lse = self.rows("lse", &args.lse, &[tokens, s.heads_q], acc)?;
        p.delta = self.rows("delta", &args.delta, &[tokens, s.heads_q], acc)?;
        p.dq = self.rows("dq", &args.dq, &[tokens, s.heads_q, s.head_dim], acc)?;
        p.dk = self.sources("dk", &args.dk, &args.k, s.heads_kv, s.head_dim, acc)?;
        p.dv = self.sources("dv", &args.dv, &args.k, s.heads_kv, s.head_dim_v, acc)?;
        self.expect_queries(&operands, query_tiles)?;
        self.expect_keys(&operands, key_tiles, args)?;
        let of_keys = TextbookParams {
            tiles: of_keys.tiles,
            items: of_keys.items,
            limits: of_keys.limits,
            tile_count: of_keys.tile_count,
            ..of_queries
        };
        let kernels = &self.backward;
        self.launch(
            kernels,
            "textbook_queries",
            stream,
            s.heads_q,
            &of_queries,
            s.dtype,
        )?;
        self.launch(kernels, "textbook_keys", stream, s.heads_kv, &of_keys, s.dtype)
    }

    /// Everything that both passes are told; the rest is null.
    fn params(&self, o: &Operands<'_>, tiles: &DeviceTiles) -> Result<TextbookParams> {
        let (s, want) = (&o.shape, tile_shape(o.shape.dtype));
        if tiles.shape() != want {
            let message = format!(
                "tile lists of shape {:?}; textbook kernels take {want:?}",
                tiles.shape()
            );
            return Err(Error::internal(message));
        }
        let capped = o.softcap != 0.0;
        let factor = if capped {
            o.softmax_scale / o.softcap
        } else {
            o.softmax_scale
        };
        let none = TextbookRows::NONE;
        Ok(TextbookParams {
            tiles: tiles.tiles(),
            items: tiles.items(),
            limits: tiles.limits(),
            q: self.rows("q", o.q, &[o.q.tokens(), s.heads_q, s.head_dim], s.dtype)?,
            k: self.sources("k", o.k, o.k, s.heads_kv, s.head_dim, s.dtype)?,
            v: self.sources("v", o.v, o.k, s.heads_kv, s.head_dim_v, s.dtype)?,
            lse: none,
            out: none,
            dout: none,
            delta: none,
            dq: none,
            dk: [none; 2],
            dv: [none; 2],
            max_logits: std::ptr::null_mut(),
            max_logits_head: 0,
            scale: o.softmax_scale,
            factor: within(factor, s.dtype),
            softcap: o.softcap,
            capped: capped.into(),
            tile_count: tiles.count(),
            heads_q: s.heads_q as i32,
            heads_kv: s.heads_kv as i32,
            head_dim: s.head_dim as i32,
            head_dim_v: s.head_dim_v as i32,
        })
    }

    fn rows(&self, name: &str, t: &Tensor, shape: &[i64], dtype: DType) -> Result<TextbookRows> {
        t.expect_shape(name, shape)?;
        t.expect_dtype(name, dtype)?;
        expect_rows(&self.gpu, name, t)?;
        Ok(TextbookRows::of(t))
    }

    /// What belongs to the keys of each source: `[rows, heads, width]`.
    fn sources(
        &self,
        name: &str,
        tensors: &[Option<Tensor>; 2],
        keys: &[Option<Tensor>; 2],
        heads: i64,
        width: i64,
        dtype: DType,
    ) -> Result<[TextbookRows; 2]> {
        for (i, t) in tensors.iter().enumerate() {
            let Some(t) = t else { continue };
            let name = format!("{name}[{i}]");
            let Some(keys) = &keys[i] else {
                return Err(Error::argument(format!("{name} is given, but k[{i}] is not")));
            };
            self.rows(&name, t, &[keys.tokens(), heads, width], dtype)?;
        }
        Ok(TextbookRows::pair(tensors))
    }

    /// Rows are queries, tokens are keys.
    fn expect_queries(&self, o: &Operands<'_>, tiles: &DeviceTiles) -> Result<()> {
        let reach = tiles.reach();
        inside("queries", reach.rows, [o.q.tokens(), 0])?;
        inside(
            "keys",
            reach.tokens,
            [tokens(o.k, 0, &[o.v]), tokens(o.k, 1, &[o.v])],
        )
    }

    /// Rows are keys, tokens are queries.
    fn expect_keys(&self, o: &Operands<'_>, tiles: &DeviceTiles, args: &BackwardArgs<'_>) -> Result<()> {
        let reach = tiles.reach();
        let needed = [o.v, &args.dk, &args.dv];
        inside("queries", reach.tokens, [o.q.tokens(), 0])?;
        inside("keys", reach.rows, [0, 1].map(|i| tokens(o.k, i, &needed)))
    }

    fn launch(
        &self,
        kernels: &Kernels,
        name: &str,
        stream: Stream,
        heads: i64,
        params: &TextbookParams,
        dtype: DType,
    ) -> Result<()> {
        let function = kernels.function(&format!("{name}_{}", dtype.name()))?;
        let blocks = (i64::from(params.tile_count) * heads).min(i32::MAX.into());
        let launch = Launch::linear(blocks as u32, THREADS);
        let mut arguments = Arguments::new();
        arguments.push(params);
        // SAFETY: the parameter is the kernels' only one; tensors and tile lists were checked against each other.
        unsafe { launch.run(&self.gpu, function, stream, &mut arguments) }
    }
}

/// The factor as a finite number of the accumulator type: with a tiny softcap it is large, and 0 times infinity is NaN.
fn within(factor: f64, dtype: DType) -> f64 {
    if dtype == DType::F64 || !factor.is_finite() {
        return factor;
    }
    factor.clamp(f32::MIN.into(), f32::MAX.into())
}

/// Tokens of source `i`, or 0 when `keys` or one of the others is not there.
fn tokens(keys: &[Option<Tensor>; 2], i: usize, others: &[&[Option<Tensor>; 2]]) -> i64 {
    match &keys[i] {
        Some(k) if others.iter().all(|o| o[i].is_some()) => k.tokens(),
        _ => 0,
    }
}

/// Fails unless what a list names is there.
fn inside(what: &str, reach: [i64; 2], have: [i64; 2]) -> Result<()> {
    let Some(i) = (0..2).find(|&i| reach[i] > have[i]) else {
        return Ok(());
    };
    let message = format!(
        "the tile list reaches {what} below {} of source {i}; the tensors have {}",
        reach[i], have[i]
    );
    Err(Error::new(Status::InvalidRange, message))
}
