//! Calls that make handles and ask them questions.

use super::attention::stream;
use super::memory::with_struct;
use super::said;
use super::state::{HeldKey, State, totals};
use crate::bytes::Bytes;
use magi_attn::ffi::comm::*;
use magi_attn::ffi::config::{magi_config, magi_config_init};
use magi_attn::ffi::key::*;
use magi_attn::ffi::key_joint::*;
use magi_attn::ffi::key_more::*;
use magi_attn::ffi::key_stage::*;
use magi_attn::ffi::mask::*;
use magi_attn::ffi::plain::{magi_attn_shape, magi_slice};
use magi_attn::types::{Range, Status};
use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

/// Most chunks or blocks that are asked for: more would only take time.
const MAX_CHUNKS: i128 = 4096;
/// How long ranks wait for one another, in milliseconds: programs on several ranks may part ways.
pub const TIMEOUT: i64 = 30;

/// Every way to make a mask.
pub fn make_mask(state: &mut State, b: &mut Bytes) {
    let mut made: *mut magi_mask = null_mut();
    let out = if b.u8() == 255 { null_mut() } else { &raw mut made };
    let n = b.below(12);
    // SAFETY: lists have as many elements as is said, `out` is NULL or points to a pointer.
    let status = unsafe {
        match b.below(4) {
            0 => {
                let (total_q, total_k) = (b.number(), b.number());
                let slices: Vec<magi_slice> = (0..n).map(|_| slice(b)).collect();
                // Without slices NULL is right, with some it is not.
                let list = if n == 0 || b.u8() == 255 {
                    null()
                } else {
                    slices.as_ptr()
                };
                magi_mask_create(list, n, total_q, total_k, out)
            }
            1 => {
                let (q, k) = (cu_seqlens(b, n), cu_seqlens(b, n));
                let k = if b.u8() & 1 == 0 { &q } else { &k };
                let causal = b.u8() as i32 & 1 | b.mostly(0) as i32;
                let (left, right) = (b.number().wrapping_sub(1), b.number().wrapping_sub(1));
                magi_mask_create_from_cu_seqlens(
                    q.as_ptr(),
                    k.as_ptr(),
                    n,
                    causal,
                    left,
                    right,
                    b.number(),
                    out,
                )
            }
            2 => magi_mask_create_from_sliding_window(
                b.number(),
                b.number(),
                b.number().wrapping_sub(1),
                b.number().wrapping_sub(1),
                b.number(),
                out,
            ),
            _ => {
                let (cu, block) = (cu_seqlens(b, n), b.number());
                let most = cu.iter().copied().max().unwrap_or(0);
                let many = i128::from(most) / i128::from(block.max(1)) > MAX_CHUNKS;
                magi_mask_create_from_block_causal(cu.as_ptr(), n, if many { most } else { block }, out)
            }
        }
    };
    said("magi_mask_create", status);
    assert_eq!(status == Status::Ok, !made.is_null());
    if !made.is_null() {
        state.masks.push(made);
    }
}

fn slice(b: &mut Bytes) -> magi_slice {
    magi_slice {
        q: Range::new(b.number(), b.number()),
        k: Range::new(b.number(), b.number()),
        mask_type: b.mostly(1) as i32,
        reserved: i32::from(b.u8() == 255),
    }
}

fn cu_seqlens(b: &mut Bytes, n: usize) -> Vec<i64> {
    let mut at = b.mostly(0);
    let step = |b: &mut Bytes| {
        if b.u8() & 31 == 31 {
            b.number()
        } else {
            b.number() & 63
        }
    };
    let mut cu = Vec::with_capacity(n);
    for _ in 0..n {
        cu.push(at);
        at = at.saturating_add(step(b));
    }
    cu
}

