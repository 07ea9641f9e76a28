//! Small causal problems of ranks on devices, the tensors of one call, and an allocator of the caller's.

#![allow(dead_code)] // Every test program includes all of it and uses its own part.
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::common_backend::{Layout, Random, operands, shape};
use crate::common_ranks::{self, Job, assert_close, rank_on};
use crate::common_reference::{Answer, Arithmetic, Operands, attention};
use crate::ranks_support::{DeviceTensor, Rank};
use magi_attn::comm::Communicator;
use magi_attn::device::cuda::{DeviceMemory, Gpu};
use magi_attn::runtime::{Context, Key, attn_args};
use magi_attn::types::{Allocator, DType, Mask, Result, Side};

/// Largest error of f64 results, relative to the largest element of the tensor.
pub const BOUND: f64 = 1e-10;

/// A causal job of so many tokens, its operands and its answer.
pub struct Case {
    pub job: Job,
    pub operands: Operands,
    pub want: Answer,
}

impl Case {
    pub fn new(tokens: i64, world: usize, degree: i32) -> Case {
        let mask = Mask::from_sliding_window(tokens, tokens, (-1, 0), 0).unwrap();
        let s = shape(2, 1, 8, 8, DType::F64);
        let operands = operands(&mut Random(tokens as u64), &mask, &s);
        let want = attention(&mask, &operands, Arithmetic::Exact);
        let mut job = Job::new(&mask, s, world, degree, 8);
        job.config.sanity_check = false;
        Case { job, operands, want }
    }

    pub fn key(&self, context: &Arc<Context>) -> Arc<Key> {
        Key::create(context, &self.job.mask, self.job.shape, self.job.config).unwrap()
    }

    pub fn answer(&self, r: &Rank, key: &Key) -> Result<Answer> {
        rank_on(r, &self.job, &self.operands, key)
    }

    /// Fails unless `key` computes what it must.
    pub fn works(&self, r: &Rank, key: &Key) {
        assert_close("works", &self.answer(r, key).unwrap(), &self.want, BOUND);
    }
}

pub fn context_of(r: &Rank) -> Arc<Context> {
    let comm: Arc<dyn Communicator> = r.comm.clone();
    Context::new(comm)
}

/// The tensors of one forward call on one rank.
pub struct Held {
    pub q: DeviceTensor,
    pub k: DeviceTensor,
    pub v: DeviceTensor,
    pub out: DeviceTensor,
    pub lse: DeviceTensor,
    pub maxima: DeviceTensor,
}

impl Held {
    pub fn new(case: &Case, r: &Rank, key: &Key) -> Held {
        let s = case.job.shape;
        let rows = |side| key.local_tokens(side).unwrap();
        let local = |side, values: &[f64], row: &[i64]| {
            let held = common_ranks::local_on(r, key, side, Some(values), row, (s.dtype, Layout::Dense));
            held.unwrap()
        };
        let unwritten = |shape: &[i64], dtype| r.unwritten(shape, dtype, Layout::Dense);
        Held {
            q: local(Side::Q, &case.operands.q, &[s.heads_q, s.head_dim]),
            k: local(Side::K, &case.operands.k, &[s.heads_kv, s.head_dim]),
            v: local(Side::K, &case.operands.v, &[s.heads_kv, s.head_dim_v]),
            out: unwritten(&[rows(Side::Q), s.heads_q, s.head_dim_v], s.dtype),
            lse: unwritten(&[rows(Side::Q), s.heads_q], s.dtype),
            maxima: unwritten(&[s.heads_q], DType::F32),
        }
    }

    pub fn forward(&self, case: &Case) -> attn_args::Forward {
        attn_args::Forward {
            q: self.q.tensor(),
            k: self.k.tensor(),
            v: self.v.tensor(),
            sink: None,
            softmax_scale: case.operands.scale,
            softcap: 0.0,
            out: self.out.tensor(),
            lse: Some(self.lse.tensor()),
            max_logits: None,
        }
    }

    /// out of all ranks.
    pub fn out(&mut self, r: &Rank, key: &Key) -> Vec<f64> {
        common_ranks::gather_on(r, key, Side::Q, &mut self.out).unwrap()
    }
}

pub fn assert_near(have: &[f64], want: &[f64]) {
    let near = |(h, w): (&f64, &f64)| (h - w).abs() < BOUND;
    assert!(have.len() == want.len() && have.iter().zip(want).all(near));
}

/// A caller's allocator on one device that counts what is freed, and what of it while a gate was closed.
pub struct Hook {
    pub gpu: Arc<Gpu>,
    pub blocks: Mutex<HashMap<usize, DeviceMemory>>,
    pub open: AtomicBool,
    pub frees: AtomicUsize,
    pub early: AtomicUsize,
    pub refuse: AtomicBool,
}

impl Hook {
    pub fn new(gpu: &Arc<Gpu>) -> Box<Hook> {
        Box::new(Hook {
            gpu: gpu.clone(),
            blocks: Mutex::default(),
            open: AtomicBool::new(true),
            frees: AtomicUsize::new(0),
            early: AtomicUsize::new(0),
            refuse: AtomicBool::new(false),
        })
    }

    pub fn allocator(&self) -> Allocator {
        Allocator {
            alloc: hook_alloc,
            free: hook_free,
            userdata: std::ptr::from_ref(self).cast_mut().cast(),
        }
    }
}

unsafe extern "C" fn hook_alloc(bytes: usize, hook: *mut c_void) -> *mut c_void {
    // SAFETY: `Hook::allocator` passes a hook, which tests keep.
    let hook = unsafe { &*hook.cast::<Hook>() };
    if hook.refuse.load(Ordering::SeqCst) {
        return std::ptr::null_mut();
    }
    let memory = DeviceMemory::new(&hook.gpu, bytes).unwrap();
    let at = memory.as_ptr();
    hook.blocks.lock().unwrap().insert(at as usize, memory);
    at.cast()
}

unsafe extern "C" fn hook_free(at: *mut c_void, _: usize, hook: *mut c_void) {
    // SAFETY: as in `hook_alloc`.
    let hook = unsafe { &*hook.cast::<Hook>() };
    hook.frees.fetch_add(1, Ordering::SeqCst);
    if !hook.open.load(Ordering::SeqCst) {
        hook.early.fetch_add(1, Ordering::SeqCst);
    }
    // Its memory is not freed, which would wait: an allocator that pools gives it to the next who asks.
    std::mem::forget(hook.blocks.lock().unwrap().remove(&(at as usize)).unwrap());
}
