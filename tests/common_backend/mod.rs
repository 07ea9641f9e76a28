//! Memory, random problems and a driver for tests of the CPU backend.
#![allow(dead_code)] // Every test program includes all of it and uses its own part.

use crate::common_reference::{Answer, Operands, Sink, round};
use half::{bf16, f16};
use magi_attn::backend::{Backend, BackwardArgs, CpuBackend, ForwardArgs};
use magi_attn::types::{
    AttnShape, DType, Device, Mask, MaskType, Range, Slice, StageSlice, Tensor, TypedSlice,
};

/// Splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: i64) -> i64 {
        (self.next() % n as u64) as i64
    }
    pub fn normal(&mut self) -> f64 {
        let unit = |x: u64| ((x >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let (a, b) = (unit(self.next()), unit(self.next()));
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }
    pub fn normals(&mut self, n: usize, deviation: f64, dtype: DType) -> Vec<f64> {
        (0..n).map(|_| round(dtype, deviation * self.normal())).collect()
    }
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Dense,
    /// Unused elements behind every head and every token.
    Padded,
    /// The same, and rows of 2-byte elements begin at multiples of 16 bytes.
    Spaced,
    /// `[heads, tokens, width]` in memory.
    HeadsFirst,
    /// The last token first.
    Backwards,
}

/// A tensor with its memory; whatever no element occupies is NaN in every float dtype.
pub struct Buffer {
    bytes: Vec<u8>,
    offset: i64,
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub stride: Vec<i64>,
}

impl Buffer {
    /// All elements NaN.
    pub fn poisoned(shape: &[i64], dtype: DType, layout: Layout) -> Buffer {
        let mut stride = vec![1i64; shape.len()];
        for i in (0..shape.len().saturating_sub(1)).rev() {
            let dense = stride[i + 1] * shape[i + 1].max(1);
            stride[i] = match layout {
                Layout::Padded => dense + 3,
                Layout::Spaced => (dense + 15) / 8 * 8,
                _ => dense,
            };
        }
        let mut offset = 0;
        match layout {
            Layout::HeadsFirst if shape.len() == 3 => {
                (stride[0], stride[1]) = (shape[2], shape[2] * shape[0].max(1))
            }
            Layout::HeadsFirst if shape.len() == 2 => (stride[0], stride[1]) = (1, shape[0].max(1)),
            Layout::Backwards => {
                offset = stride[0] * (shape[0] - 1).max(0);
                stride[0] = -stride[0];
            }
            _ => {}
        }
        let reach: i64 = shape
            .iter()
            .zip(&stride)
            .map(|(n, s)| (n - 1).max(0) * s.abs())
            .sum();
        Buffer {
            bytes: vec![0xff; (reach + 1) as usize * dtype.size()],
            offset,
            dtype,
            shape: shape.to_vec(),
            stride,
        }
    }

    pub fn new(values: &[f64], shape: &[i64], dtype: DType, layout: Layout) -> Buffer {
        let mut b = Buffer::poisoned(shape, dtype, layout);
        b.set(values);
        b
    }

    fn position(&self, mut i: i64) -> usize {
        let mut at = self.offset;
        for (&n, &s) in self.shape.iter().zip(&self.stride).rev() {
            at += i % n * s;
            i /= n;
        }
        at as usize * self.dtype.size()
    }

    pub fn set(&mut self, values: &[f64]) {
        assert_eq!(values.len() as i64, self.shape.iter().product::<i64>());
        for (i, &x) in values.iter().enumerate() {
            let at = self.position(i as i64);
            let to = &mut self.bytes[at..at + self.dtype.size()];
            match self.dtype {
                DType::F64 => to.copy_from_slice(&x.to_ne_bytes()),
                DType::F32 => to.copy_from_slice(&(x as f32).to_ne_bytes()),
                DType::Bf16 => to.copy_from_slice(&bf16::from_f32(x as f32).to_ne_bytes()),
                _ => to.copy_from_slice(&f16::from_f32(x as f32).to_ne_bytes()),
            }
        }
    }

    /// Everything that the tensor spans, and what lies between its elements.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    pub fn values(&self) -> Vec<f64> {
        let element = |i: i64| {
            let at = self.position(i);
            let from = &self.bytes[at..at + self.dtype.size()];
            match self.dtype {
                DType::F64 => f64::from_ne_bytes(from.try_into().unwrap()),
                DType::F32 => f64::from(f32::from_ne_bytes(from.try_into().unwrap())),
                DType::Bf16 => bf16::from_ne_bytes(from.try_into().unwrap()).to_f64(),
                _ => f16::from_ne_bytes(from.try_into().unwrap()).to_f64(),
            }
        };
        (0..self.shape.iter().product()).map(element).collect()
    }

    pub fn tensor(&mut self) -> Tensor {
        let first = self
            .bytes
            .as_mut_ptr()
            .wrapping_add(self.offset as usize * self.dtype.size());
        // SAFETY: `poisoned` made room for every element; tests keep the buffer alive while the tensor is used.
        unsafe { Tensor::from_raw(first, self.dtype, Device::Cpu, &self.shape, &self.stride) }
    }
}

