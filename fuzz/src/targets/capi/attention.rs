//! Attention calls over ranks and on one device.

use super::memory::{Arena, with_struct};
use super::said;
use super::state::{HeldKey, State, totals};
use crate::bytes::Bytes;
use magi_attn::ffi::attn::*;
use magi_attn::ffi::plain::{magi_attn_shape, magi_stream, magi_tensor};
use magi_attn::ffi::single::*;
use magi_attn::ffi::support::magi_explain_support;
use magi_attn::types::Status;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// What the tensors of a call should look like.
#[derive(Clone, Copy)]
struct Shape {
    tokens: [i64; 2],
    heads: [i64; 2],
    dims: [i64; 2],
    dtype: i32,
}

/// The stream of a call: NULL, rarely something else.
pub fn stream(b: &mut Bytes) -> magi_stream {
    if b.u8() == 255 {
        std::ptr::without_provenance_mut(64)
    } else {
        null_mut()
    }
}

/// 0 mostly, else any bits.
fn double(b: &mut Bytes) -> f64 {
    match b.u8() {
        0..=220 => 0.0,
        x @ 221..=250 => f64::from(x) / 128.0,
        _ => f64::from_bits(b.i64() as u64),
    }
}

fn acc(dtype: i32) -> i32 {
    i32::from(dtype != 0)
}

/// Input dtype or accumulator type.
fn result(b: &mut Bytes, dtype: i32) -> i32 {
    if b.u8() & 1 == 0 { dtype } else { acc(dtype) }
}

/// A sink's descriptor with one for its gradient; NULL three times in four.
fn sinks(a: &mut Arena, b: &mut Bytes, s: &Shape) -> [*const magi_tensor; 2] {
    let how = b.u8();
    let count = i64::from(how >> 4);
    let shape: &[i64] = match how & 3 {
        0 => &[count, s.heads[0]],
        1 => &[s.tokens[0], count, s.heads[0]],
        _ => return [null(); 2],
    };
    [a.tensor(b, 1, shape), a.tensor(b, acc(s.dtype), shape)]
}

fn inputs(a: &mut Arena, b: &mut Bytes, s: &Shape) -> [*const magi_tensor; 3] {
    [
        a.tensor(b, s.dtype, &[s.tokens[0], s.heads[0], s.dims[0]]),
        a.tensor(b, s.dtype, &[s.tokens[1], s.heads[1], s.dims[0]]),
        a.tensor(b, s.dtype, &[s.tokens[1], s.heads[1], s.dims[1]]),
    ]
}

fn forward_args(a: &mut Arena, b: &mut Bytes, s: &Shape) -> magi_forward_args {
    let [q, k, v] = inputs(a, b, s);
    let out = result(b, s.dtype);
    magi_forward_args {
        size: 0,
        q,
        k,
        v,
        sink: sinks(a, b, s)[0],
        softmax_scale: double(b),
        softcap: double(b),
        out: a.tensor(b, out, &[s.tokens[0], s.heads[0], s.dims[1]]),
        lse: a.tensor(b, acc(s.dtype), &[s.tokens[0], s.heads[0]]),
        max_logits: a.tensor(b, 1, &[s.heads[0]]),
    }
}

fn backward_args(a: &mut Arena, b: &mut Bytes, s: &Shape) -> magi_backward_args {
    let [q, k, v] = inputs(a, b, s);
    let [sink, dsink] = sinks(a, b, s);
    let out_shape = [s.tokens[0], s.heads[0], s.dims[1]];
    let grads = result(b, s.dtype);
    magi_backward_args {
        size: 0,
        q,
        k,
        v,
        sink,
        out: a.tensor(b, grads, &out_shape),
        lse: a.tensor(b, acc(s.dtype), &out_shape[..2]),
        dout: a.tensor(b, s.dtype, &out_shape),
        softmax_scale: double(b),
        softcap: double(b),
        dq: a.tensor(b, grads, &[s.tokens[0], s.heads[0], s.dims[0]]),
        dk: a.tensor(b, grads, &[s.tokens[1], s.heads[1], s.dims[0]]),
        dv: a.tensor(b, grads, &[s.tokens[1], s.heads[1], s.dims[1]]),
        dsink,
        flags: b.mostly(0) as u32,
        reserved: b.mostly(0) as u32 & 1,
    }
}

