//! Keys: a mask planned for the ranks of a communicator.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::comm::magi_comm;
use super::config::{magi_config, read_config};
use super::guard::{Handle, guard_destroy, guard_handle};
use super::input;
use super::mask::magi_mask;
use super::plain::{magi_attn_shape, magi_stream, read_shape};
use crate::device::Stream;
use crate::plan::HostVolume;
use crate::runtime::Key;
use crate::types::{Error, Result, Status};

/// A mask, an attention shape, a placement, a plan and a communicator. One call at a time, and one at a time for all
/// keys of a communicator; forward and backward may come from different threads.
pub struct magi_key {
    pub(super) key: Arc<Key>,
    poisoned: AtomicBool,
}

impl Handle for magi_key {
    fn poisoned(&self) -> &AtomicBool {
        &self.poisoned
    }
    fn abort(&self, why: &str) {
        self.key.context().fail(&Error::internal(why));
    }
}

/// What a plan comes to, over all ranks. Token counts are of keys, in one forward pass, where nothing else is said. Bytes
/// count what a rank receives, results that come home included.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_key_stats {
    /// sizeof(magi_key_stats), set by the caller.
    pub size: usize,
    /// Visible cells of the mask.
    pub area: i64,
    /// Largest number of cells that one rank computes.
    pub area_max: i64,
    /// Largest over mean; 1 for an empty mask.
    pub balance: f64,
    /// No placement of these chunks has a smaller balance than this.
    pub balance_bound: f64,
    /// Keys that are sent from rank to rank, each counted once for every rank that it goes to.
    pub tokens_moved: i64,
    /// Keys that would be moved if every rank fetched all keys that it does not own, as all-gather does.
    pub tokens_all_gather: i64,
    /// Largest number of keys that one rank receives.
    pub tokens_received_max: i64,
    /// Largest number of keys that one rank sends.
    pub tokens_sent_max: i64,
    /// Tokens of a chunk.
    pub chunk_size: i64,
    /// Queries that travel in a forward pass, each counted once for every rank that it goes to; as many outputs come back.
    /// 0 unless config.qo_comm is set and saves bytes.
    pub queries_moved: i64,
    /// Bytes of k and v in a forward pass; with hierarchical_comm those that are passed on inside a host count again.
    pub bytes_keys: i64,
    /// Bytes of q in a forward pass.
    pub bytes_queries: i64,
    /// Bytes of out and lse that come home in a forward pass.
    pub bytes_outputs: i64,
    /// Bytes that a forward pass moves: the three above.
    pub bytes_forward: i64,
    /// Bytes that a backward pass moves, counted likewise.
    pub bytes_backward: i64,
    /// Bytes that a forward pass would move on the same placement if only keys travelled; bytes_forward is never more.
    pub bytes_forward_keys_only: i64,
    /// The same of a backward pass.
    pub bytes_backward_keys_only: i64,
    /// Stages of the forward pass, the host stage included.
    pub stages_forward: i64,
    /// Stages of the backward pass, likewise.
    pub stages_backward: i64,
    /// Predicted time of the forward pass on the slowest rank, in nanoseconds, by the config's rates.
    pub forward_ns: i64,
    /// The same of the backward pass.
    pub backward_ns: i64,
    /// Keys that cross from host to host in a forward pass: each counted once for every rank that it goes to, or with
    /// hierarchical_comm once for every host. -1 while no mesh says which ranks share a host (magi_comm_set_mesh).
    pub tokens_inter_host: i64,
    /// Keys that go from rank to rank inside hosts, with hierarchical_comm those too that came from another host before.
    /// -1 likewise.
    pub tokens_intra_host: i64,
}

