//! What a key says about measured calls.

use std::ffi::c_char;

use super::guard::guard_handle;
use super::input;
use super::key::magi_key;
use super::key_stage::pass_of;
use crate::plan::Travel;
use crate::types::Status;

/// One stage of the last measured call of a pass on this rank, in nanoseconds from the start of the call's work. Times end
/// where they start when there was nothing to do. On a CUDA device they are those of events on the streams; in host memory
/// those of the host's clock, where a transfer ends when this rank has taken what came in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_stage_times {
    /// sizeof(magi_stage_times), set by the caller.
    pub size: usize,
    /// Its fetch has what it needs, and the transfers before it are over. Includes waiting for ranks that are late.
    pub fetch_start_ns: i64,
    /// Its keys, and queries of others, are there.
    pub fetch_end_ns: i64,
    /// Its kernels begin.
    pub compute_start_ns: i64,
    /// They have ended.
    pub compute_end_ns: i64,
    /// Backward: its gradients start to go back. Where queries travel: results of its queries too, also forward.
    pub reduce_start_ns: i64,
    /// Those of the other ranks are there, to be added.
    pub reduce_end_ns: i64,
    /// How long nothing was computed because of its fetch: the caller's stream stood still.
    pub fetch_wait_ns: i64,
    /// How long nothing was computed because of its reduction.
    pub reduce_wait_ns: i64,
    /// The whole call, from the start of its work to its end; the same in every stage. The waits of all stages, divided by it,
    /// are the share of communication that computing did not hide.
    pub pass_ns: i64,
}

/// Fills `times`, whose `size` the caller has set, with what stage `stage` of the last call of `pass` (a magi_pass) on a key with
/// config.profile was measured to do on this rank. Keys of equal requests share a plan, and so their last call. Reductions of
/// max_logits and dsink over ranks count to no stage. A call in a graph that is being captured is not measured. Waits until the
/// device has done what was enqueued.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ENUM, INVALID_ARGUMENT (stage; the key was made without config.profile; no call came
/// to its end), CUDA_FAILED, HANDLE_BUSY, COMM_DESTROYED, POISONED, and what ended the communicator. One call at a time on the
/// communicator; not collective.
///
/// # Safety
/// `times` must point to a magi_stage_times.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_get_stage_times(
    key: Option<&magi_key>,
    pass: i32,
    stage: i32,
    times: *mut magi_stage_times,
) -> Status {
    guard_handle("magi_key_get_stage_times", "key", key, |k| {
        // SAFETY: the caller's promise.
        let size = unsafe { input::sized("times", times) }?.size;
        let measured = k.key.measured(pass_of(pass)?)?;
        let i = input::index("stage", stage, measured.stages.len())?;
        let s = measured.stages[i];
        let filled = magi_stage_times {
            size,
            fetch_start_ns: s.fetch.start,
            fetch_end_ns: s.fetch.end,
            compute_start_ns: s.compute.start,
            compute_end_ns: s.compute.end,
            reduce_start_ns: s.reduce.start,
            reduce_end_ns: s.reduce.end,
            fetch_wait_ns: measured.waited(Travel::Fetch, i),
            reduce_wait_ns: measured.waited(Travel::Reduce, i),
            pass_ns: measured.end,
        };
        // SAFETY: the caller's promise.
        unsafe { input::write_out("times", times, filled) }
    })
}

/// The last measured calls of both passes in the trace event format (JSON), which chrome://tracing and ui.perfetto.dev show: the
/// rank is a process with rows for what was computed, fetched and reduced; waits lie in the row of what is computed. Times start
/// with the first call. To see several ranks side by side, join their lists `traceEvents`; clocks of ranks are not compared.
///
/// `json`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included. A call in between may
/// change it. Errors: NULL_POINTER, BUFFER_TOO_SMALL, and as magi_key_get_stage_times. One call at a time on the communicator;
/// not collective.
///
/// # Safety
/// `json` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_trace(
    key: Option<&magi_key>,
    json: *mut c_char,
    size: *mut usize,
) -> Status {
    guard_handle("magi_key_trace", "key", key, |k| {
        // SAFETY: the caller's promise.
        unsafe { input::fill_text("json", k.key.trace()?, json, size) }
    })
}

/// Draws the last measured calls of both passes on this rank as SVG, each above its prediction on one line of time: lanes of
/// computing, fetching and reducing, by stage; waits hatched, with their share in the caption. Follows the viewer's light or dark
/// scheme.
///
/// `svg`: as `json` of magi_key_trace. Errors: as there. One call at a time on the communicator; not collective.
///
/// # Safety
/// `svg` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_draw_profile(
    key: Option<&magi_key>,
    svg: *mut c_char,
    size: *mut usize,
) -> Status {
    guard_handle("magi_key_draw_profile", "key", key, |k| {
        // SAFETY: the caller's promise.
        unsafe { input::fill_text("svg", k.key.draw_measured()?, svg, size) }
    })
}
