//! Handles that a program holds, and how it names one of them.

use super::memory::Arena;
use crate::bytes::Bytes;
use magi_attn::ffi::comm::{magi_comm, magi_comm_destroy};
use magi_attn::ffi::key::{magi_key, magi_key_destroy, magi_key_local_tokens};
use magi_attn::ffi::mask::{magi_mask, magi_mask_destroy, magi_mask_totals};
use magi_attn::types::Status;

/// A key with what its tensors should look like.
pub struct HeldKey {
    pub key: *mut magi_key,
    /// heads_q, heads_kv, head_dim, head_dim_v.
    pub shape: [i64; 4],
    pub dtype: i32,
    /// Totals of the mask.
    pub totals: [i64; 2],
}

/// Everything a program has made.
pub struct State {
    pub arena: Arena,
    pub masks: Vec<*mut magi_mask>,
    /// The first one is that of the rank that runs the program, and not destroyed by it.
    pub comms: Vec<*mut magi_comm>,
    pub keys: Vec<HeldKey>,
}

/// Any of them, or none.
fn pick<T>(b: &mut Bytes, items: &[T]) -> Option<usize> {
    let i = b.u8();
    (i != 255 && !items.is_empty()).then(|| usize::from(i) % items.len())
}

impl State {
    pub fn new(comm: *mut magi_comm) -> State {
        State {
            arena: Arena::new(),
            masks: Vec::new(),
            comms: vec![comm],
            keys: Vec::new(),
        }
    }

    pub fn mask(&self, b: &mut Bytes) -> Option<&magi_mask> {
        // SAFETY: every handle held is alive, and used by this thread only.
        pick(b, &self.masks).map(|i| unsafe { &*self.masks[i] })
    }

    pub fn comm(&self, b: &mut Bytes) -> Option<&magi_comm> {
        // SAFETY: as above; the first one lives until the program ends.
        pick(b, &self.comms).map(|i| unsafe { &*self.comms[i] })
    }

    pub fn key(&self, b: &mut Bytes) -> Option<&HeldKey> {
        pick(b, &self.keys).map(|i| &self.keys[i])
    }

    pub fn destroy_mask(&mut self, b: &mut Bytes) {
        let gone = pick(b, &self.masks).map(|i| self.masks.swap_remove(i));
        // SAFETY: the library made it with Box::into_raw, and it is held no more.
        magi_mask_destroy(gone.map(|m| unsafe { Box::from_raw(m) }));
    }

    pub fn destroy_comm(&mut self, b: &mut Bytes) {
        let gone = pick(b, &self.comms[1..]).map(|i| self.comms.swap_remove(i + 1));
        // SAFETY: as above.
        magi_comm_destroy(gone.map(|c| unsafe { Box::from_raw(c) }));
    }

    pub fn destroy_key(&mut self, b: &mut Bytes) {
        let gone = pick(b, &self.keys).map(|i| self.keys.swap_remove(i).key);
        // SAFETY: as above.
        magi_key_destroy(gone.map(|k| unsafe { Box::from_raw(k) }));
    }

    /// Frees all but the first communicator.
    pub fn destroy_all(&mut self) {
        while !self.keys.is_empty() {
            self.destroy_key(&mut Bytes::new(&[]));
        }
        while !self.masks.is_empty() {
            self.destroy_mask(&mut Bytes::new(&[]));
        }
        while self.comms.len() > 1 {
            self.destroy_comm(&mut Bytes::new(&[]));
        }
    }
}

/// Both totals of a mask; 0 for none.
pub fn totals(mask: Option<&magi_mask>) -> [i64; 2] {
    let mut t = [0; 2];
    let [q, k] = &mut t;
    // SAFETY: both point to integers.
    unsafe { magi_mask_totals(mask, q, k) };
    t
}

impl HeldKey {
    /// Local tokens of a side as the library says; 0 where it refuses.
    pub fn tokens(&self, side: i32) -> i64 {
        let mut tokens = 0;
        // SAFETY: the key is alive, and `tokens` an integer.
        let status = unsafe { magi_key_local_tokens(Some(&*self.key), side, &raw mut tokens) };
        if status == Status::Ok { tokens } else { 0 }
    }
}