/// What can be asked of a mask.
pub fn ask_mask(state: &State, b: &mut Bytes) {
    let mask = state.mask(b);
    let (mut area, mut count) = (0, 0);
    // SAFETY: outputs are NULL or variables, the list has room for as many slices as is said.
    unsafe {
        said(
            "magi_mask_area",
            magi_mask_area(mask, if b.u8() == 255 { null_mut() } else { &raw mut area }),
        );
        said(
            "magi_mask_slices",
            magi_mask_slices(mask, null_mut(), &raw mut count),
        );
        let mut slices = Vec::with_capacity(count);
        let mut room = count.saturating_sub(usize::from(b.u8() == 255));
        said(
            "magi_mask_slices",
            magi_mask_slices(mask, slices.as_mut_ptr(), &raw mut room),
        );
    }
    totals(mask);
}

/// Local ranks that this thread holds all of.
pub fn make_comms(state: &mut State, b: &mut Bytes) {
    let world = b.small_number();
    let world = if world > 4 && b.u8() & 7 != 7 {
        world & 3
    } else {
        world
    };
    let mut made: Vec<*mut magi_comm> = vec![null_mut(); 64];
    let out = if b.u8() == 255 {
        null_mut()
    } else {
        made.as_mut_ptr()
    };
    // SAFETY: room for as many ranks as there can be.
    said("magi_comm_create_local", unsafe {
        magi_comm_create_local(world, out)
    });
    for comm in made.into_iter().filter(|c| !c.is_null()) {
        // SAFETY: just made. Its peers are on this thread, so that every wait is in vain.
        magi_comm_set_timeout(Some(unsafe { &*comm }), 1);
        state.comms.push(comm);
    }
}

/// What can be asked of a communicator, and its end.
pub fn ask_comm(state: &State, b: &mut Bytes) {
    let comm = state.comm(b);
    let (mut rank, mut size) = (0, 0);
    // SAFETY: outputs are variables, the reason ends with a zero byte.
    unsafe {
        said("magi_comm_rank", magi_comm_rank(comm, &raw mut rank));
        said("magi_comm_size", magi_comm_size(comm, &raw mut size));
        let patience = b.number();
        if !(TIMEOUT..1 << 40).contains(&patience) {
            said("magi_comm_set_timeout", magi_comm_set_timeout(comm, patience));
        }
        if b.u8() & 31 == 31 {
            let reason = [b.u8(), b.u8(), 0];
            let text = if b.u8() & 1 == 0 {
                null()
            } else {
                reason.as_ptr().cast()
            };
            said("magi_comm_abort", magi_comm_abort(comm, text));
        }
    }
    said("magi_comm_async_error", magi_comm_async_error(comm));
}

unsafe extern "C" fn allocate(bytes: usize, _userdata: *mut c_void) -> *mut c_void {
    // SAFETY: 256 is a power of two and a multiple of a pointer's size.
    unsafe { libc::aligned_alloc(256, bytes.next_multiple_of(256)) }
}

unsafe extern "C" fn refuse(_bytes: usize, _userdata: *mut c_void) -> *mut c_void {
    null_mut()
}

unsafe extern "C" fn release(pointer: *mut c_void, _bytes: usize, _userdata: *mut c_void) {
    // SAFETY: `allocate` made it.
    unsafe { libc::free(pointer) }
}