/// Up to `count` random slices without a common cell.
pub fn random_mask(r: &mut Random, tokens_q: i64, tokens_k: i64, count: usize) -> Mask {
    let mut taken = vec![false; (tokens_q * tokens_k) as usize];
    let mut typed: Vec<TypedSlice> = Vec::new();
    for _ in 0..count * 4 {
        if typed.len() == count {
            break;
        }
        let mut range = |total: i64| {
            let (a, b) = (r.below(total + 1), r.below(total + 1));
            Range::new(a.min(b), a.max(b))
        };
        let (q, k) = (range(tokens_q), range(tokens_k));
        let mask_type = MaskType::from_i32(r.below(4) as i32).unwrap();
        let t = TypedSlice { q, k, mask_type };
        let s = Slice::from_typed(&t);
        let cells = || (q.start..q.end).flat_map(move |i| (k.start..k.end).map(move |j| (i, j)));
        let at = |(i, j): (i64, i64)| (i * tokens_k + j) as usize;
        let mine = || cells().filter(|&(i, j)| s.contains(i, j));
        if mine().all(|c| !taken[at(c)]) {
            mine().for_each(|c| taken[at(c)] = true);
            typed.push(t);
        }
    }
    Mask::new(&typed, tokens_q, tokens_k).unwrap()
}

pub fn shape(heads_q: i64, heads_kv: i64, d: i64, dv: i64, dtype: DType) -> AttnShape {
    AttnShape {
        heads_q,
        heads_kv,
        head_dim: d,
        head_dim_v: dv,
        dtype,
    }
}

/// Random normal operands, representable in the dtype.
pub fn operands(r: &mut Random, mask: &Mask, s: &AttnShape) -> Operands {
    let (tq, tk) = (mask.total_q() as usize, mask.total_k() as usize);
    let (hq, hkv) = (s.heads_q as usize, s.heads_kv as usize);
    let (d, dv) = (s.head_dim as usize, s.head_dim_v as usize);
    Operands {
        heads_q: hq,
        heads_kv: hkv,
        d,
        dv,
        scale: 1.0 / (d as f64).sqrt(),
        cap: 0.0,
        q: r.normals(tq * hq * d, 1.0, s.dtype),
        k: r.normals(tk * hkv * d, 1.0, s.dtype),
        v: r.normals(tk * hkv * dv, 1.0, s.dtype),
        dout: r.normals(tq * hq * dv, 1.0, s.dtype),
        sink: None,
    }
}

pub fn random_sink(r: &mut Random, tokens_q: i64, heads: i64, count: usize, per_token: bool) -> Sink {
    let n = heads as usize * count * if per_token { tokens_q as usize } else { 1 };
    let mut logits = r.normals(n, 1.0, DType::F32);
    // Now and then a sink that swallows everything, and one that weighs nothing.
    logits.iter_mut().step_by(7).for_each(|z| *z = 100.0);
    logits.iter_mut().skip(3).step_by(5).for_each(|z| *z = -100.0);
    Sink {
        logits,
        count,
        per_token,
    }
}

