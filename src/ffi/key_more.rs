//! Other ways to a key, and what it looks like.

use std::ffi::c_char;
use std::sync::Arc;

use super::comm::magi_comm;
use super::config::{magi_config, read_config};
use super::guard::guard_handle;
use super::input;
use super::key::{hand_out, magi_key};
use super::mask::magi_mask;
use super::plain::{magi_attn_shape, read_shape};
use crate::plan::{Placement, SidePlacement};
use crate::runtime::Key;
use crate::types::{Error, Mask, Result, Status};

/// Plans another mask with the same totals for tokens that lie as `key` placed them: dispatched tensors of one key fit
/// the other. For models whose layers have different masks.
///
/// `shape`: NULL for that of `key`. `config`: NULL for that of `key`; its fields about chunks and placement have no
/// effect. Errors: as magi_key_create, and INVALID_ARGUMENT when totals differ. One call at a time on the communicator; not
/// collective, but every rank has to make its keys in the same order. Destroy with magi_key_destroy.
///
/// # Safety
/// `shape` must be NULL or point to a magi_attn_shape, `config` be NULL or point to a magi_config, `new_key` point to a
/// pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_create_for_new_mask(
    key: Option<&magi_key>,
    mask: Option<&magi_mask>,
    shape: *const magi_attn_shape,
    config: *const magi_config,
    new_key: *mut *mut magi_key,
) -> Status {
    guard_handle("magi_key_create_for_new_mask", "key", key, |k| {
        let mask = &input::non_null("mask", mask)?.mask;
        input::check_out("new_key", new_key)?;
        let shape = if shape.is_null() {
            *k.key.shape()
        } else {
            // SAFETY: not NULL, and the caller's promise.
            unsafe { read_shape("shape", shape) }?
        };
        let config = if config.is_null() {
            *k.key.config()
        } else {
            // SAFETY: not NULL, and the caller's promise.
            unsafe { read_config("config", config) }?
        };
        // SAFETY: the caller's promise.
        unsafe { hand_out(new_key, k.key.create_for_new_mask(mask, shape, config)?) }
    })
}

/// As magi_key_create, with tokens placed by the caller: chunk i, tokens `[i, i + 1) * chunk_size` of the side (the last may
/// be short), lies on rank `owners[i]`. Counts may differ between ranks, and a rank may own nothing.
///
/// `owners_q`: `[n_q]`, one for each chunk of the queries. `owners_k`: `[n_k]` likewise for the keys; NULL with n_k = 0 when
/// totals are equal (keys lie with the queries), or to give keys in equal contiguous shares when they are not.
/// `config`: as magi_key_create; its fields about chunks and placement have no effect. Errors: as magi_key_create, and
/// INVALID_ARGUMENT (chunk_size, owners; owners_k that differ from owners_q with equal totals). One call at a time on `comm`;
/// not collective, but every rank has to make its keys in the same order. Destroy with magi_key_destroy.
///
/// # Safety
/// `shape` must point to a magi_attn_shape, `config` to a magi_config or be NULL, `owners_q` to `n_q` integers, `owners_k` to
/// `n_k`, `key` to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_create_with_placement(
    comm: Option<&magi_comm>,
    mask: Option<&magi_mask>,
    shape: *const magi_attn_shape,
    config: *const magi_config,
    chunk_size: i64,
    owners_q: *const i32,
    n_q: usize,
    owners_k: *const i32,
    n_k: usize,
    key: *mut *mut magi_key,
) -> Status {
    guard_handle("magi_key_create_with_placement", "comm", comm, |c| {
        let mask = &input::non_null("mask", mask)?.mask;
        input::check_out("key", key)?;
        // SAFETY: the caller's promise.
        let (shape, config) = unsafe { (read_shape("shape", shape)?, read_config("config", config)?) };
        // SAFETY: the caller's promise.
        let owners = unsafe {
            [
                input::array("owners_q", owners_q, n_q)?,
                input::array("owners_k", owners_k, n_k)?,
            ]
        };
        let placement = placed(mask, c.context.size(), chunk_size, owners)?;
        let made = Key::create_with_placement(&c.context, mask, shape, config, placement)?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(key, made) }
    })
}