fn config(b: &mut Bytes, total: i64) -> magi_config {
    let mut c = magi_config {
        size: size_of::<magi_config>(),
        chunk_size: b.number(),
        min_chunks_per_rank: b.mostly(2),
        cache_size: b.mostly(2),
        balance_slack: b.mostly(9),
        top_percent: b.mostly(50),
        forward_gflops: [b.mostly(400_000), b.mostly(600_000), b.mostly(600_000)],
        backward_gflops: [b.mostly(300_000), b.mostly(500_000), b.mostly(300_000)],
        link_mb_per_s: b.mostly(300_000),
        link_latency_ns: b.mostly(20_000),
        kernel_latency_ns: b.mostly(10_000),
        effort: b.u8() as i32 & 1,
        placement: b.u8() as i32 % 5,
        degree_forward: b.mostly(-1) as i32,
        degree_backward: b.mostly(2) as i32,
        bwd_hide_tail_reduce: b.mostly(-1) as i32,
        dsink_reduce: b.mostly(1) as i32,
        backward_high_precision_reduce: b.mostly(0) as i32,
        hierarchical_comm: b.mostly(0) as i32,
        qo_comm: b.mostly(0) as i32,
        forward_high_precision_reduce: b.mostly(0) as i32,
        sanity_check: b.mostly(0) as i32,
        backend: b.mostly(0) as i32,
        deterministic: b.mostly(0) as i32,
        forward_sm_margin: b.mostly(-1) as i32,
        backward_sm_margin: b.mostly(-1) as i32,
        profile: b.mostly(0) as i32,
        alloc: None,
        free: None,
        userdata: null_mut(),
    };
    match b.u8() & 15 {
        1 => c.placement = b.small_number(),
        2 => {
            c.alloc = Some(allocate);
            c.free = Some(release);
        }
        3 => {
            c.alloc = Some(refuse);
            c.free = Some(release);
        }
        4 => c.alloc = Some(allocate),
        _ => {}
    }
    let chunks = match c.chunk_size {
        0 => i128::from(total),
        size => i128::from(total) / i128::from(size.max(1)),
    };
    if chunks > MAX_CHUNKS && i128::from(total) > MAX_CHUNKS {
        c.chunk_size = total;
    }
    c
}

/// A key of any mask on any communicator.
pub fn make_key(state: &mut State, b: &mut Bytes) {
    let mask = state.mask(b);
    let comm = state.comm(b);
    let totals = totals(mask);
    let heads_kv = b.mostly(1);
    let shape = magi_attn_shape {
        size: 0,
        heads_q: heads_kv.saturating_mul(b.mostly(2)),
        heads_kv,
        head_dim: b.mostly(8),
        head_dim_v: b.mostly(16),
        dtype: b.u8() as i32 & 3 | (b.mostly(0) as i32 & !3),
        reserved: i32::from(b.u8() == 255),
    };
    let config = config(b, totals[0].max(totals[1]));
    let mut made: *mut magi_key = null_mut();
    let out = if b.u8() == 255 { null_mut() } else { &raw mut made };
    let defaults = b.u8() == 255 && totals[0].max(totals[1]) <= 1 << 16;
    let config_fault = b.u8();
    // Beside the mask itself, up to three more that share its placement.
    let together = Together::new(state, b, mask);
    let mut joint: [*mut magi_key; MOST_JOINT] = [null_mut(); MOST_JOINT];
    let status = with_struct(
        b,
        |size| magi_attn_shape { size, ..shape },
        |s| {
            let how = [config_fault];
            let with = |size| magi_config { size, ..config };
            with_struct(&mut Bytes::new(&how), with, |c| {
                let c = if defaults { null() } else { c };
                let keys = if out.is_null() { out } else { joint.as_mut_ptr() };
                // SAFETY: the structs are as their types say, `out` is NULL or points to a pointer; there are as many masks
                // and weights as is said, and room for as many keys.
                unsafe {
                    match &together {
                        None => magi_key_create(comm, mask, s, c, out),
                        Some(t) => magi_key_create_joint(
                            comm,
                            t.masks.as_ptr(),
                            t.weights(),
                            t.masks.len(),
                            s,
                            c,
                            keys,
                        ),
                    }
                }
            })
        },
    );
    said("magi_key_create", status);
    let made: Vec<*mut magi_key> = joint.into_iter().chain([made]).filter(|k| !k.is_null()).collect();
    let wanted = together.map_or(1, |t| t.masks.len());
    assert_eq!(made.len(), if status == Status::Ok { wanted } else { 0 });
    let (shape, dtype) = (
        [shape.heads_q, shape.heads_kv, shape.head_dim, shape.head_dim_v],
        shape.dtype,
    );
    for key in made {
        state.keys.push(HeldKey {
            key,
            shape,
            dtype,
            totals,
        });
    }
}

/// Most masks that are placed together.
const MOST_JOINT: usize = 4;

/// Masks for one placement, with weights.
struct Together {
    masks: Vec<*const magi_mask>,
    weights: Option<[i64; MOST_JOINT]>,
}