/// How the backend is driven.
#[derive(Clone, Copy)]
pub struct Drive {
    pub layout: Layout,
    pub threads: usize,
    /// Cuts keys into two sources and the slices into pieces that are computed in three calls.
    pub split: bool,
}

pub const PLAIN: Drive = Drive {
    layout: Layout::Dense,
    threads: 2,
    split: false,
};

/// The slices of each call, and the first key of source 1.
pub fn calls(mask: &Mask, split: bool) -> (Vec<Vec<StageSlice>>, i64) {
    let (tq, tk) = (mask.total_q(), mask.total_k());
    let all = |slice: &Slice| StageSlice {
        slice: *slice,
        source: 0,
    };
    if !split {
        return (vec![mask.slices().iter().map(all).collect()], tk);
    }
    let (middle_q, middle_k) = (tq / 3, tk * 2 / 5);
    let mut calls = vec![Vec::new(); 3];
    let mut n = 0;
    for s in mask.slices() {
        for q in [Range::new(0, middle_q), Range::new(middle_q, tq)] {
            for (source, k) in [Range::new(0, middle_k), Range::new(middle_k, tk)]
                .iter()
                .enumerate()
            {
                let slice = s.cut(&q, k).shift(0, if source == 1 { -middle_k } else { 0 });
                calls[n % 3].push(StageSlice {
                    slice,
                    source: source as u8,
                });
                n += 1;
            }
        }
    }
    (calls, middle_k)
}

/// Both sources of a key-side tensor, cut at `middle`; `values` empty for one filled with zeros.
pub fn sources(values: &[f64], shape: [i64; 3], middle: i64, dtype: DType, layout: Layout) -> [Buffer; 2] {
    let row = (shape[1] * shape[2]) as usize;
    let zeros = vec![0.0; row * shape[0] as usize];
    let values = if values.is_empty() { &zeros } else { values };
    let (a, b) = values.split_at(middle as usize * row);
    [
        Buffer::new(a, &[middle, shape[1], shape[2]], dtype, layout),
        Buffer::new(b, &[shape[0] - middle, shape[1], shape[2]], dtype, layout),
    ]
}