/// The placement that the caller's lists mean.
fn placed(mask: &Mask, world: usize, chunk_size: i64, [of_q, of_k]: [&[i32]; 2]) -> Result<Placement> {
    let (total_q, total_k) = (mask.total_q(), mask.total_k());
    let q = Arc::new(side("owners_q", total_q, chunk_size, of_q, world)?);
    if of_k.is_empty() {
        if total_q == total_k {
            return Ok(Placement::shared(q));
        }
        return Placement::from_sides(q, Arc::new(SidePlacement::shares(total_k, world)?));
    }
    Placement::from_sides(q, Arc::new(side("owners_k", total_k, chunk_size, of_k, world)?))
}

/// One side's list, whose errors name the parameter.
fn side(param: &str, total: i64, chunk_size: i64, owners: &[i32], world: usize) -> Result<SidePlacement> {
    let list = owners
        .iter()
        .enumerate()
        .map(|(i, &owner)| {
            u32::try_from(owner).map_err(|_| {
                Error::argument(format!("{param}[{i}] is {owner}; it must be 0 to {}", world - 1))
            })
        })
        .collect::<Result<Vec<u32>>>()?;
    SidePlacement::from_owners(total, chunk_size, &list, world).map_err(|e| {
        let message = e.message.replacen("owners", param, 1);
        Error::new(e.status, message)
    })
}

/// The key that was made last on `comm`, as a handle of its own.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT (none was made yet), COMM_DESTROYED, HANDLE_BUSY, POISONED, and what ended the
/// communicator. One call at a time on `comm`; not collective. Destroy with magi_key_destroy.
///
/// # Safety
/// `key` must point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_comm_last_key(comm: Option<&magi_comm>, key: *mut *mut magi_key) -> Status {
    guard_handle("magi_comm_last_key", "comm", comm, |c| {
        input::check_out("key", key)?;
        // SAFETY: the caller's promise.
        unsafe { hand_out(key, Key::last(&c.context)?) }
    })
}

/// Says in words who placed tokens and what other placements would come to, how evenly work is spread, what travels (also
/// between hosts and inside them, where magi_comm_set_mesh said which ranks share one), and what each stage of this rank waits
/// for, and for how long as predicted. Meant for people; the wording may change. Plans three other placements to compare with.
///
/// `text`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
/// Errors: NULL_POINTER, BUFFER_TOO_SMALL, COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `text` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_explain(
    key: Option<&magi_key>,
    text: *mut c_char,
    size: *mut usize,
) -> Status {
    guard_handle("magi_key_explain", "key", key, |k| {
        // SAFETY: the caller's promise.
        unsafe { input::fill_text("text", k.key.explain()?, text, size) }
    })
}

/// Draws the plan of all ranks as SVG: the mask coloured by the rank that computes each part, the cells of each rank, the
/// keys that go from rank to rank, those received in each stage, and the predicted times of the slowest rank and of the one
/// nearest to the mean: lanes of computing, fetching and, backward, reducing, waits hatched. At most some hundred kilobytes;
/// follows the viewer's light or dark scheme.
///
/// `svg`: room for `*size` bytes, or NULL to ask; `*size` becomes the size, the ending zero byte included.
/// Errors: NULL_POINTER, BUFFER_TOO_SMALL, COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `svg` must be NULL or have room for `*size` bytes; `size` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_draw(key: Option<&magi_key>, svg: *mut c_char, size: *mut usize) -> Status {
    guard_handle("magi_key_draw", "key", key, |k| {
        // SAFETY: the caller's promise.
        unsafe { input::fill_text("svg", k.key.draw()?, svg, size) }
    })
}