/// What a plan comes to for one rank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_rank_stats {
    /// sizeof(magi_rank_stats), set by the caller.
    pub size: usize,
    /// Cells that the rank computes.
    pub area: i64,
    /// Query tokens that it owns.
    pub tokens_q: i64,
    /// Key tokens that it owns.
    pub tokens_k: i64,
    /// Keys that it sends, each counted once for every rank that it goes to.
    pub tokens_sent: i64,
    /// Keys that it receives.
    pub tokens_received: i64,
    /// Queries that it sends in a forward pass, each counted once for every rank that it goes to; their outputs come back.
    pub queries_sent: i64,
    /// Queries that it receives in a forward pass.
    pub queries_received: i64,
    /// Bytes that it sends in a forward pass, with hierarchical_comm those too that it passes on.
    pub bytes_sent: i64,
    /// Bytes that it receives in a forward pass, with hierarchical_comm those too that it only passes on.
    pub bytes_received: i64,
    /// Predicted time of its forward pass, in nanoseconds, by the config's rates.
    pub forward_ns: i64,
    /// The same of its backward pass.
    pub backward_ns: i64,
    /// How much of forward_ns it computes nothing.
    pub forward_wait_ns: i64,
    /// How much of backward_ns it computes nothing.
    pub backward_wait_ns: i64,
    /// Keys that it sends to ranks of other hosts; -1 while no mesh says which those are (magi_comm_set_mesh).
    pub tokens_sent_inter_host: i64,
    /// Keys that it sends to ranks of its host, with hierarchical_comm those too that it passes on; -1 likewise.
    pub tokens_sent_intra_host: i64,
    /// Keys that it receives from other hosts, with hierarchical_comm on behalf of its host; -1 likewise.
    pub tokens_received_inter_host: i64,
    /// Keys that it receives from ranks of its host; -1 likewise.
    pub tokens_received_intra_host: i64,
}

/// A figure that takes a mesh, without one.
const NO_MESH: i64 = -1;

/// The caller's stream as the device floor sees it.
pub(super) fn stream_of(stream: magi_stream) -> Stream {
    Stream::new(stream.cast())
}

/// Plans `mask` for the ranks of `comm`. Every rank computes the same plan by itself: no communication here.
///
/// `config`: NULL for defaults overlaid by the environment. Equal arguments give the plan that the communicator has in
/// its cache. Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT, INVALID_ENUM, DTYPE_MISMATCH, INVALID_ENVIRONMENT,
/// HANDLE_BUSY, POISONED, OUT_OF_MEMORY, and what ended the communicator. One call at a time on `comm`; not collective, but
/// every rank has to make its keys in the same order. Destroy with magi_key_destroy.
///
/// # Safety
/// `shape` must point to a magi_attn_shape, `config` to a magi_config or be NULL, `key` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_create(
    comm: Option<&magi_comm>,
    mask: Option<&magi_mask>,
    shape: *const magi_attn_shape,
    config: *const magi_config,
    key: *mut *mut magi_key,
) -> Status {
    guard_handle("magi_key_create", "comm", comm, |c| {
        let mask = &input::non_null("mask", mask)?.mask;
        input::check_out("key", key)?;
        // SAFETY: the caller's promise.
        let (shape, config) = unsafe { (read_shape("shape", shape)?, read_config("config", config)?) };
        // SAFETY: the caller's promise.
        unsafe { hand_out(key, Key::create(&c.context, mask, shape, config)?) }
    })
}

/// Hands a new key to the caller.
///
/// # Safety
/// `key` must be NULL or point to a pointer.
pub(super) unsafe fn hand_out(key: *mut *mut magi_key, made: Arc<Key>) -> Result<()> {
    input::check_out("key", key)?;
    let handle = Box::new(magi_key {
        key: made,
        poisoned: AtomicBool::new(false),
    });
    // SAFETY: the caller's promise.
    unsafe { input::write_out("key", key, Box::into_raw(handle)) }
}

