//! Keys of several masks on one placement.

use super::comm::magi_comm;
use super::config::{magi_config, read_config};
use super::guard::guard_handle;
use super::input;
use super::key::{hand_out, magi_key};
use super::mask::magi_mask;
use super::plain::{magi_attn_shape, read_shape};
use crate::runtime::Key;
use crate::types::{Error, Mask, Result, Status};
use std::sync::Arc;

/// The most masks of one call.
const MOST_MASKS: usize = 4096;

/// Plans several masks with the same totals on one placement that is balanced for all of them together: dispatched tensors of
/// one key fit all others. For models whose layers have different masks, say full and windowed ones. Each key is in all
/// other ways as magi_key_create makes it; equal arguments give the plans that the communicator has in its cache.
///
/// `masks`: `[n]`, 1 to 4,096. `weights`: `[n]`, each at least 1, how often a mask's area and keys count (the number of layers
/// that have it); NULL for 1 each. `config`: as magi_key_create. `keys`: `[n]`, key i for mask i; on failure none is made.
/// Errors: as magi_key_create, and INVALID_ARGUMENT (n, totals that differ, a weight below 1, weighted areas above 2^62
/// cells, weights times the longer total above 2^42). One call at a time on `comm`; not collective, but every rank has to make its keys in the same order. Destroy each
/// with magi_key_destroy.
///
/// # Safety
/// `masks` must point to `n` masks, `weights` to `n` integers or be NULL, `shape` to a magi_attn_shape, `config` to a
/// magi_config or be NULL, `keys` to `n` pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_key_create_joint(
    comm: Option<&magi_comm>,
    masks: *const *const magi_mask,
    weights: *const i64,
    n: usize,
    shape: *const magi_attn_shape,
    config: *const magi_config,
    keys: *mut *mut magi_key,
) -> Status {
    guard_handle("magi_key_create_joint", "comm", comm, |c| {
        // SAFETY: the caller's promise.
        let masks = unsafe { weighted(masks, weights, n) }?;
        input::check_out("keys", keys)?;
        // SAFETY: the caller's promise.
        let (shape, config) = unsafe { (read_shape("shape", shape)?, read_config("config", config)?) };
        let made = Key::create_joint(&c.context, masks, shape, config)?;
        for (i, key) in made.into_iter().enumerate() {
            // SAFETY: the caller's promise; there are as many keys as masks.
            unsafe { hand_out(keys.add(i), key) }?;
        }
        Ok(())
    })
}

/// The masks with their weights.
///
/// # Safety
/// As `magi_key_create_joint`.
unsafe fn weighted(
    masks: *const *const magi_mask,
    weights: *const i64,
    n: usize,
) -> Result<Vec<(Arc<Mask>, i64)>> {
    if !(1..=MOST_MASKS).contains(&n) {
        return Err(Error::argument(format!("n is {n}; it must be 1 to {MOST_MASKS}")));
    }
    // SAFETY: the caller's promise.
    let list = unsafe { input::array("masks", masks, n) }?;
    let weights = if weights.is_null() {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { input::array("weights", weights, n) }?
    };
    list.iter()
        .enumerate()
        .map(|(i, &mask)| {
            // SAFETY: NULL or a mask, by the caller's promise.
            let mask = unsafe { mask.as_ref() };
            let mask = input::non_null(&format!("masks[{i}]"), mask)?;
            Ok((Arc::clone(&mask.mask), weights.get(i).copied().unwrap_or(1)))
        })
        .collect()
}