/// Everything the backend makes of a problem. out and gradients of f64 problems are f64; others are cast to the dtype.
pub fn compute(mask: &Mask, o: &Operands, s: &AttnShape, drive: Drive) -> Answer {
    let backend = CpuBackend::with_threads(drive.threads);
    let (tq, tk) = (mask.total_q(), mask.total_k());
    let (hq, hkv, d, dv, dtype) = (s.heads_q, s.heads_kv, s.head_dim, s.head_dim_v, s.dtype);
    let (acc, layout) = (dtype.accumulator(), drive.layout);
    let (calls, middle) = calls(mask, drive.split);
    let mut q = Buffer::new(&o.q, &[tq, hq, d], dtype, layout);
    let mut dout = Buffer::new(&o.dout, &[tq, hq, dv], dtype, layout);
    let mut k = sources(&o.k, [tk, hkv, d], middle, dtype, layout);
    let mut v = sources(&o.v, [tk, hkv, dv], middle, dtype, layout);
    let mut out = Buffer::poisoned(&[tq, hq, dv], acc, layout);
    let mut lse = Buffer::poisoned(&[tq, hq], acc, layout);
    let mut delta = Buffer::poisoned(&[tq, hq], acc, layout);
    let mut max = Buffer::poisoned(&[hq], DType::F32, Layout::Dense);
    let mut sink = o.sink.as_ref().map(|z| {
        let shared = [z.count as i64, hq];
        let own = [tq, z.count as i64, hq];
        Buffer::new(
            &z.logits,
            if z.per_token { &own } else { &shared },
            DType::F32,
            layout,
        )
    });
    let sink_tensor = sink.as_mut().map(Buffer::tensor);
    let k_tensors = k.each_mut().map(|b| Some(b.tensor()));
    let v_tensors = v.each_mut().map(|b| Some(b.tensor()));
    backend
        .attn_init(out.tensor(), lse.tensor(), Some(max.tensor()), sink_tensor)
        .unwrap();
    for slices in &calls {
        let args = ForwardArgs {
            q: q.tensor(),
            k: k_tensors,
            v: v_tensors,
            slices,
            shape: *s,
            softmax_scale: o.scale,
            softcap: o.cap,
            out: out.tensor(),
            lse: lse.tensor(),
            max_logits: Some(max.tensor()),
        };
        backend.attn_forward(&args).unwrap();
    }
    let mut final_out = Buffer::poisoned(&[tq, hq, dv], dtype, layout);
    backend.cast(out.tensor(), final_out.tensor(), false).unwrap();
    let mut answer = Answer {
        out: final_out.values(),
        lse: lse.values(),
        max_logits: max.values(),
        ..Answer::default()
    };
    backend
        .attn_delta(final_out.tensor(), dout.tensor(), delta.tensor())
        .unwrap();
    let zeros = vec![0.0; (tq * hq * d) as usize];
    let mut dq = Buffer::new(&zeros, &[tq, hq, d], acc, layout);
    let mut dk = sources(&[], [tk, hkv, d], middle, acc, layout);
    let mut dv_sums = sources(&[], [tk, hkv, dv], middle, acc, layout);
    for slices in &calls {
        let args = BackwardArgs {
            q: q.tensor(),
            k: k_tensors,
            v: v_tensors,
            dout: dout.tensor(),
            lse: lse.tensor(),
            delta: delta.tensor(),
            slices,
            shape: *s,
            softmax_scale: o.scale,
            softcap: o.cap,
            dq: dq.tensor(),
            dk: dk.each_mut().map(|b| Some(b.tensor())),
            dv: dv_sums.each_mut().map(|b| Some(b.tensor())),
        };
        backend.attn_backward(&args).unwrap();
    }
    if let Some(z) = sink_tensor {
        let mut dsink = Buffer::poisoned(z.shape(), acc, layout);
        backend
            .sink_backward(z, lse.tensor(), delta.tensor(), dsink.tensor())
            .unwrap();
        answer.dsink = dsink.values();
    }
    let rounded = |x: Vec<f64>| x.into_iter().map(|x| round(dtype, x)).collect();
    answer.dq = rounded(dq.values());
    answer.dk = rounded(dk.iter().flat_map(Buffer::values).collect());
    answer.dv = rounded(dv_sums.iter().flat_map(Buffer::values).collect());
    answer
}

/// Largest absolute value.
pub fn peak(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

/// Largest difference; NaN counts as infinite, and an infinity equals itself.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let one = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() };
    let all = a.iter().zip(b).map(one);
    all.fold(0.0, |m, x| if x.is_nan() { f64::INFINITY } else { m.max(x) })
}

/// Asserts 1e-10 of the largest value for every result.
pub fn assert_exact(got: &Answer, want: &Answer, what: &str) {
    for (name, got, want) in [
        ("out", &got.out, &want.out),
        ("lse", &got.lse, &want.lse),
        ("dq", &got.dq, &want.dq),
        ("dk", &got.dk, &want.dk),
        ("dv", &got.dv, &want.dv),
        ("dsink", &got.dsink, &want.dsink),
    ] {
        let finite: Vec<f64> = want.iter().copied().filter(|x| x.is_finite()).collect();
        let (error, bound) = (distance(got, want), 1e-10 * peak(&finite).max(1e-3));
        assert!(
            error <= bound,
            "{what}: {name} is off by {error:e}, bound {bound:e}"
        );
    }
    let error = distance(&got.max_logits, &want.max_logits);
    assert!(
        error <= 1e-6 * peak(&got.max_logits).clamp(1.0, 1e6),
        "{what}: max_logits is off by {error:e}"
    );
}