fn of_key(key: Option<&HeldKey>) -> Shape {
    let Some(k) = key else {
        return Shape {
            tokens: [1; 2],
            heads: [1; 2],
            dims: [8; 2],
            dtype: 0,
        };
    };
    Shape {
        tokens: [k.tokens(0), k.tokens(1)],
        heads: [k.shape[0], k.shape[1]],
        dims: [k.shape[2], k.shape[3]],
        dtype: k.dtype,
    }
}

/// magi_calc_attn_*.
pub fn over_ranks(state: &mut State, b: &mut Bytes, backward: bool) {
    let picked = state.key(b);
    let (shape, key) = (of_key(picked), picked.map(|k| k.key));
    // SAFETY: the key is alive; args and descriptors are as their types say, their tensors inside the arena.
    let status = unsafe {
        let key = key.map(|k| &*k);
        if backward {
            let args = backward_args(&mut state.arena, b, &shape);
            let stream = stream(b);
            with_struct(
                b,
                |size| magi_backward_args { size, ..args },
                |p| magi_calc_attn_backward(key, p, stream),
            )
        } else {
            let args = forward_args(&mut state.arena, b, &shape);
            let stream = stream(b);
            with_struct(
                b,
                |size| magi_forward_args { size, ..args },
                |p| magi_calc_attn_forward(key, p, stream),
            )
        }
    };
    said("magi_calc_attn", status);
}

/// Options whose range lists, if any, hold up to 16 slices in memory of their own.
struct Options {
    _lists: Vec<i32>,
    #[expect(
        clippy::vec_box,
        reason = "arguments point to the descriptors, which must not move when the list grows"
    )]
    _descriptors: Vec<Box<magi_tensor>>,
    options: magi_flex_options,
}

fn options(b: &mut Bytes, ranges: bool) -> Options {
    let n = b.below(16) as i64;
    let mut lists: Vec<i32> = (0..5 * n).map(|_| b.small_number()).collect();
    lists
        .iter_mut()
        .skip(4 * n as usize)
        .for_each(|t| *t &= 3 | (*t & 64));
    let list = |at: i64, shape: [i64; 2], ndim: i32| {
        let data = lists
            .as_ptr()
            .wrapping_add(at as usize)
            .cast_mut()
            .cast::<c_void>();
        let (mut extents, mut stride) = ([0; 8], [0; 8]);
        extents[..2].copy_from_slice(&shape);
        stride[..2].copy_from_slice(&[shape[1], 1]);
        Box::new(magi_tensor {
            data,
            dtype: 5,
            device_type: 0,
            device_index: 0,
            ndim,
            shape: extents,
            stride,
        })
    };
    let made = vec![list(0, [n, 2], 2), list(2 * n, [n, 2], 2), list(4 * n, [n, 1], 1)];
    let mut given = [null::<magi_tensor>(); 3];
    for (i, t) in made.iter().enumerate() {
        if ranges != (b.u8() == 255) {
            given[i] = &raw const **t;
        }
    }
    let options = magi_flex_options {
        size: 0,
        q_ranges: given[0],
        k_ranges: given[1],
        mask_types: given[2],
        workspace: null_mut(),
        workspace_size: 0,
        backend: b.mostly(0) as i32,
        deterministic: b.mostly(1) as i32,
        sm_margin: b.mostly(0) as i32,
        accumulate: b.mostly(0) as i32,
        max_items: 0,
    };
    Options {
        _lists: lists,
        _descriptors: made,
        options,
    }
}