/// Compares plans with all ranks and takes workspace, so that later calls neither allocate nor compare. The first
/// collective call on a key does it when this was not called. On a CUDA device it also loads kernels, which it compiles where
/// that was not done ahead of time, and uploads tile lists for calls without softcap and max_logits; the first call with
/// one of them adds its own. Not while `stream` is captured.
///
/// Errors: NULL_POINTER, PLAN_MISMATCH (on every rank, naming ranks and hashes), OUT_OF_MEMORY (on every rank), HANDLE_BUSY,
/// COMM_DESTROYED, POISONED, COMM_FAILED, TIMEOUT, ABORTED; on a CUDA device also DEVICE_MISMATCH (a stream of another one),
/// NOT_SUPPORTED (config.backend is FFA and cannot, or a captured stream), CUDA_FAILED, COMPILE_FAILED (the other ranks get
/// OUT_OF_MEMORY, which names this one). Collective.
#[unsafe(no_mangle)]
pub extern "C" fn magi_key_prepare(key: Option<&magi_key>, stream: magi_stream) -> Status {
    guard_handle("magi_key_prepare", "key", key, |k| {
        k.key.prepare(stream_of(stream))
    })
}

/// Number of tokens of `side` (a magi_side) that this rank owns. Errors: NULL_POINTER, INVALID_ENUM, COMM_DESTROYED,
/// POISONED. Any thread.
///
/// # Safety
/// `tokens` must point to an int64_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_local_tokens(
    key: Option<&magi_key>,
    side: i32,
    tokens: *mut i64,
) -> Status {
    guard_handle("magi_key_local_tokens", "key", key, |k| {
        let count = k.key.local_tokens(input::side(side)?)?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("tokens", tokens, count) }
    })
}

/// The global position of each local token of `side`, ascending: row i of a local tensor is token `positions[i]`.
///
/// `positions`: room for `*count`, or NULL to ask for the number. Errors: NULL_POINTER, INVALID_ENUM, BUFFER_TOO_SMALL,
/// COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `positions` must be NULL or have room for `*count` integers; `count` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_position_ids(
    key: Option<&magi_key>,
    side: i32,
    positions: *mut i64,
    count: *mut usize,
) -> Status {
    guard_handle("magi_key_position_ids", "key", key, |k| {
        let side = input::side(side)?;
        let (tokens, ids) = (k.key.local_tokens(side)? as usize, k.key.position_ids(side)?);
        // SAFETY: the caller's promise.
        unsafe { input::fill_array("positions", tokens, ids, positions, count) }
    })
}

/// Fills `stats`, whose `size` the caller has set.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `stats` must point to a magi_key_stats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_get_stats(key: Option<&magi_key>, stats: *mut magi_key_stats) -> Status {
    guard_handle("magi_key_get_stats", "key", key, |k| {
        // SAFETY: the caller's promise.
        let size = unsafe { input::sized("stats", stats) }?.size;
        let (s, hosts) = (k.key.stats()?, k.key.host_volume()?);
        let max = |figures: &[i64]| figures.iter().copied().max().unwrap_or(0);
        let [forward, backward] = &s.volume;
        let filled = magi_key_stats {
            size,
            area: s.area.iter().sum(),
            area_max: max(&s.area),
            balance: s.balance,
            balance_bound: s.balance_bound,
            tokens_moved: forward.keys,
            tokens_all_gather: s.all_gather_volume,
            tokens_received_max: max(&s.received),
            tokens_sent_max: max(&s.sent),
            chunk_size: k.key.placement(crate::types::Side::Q).chunk_size(),
            queries_moved: forward.queries,
            bytes_keys: forward.key_bytes,
            bytes_queries: forward.query_bytes,
            bytes_outputs: forward.output_bytes,
            bytes_forward: forward.bytes(),
            bytes_backward: backward.bytes(),
            bytes_forward_keys_only: forward.keys_only_bytes,
            bytes_backward_keys_only: backward.keys_only_bytes,
            stages_forward: s.forward.stages.len() as i64,
            stages_backward: s.backward.stages.len() as i64,
            forward_ns: max(&s.forward_ns),
            backward_ns: max(&s.backward_ns),
            tokens_inter_host: hosts.as_ref().map_or(NO_MESH, |h| h.inter()),
            tokens_intra_host: hosts.as_ref().map_or(NO_MESH, |h| h.intra()),
        };
        // SAFETY: the caller's promise.
        unsafe { input::write_out("stats", stats, filled) }
    })
}

