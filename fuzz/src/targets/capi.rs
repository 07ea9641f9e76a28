//! The C entry points, called by a program read from bytes on one to three ranks at once. Pointers are valid, numbers are
//! anything. Every call must come back, and never with an internal error.

mod attention;
mod handles;
mod memory;
mod state;

use crate::bytes::Bytes;
use attention::stream;
use magi_attn::ffi::comm::{magi_comm, magi_comm_set_timeout, magi_local_run};
use magi_attn::ffi::movement::*;
use magi_attn::ffi::plain::magi_tensor_init;
use magi_attn::ffi::status::{
    magi_last_error_message, magi_log_level, magi_log_set_callback, magi_status_string,
};
use magi_attn::types::Status;
use state::State;
use std::ffi::{CStr, c_char, c_void};

/// Most calls of one program.
const MAX_CALLS: usize = 48;

/// Panics reach the log and not stderr once the library is used; everything else in the log is what calls return.
unsafe extern "C" fn tell(_level: i32, line: *const c_char, _userdata: *mut c_void) {
    // SAFETY: the library passes a string that ends with a zero byte.
    let line = unsafe { CStr::from_ptr(line) }.to_string_lossy();
    if line.starts_with("panicked") {
        eprintln!("{line}");
    }
}

/// One program.
pub fn run(data: &[u8]) {
    magi_log_set_callback(Some(tell), std::ptr::null_mut(), magi_log_level::Error as i32);
    let world = 1 + Bytes::new(data).below(3) as i32;
    let mut input = data;
    // SAFETY: `program` takes a pointer to a slice, which outlives the call.
    let status = unsafe { magi_local_run(world, Some(program), (&raw mut input).cast::<c_void>()) };
    said("magi_local_run", status);
}

/// Ends the process when the library admits a defect. An error has to say what was wrong.
pub(super) fn said(what: &str, status: Status) {
    if status == Status::Ok {
        return;
    }
    // SAFETY: both are strings that end with a zero byte, good until the next call.
    let (message, text) = unsafe {
        (
            CStr::from_ptr(magi_last_error_message()),
            CStr::from_ptr(magi_status_string(status as i32)),
        )
    };
    let broken = matches!(status, Status::Internal | Status::Poisoned);
    if broken || message.is_empty() || text.is_empty() {
        // The hook that would print a panic is the library's own by now.
        eprintln!("{what}: {status:?}: {message:?}");
        std::process::abort();
    }
}

/// What one rank does.
unsafe extern "C" fn program(comm: *mut magi_comm, _rank: i32, input: *mut c_void) -> i32 {
    // SAFETY: `run` passed a pointer to the input.
    let data = unsafe { *input.cast::<&[u8]>() };
    // SAFETY: the communicator is good until this returns.
    magi_comm_set_timeout(Some(unsafe { &*comm }), handles::TIMEOUT);
    let mut b = Bytes::new(data);
    b.u8();
    let mut state = State::new(comm);
    for _ in 0..MAX_CALLS {
        if b.is_empty() {
            break;
        }
        call(&mut state, &mut b);
        state.arena.rewind();
    }
    state.destroy_all();
    0
}

fn call(state: &mut State, b: &mut Bytes) {
    match b.below(24) {
        0..=2 => handles::make_mask(state, b),
        3 => handles::ask_mask(state, b),
        4 => state.destroy_mask(b),
        5 => handles::make_comms(state, b),
        6 => handles::ask_comm(state, b),
        7 => state.destroy_comm(b),
        8..=10 => handles::make_key(state, b),
        11 => handles::ask_key(state, b),
        12 => handles::prepare(state, b),
        13 => state.destroy_key(b),
        14..=16 => movement(state, b),
        17 => attention::over_ranks(state, b, false),
        18 => attention::over_ranks(state, b, true),
        19 | 20 => attention::one_device(state, b, false),
        21 => attention::one_device(state, b, true),
        22 => handles::init_config(b),
        _ => {
            init_tensor(b);
            attention::explain_support(b);
        }
    }
}

/// Any of the functions that move tokens.
fn movement(state: &mut State, b: &mut Bytes) {
    let (how, dtype, side) = (b.below(6), b.below(10) as i32, b.u8() as i32 & 1);
    let picked = state.key(b);
    let key = picked.map(|k| k.key);
    let (total, local) = picked.map_or((0, 0), |k| (k.totals[side as usize], k.tokens(side)));
    let row: Vec<i64> = (0..b.below(4)).map(|_| b.mostly(3)).collect();
    let share = if how >= 4 { b.mostly(local) } else { total };
    let shape = |tokens: i64| [&[tokens], &row[..]].concat();
    let global = state.arena.tensor(b, dtype, &shape(share));
    let own = state.arena.tensor(b, dtype, &shape(local));
    let (side, s) = (side | (b.mostly(0) as i32 & !1), stream(b));
    // SAFETY: the key is alive; the descriptors are NULL or describe memory of the arena.
    let status = unsafe {
        let key = key.map(|k| &*k);
        match how {
            0 => magi_dispatch(key, side, global, own, s),
            1 => magi_dispatch_backward(key, side, own, global, s),
            2 => magi_undispatch(key, side, own, global, s),
            3 => magi_undispatch_backward(key, side, global, b.mostly(1) as i32, own, s),
            4 => magi_dispatch_sharded(key, side, global, own, s),
            _ => magi_undispatch_sharded(key, side, own, global, s),
        }
    };
    said("movement", status);
}

fn init_tensor(b: &mut Bytes) {
    let shape: [i64; 8] = std::array::from_fn(|_| b.number());
    let (dtype, ndim) = (b.small_number(), b.small_number());
    let mut t = std::mem::MaybeUninit::uninit();
    // SAFETY: `shape` has as many integers as any ndim that is taken.
    let status =
        unsafe { magi_tensor_init(std::ptr::null_mut(), dtype, ndim, shape.as_ptr(), t.as_mut_ptr()) };
    said("magi_tensor_init", status);
}