/// magi_flex_flash_attn_*, with the workspace that the query says, or less.
pub fn one_device(state: &mut State, b: &mut Bytes, backward: bool) {
    let ranges = b.u8() & 1 == 1;
    // No clamp: the handle is copied out so that the arena can be borrowed.
    let mask = state.mask(b).map(std::ptr::from_ref);
    // SAFETY: the mask is alive.
    let mask = mask.map(|m| unsafe { &*m }).filter(|_| !ranges);
    let tokens = if ranges {
        [b.number(), b.number()]
    } else {
        totals(mask)
    };
    let heads_kv = b.mostly(1);
    let shape = Shape {
        tokens,
        heads: [heads_kv.saturating_mul(b.mostly(2)), heads_kv],
        dims: [b.mostly(8), b.mostly(8)],
        dtype: b.below(4) as i32,
    };
    let mut held = options(b, ranges);
    let null_options = b.u8() == 255;
    let mut bytes = 0;
    let forward = (!backward).then(|| forward_args(&mut state.arena, b, &shape));
    let back = backward.then(|| backward_args(&mut state.arena, b, &shape));
    let f = forward.map(|a| magi_forward_args {
        size: size_of::<magi_forward_args>(),
        ..a
    });
    let g = back.map(|a| magi_backward_args {
        size: size_of::<magi_backward_args>(),
        ..a
    });
    held.options.size = size_of::<magi_flex_options>();
    let o = if null_options {
        null()
    } else {
        &raw const held.options
    };
    // SAFETY: as in `over_ranks`; the options' lists outlive the calls.
    let status = unsafe {
        match (&f, &g) {
            (Some(a), _) => magi_flex_flash_attn_forward_workspace_size(a, o, &raw mut bytes),
            (_, Some(a)) => magi_flex_flash_attn_backward_workspace_size(a, o, &raw mut bytes),
            _ => Status::Ok,
        }
    };
    said("workspace_size", status);
    let less = if b.u8() & 15 == 15 { bytes / 2 } else { bytes };
    let (workspace, workspace_size) = state.arena.workspace(b, less);
    let with = |size| magi_flex_options {
        size,
        workspace,
        workspace_size,
        ..held.options
    };
    let stream = stream(b);
    let status = with_struct(b, with, |o| {
        let o = if null_options { null() } else { o };
        // SAFETY: as above.
        unsafe {
            match (&f, &g) {
                (Some(a), _) => magi_flex_flash_attn_forward(mask, a, o, stream),
                (_, Some(a)) => magi_flex_flash_attn_backward(mask, a, o, stream),
                _ => Status::Ok,
            }
        }
    });
    said("magi_flex_flash_attn", status);
}

/// magi_explain_support, with a buffer that fits or not.
pub fn explain_support(b: &mut Bytes) {
    let (device_type, device_index) = (b.mostly(0) as i32, b.mostly(0) as i32);
    let heads_kv = b.mostly(1);
    let shape = magi_attn_shape {
        size: 0,
        heads_q: heads_kv.saturating_mul(b.mostly(2)),
        heads_kv,
        head_dim: b.mostly(64),
        head_dim_v: b.mostly(64),
        dtype: b.mostly(2) as i32,
        reserved: 0,
    };
    let (backend, flags) = (b.mostly(0) as i32, b.mostly(3) as u32);
    let (scale, softcap) = (b.mostly(0) as f64, b.mostly(0) as f64);
    let room = b.below(4096);
    let mut words = vec![0; room];
    let status = with_struct(
        b,
        |size| magi_attn_shape { size, ..shape },
        |s| {
            let mut room = room;
            // SAFETY: the buffer has the room that it is said to have.
            unsafe {
                magi_explain_support(
                    device_type,
                    device_index,
                    s,
                    backend,
                    scale,
                    softcap,
                    flags,
                    words.as_mut_ptr(),
                    &raw mut room,
                )
            }
        },
    );
    said("magi_explain_support", status);
}