/// Fills `stats`, whose `size` the caller has set, with the figures of `rank`.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT, COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `stats` must point to a magi_rank_stats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_get_rank_stats(
    key: Option<&magi_key>,
    rank: i32,
    stats: *mut magi_rank_stats,
) -> Status {
    guard_handle("magi_key_get_rank_stats", "key", key, |k| {
        // SAFETY: the caller's promise.
        let size = unsafe { input::sized("stats", stats) }?.size;
        let (all, hosts) = (k.key.stats()?, k.key.host_volume()?);
        let r = input::index("rank", rank, all.area.len())?;
        let of_hosts = |f: fn(&HostVolume) -> &[i64]| hosts.as_ref().map_or(NO_MESH, |h| f(h)[r]);
        let filled = magi_rank_stats {
            size,
            area: all.area[r],
            tokens_q: all.tokens_q[r],
            tokens_k: all.tokens_k[r],
            tokens_sent: all.sent[r],
            tokens_received: all.received[r],
            queries_sent: all.queries_sent[r],
            queries_received: all.queries_received[r],
            bytes_sent: all.volume[0].sent[r],
            bytes_received: all.volume[0].received[r],
            forward_ns: all.forward_ns[r],
            backward_ns: all.backward_ns[r],
            forward_wait_ns: all.forward.waits(r),
            backward_wait_ns: all.backward.waits(r),
            tokens_sent_inter_host: of_hosts(|h| &h.sent_inter),
            tokens_sent_intra_host: of_hosts(|h| &h.sent_intra),
            tokens_received_inter_host: of_hosts(|h| &h.received_inter),
            tokens_received_intra_host: of_hosts(|h| &h.received_intra),
        };
        // SAFETY: the caller's promise.
        unsafe { input::write_out("stats", stats, filled) }
    })
}

/// Bytes of workspace that forward and backward of this key use. The communicator holds the largest of its keys. On a CUDA
/// device what kernels work in is part of it, so the first call loads kernels and uploads the key's tile lists, as
/// magi_key_prepare does.
///
/// Errors: NULL_POINTER, COMM_DESTROYED, POISONED; on a CUDA device also OUT_OF_MEMORY, NOT_SUPPORTED, CUDA_FAILED,
/// COMPILE_FAILED. Any thread.
///
/// # Safety
/// `bytes` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_workspace_size(key: Option<&magi_key>, bytes: *mut usize) -> Status {
    guard_handle("magi_key_workspace_size", "key", key, |k| {
        let needed = k.key.workspace_bytes()?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("bytes", bytes, needed) }
    })
}

/// The plan's hash: equal on every rank that planned the same, on any machine.
///
/// Errors: NULL_POINTER, COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `hash` must point to a uint64_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_hash(key: Option<&magi_key>, hash: *mut u64) -> Status {
    guard_handle("magi_key_hash", "key", key, |k| {
        let value = k.key.hash()?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("hash", hash, value) }
    })
}

/// Frees the handle; the communicator may keep the plan in its cache. NULL does nothing. Not while a call on it runs.
#[unsafe(no_mangle)]
pub extern "C" fn magi_key_destroy(key: Option<Box<magi_key>>) {
    guard_destroy(|| drop(key));
}

/// What the attention and movement functions need of a key.
pub(super) fn with_key(name: &str, key: Option<&magi_key>, f: impl FnOnce(&Key) -> Result<()>) -> Status {
    guard_handle(name, "key", key, |k| f(&k.key))
}