impl Together {
    /// `first` and others; `None` for a key of its own.
    fn new(state: &State, b: &mut Bytes, first: Option<&magi_mask>) -> Option<Together> {
        let more = b.below(8);
        if !(1..MOST_JOINT).contains(&more) {
            return None;
        }
        let handle = |mask: Option<&magi_mask>| mask.map_or(null(), std::ptr::from_ref);
        let others = (0..more).map(|_| handle(state.mask(b))).collect::<Vec<_>>();
        Some(Together {
            masks: std::iter::once(handle(first)).chain(others).collect(),
            weights: (b.u8() & 1 == 0).then(|| std::array::from_fn(|_| b.mostly(2))),
        })
    }

    fn weights(&self) -> *const i64 {
        self.weights.as_ref().map_or(null(), |w| w.as_ptr())
    }
}

/// What can be asked of a key.
pub fn ask_key(state: &State, b: &mut Bytes) {
    // SAFETY: the key is alive.
    let key = state.key(b).map(|k| unsafe { &*k.key });
    let side = b.mostly(1) as i32;
    let (mut count, mut bytes, mut hash, mut tokens) = (0, 0, 0, 0);
    // SAFETY: outputs are variables, the list has room for as many positions as is said.
    unsafe {
        said(
            "magi_key_local_tokens",
            magi_key_local_tokens(key, side, &raw mut tokens),
        );
        if (0..4096).contains(&tokens) {
            said(
                "magi_key_position_ids",
                magi_key_position_ids(key, side, null_mut(), &raw mut count),
            );
            let mut room = count.saturating_sub(usize::from(b.u8() == 255));
            let mut positions = Vec::with_capacity(count);
            said(
                "magi_key_position_ids",
                magi_key_position_ids(key, side, positions.as_mut_ptr(), &raw mut room),
            );
        }
        said(
            "magi_key_workspace_size",
            magi_key_workspace_size(key, &raw mut bytes),
        );
        said("magi_key_hash", magi_key_hash(key, &raw mut hash));
        let stats = |size| magi_key_stats {
            size,
            ..std::mem::zeroed()
        };
        said(
            "magi_key_get_stats",
            with_struct(b, stats, |s| magi_key_get_stats(key, s.cast_mut())),
        );
        let rank = b.small_number();
        let stats = |size| magi_rank_stats {
            size,
            ..std::mem::zeroed()
        };
        said(
            "magi_key_get_rank_stats",
            with_struct(b, stats, |s| magi_key_get_rank_stats(key, rank, s.cast_mut())),
        );
        let (pass, stage) = (b.mostly(1) as i32, b.small_number());
        let stats = |size| magi_stage_stats {
            size,
            ..std::mem::zeroed()
        };
        said(
            "magi_key_get_stage_stats",
            with_struct(b, stats, |s| {
                magi_key_get_stage_stats(key, pass, rank, stage, s.cast_mut())
            }),
        );
        // Explaining plans three other placements too.
        if (0..4096).contains(&tokens) {
            let (mut room, mut words) = (0, Vec::<c_char>::new());
            said(
                "magi_key_explain",
                magi_key_explain(key, null_mut(), &raw mut room),
            );
            words.reserve(room);
            said(
                "magi_key_explain",
                magi_key_explain(key, words.as_mut_ptr(), &raw mut room),
            );
            let mut room = words.capacity();
            said(
                "magi_key_draw",
                magi_key_draw(key, words.as_mut_ptr(), &raw mut room),
            );
        }
    }
}

/// Collective preparation.
pub fn prepare(state: &State, b: &mut Bytes) {
    // SAFETY: the key is alive.
    let key = state.key(b).map(|k| unsafe { &*k.key });
    said("magi_key_prepare", magi_key_prepare(key, stream(b)));
}

/// Defaults of a config.
pub fn init_config(b: &mut Bytes) {
    // SAFETY: all-zero bytes are a config.
    let mut c: magi_config = unsafe { std::mem::zeroed() };
    let size = b.mostly(size_of::<magi_config>() as i64) as usize;
    // SAFETY: the size that is taken is that of `c`.
    said("magi_config_init", unsafe { magi_config_init(&raw mut c, size) });
}
