//! Helpers of the communicator tests.
#![allow(dead_code, reason = "every test program uses some of them")]

use std::sync::Arc;
use std::thread;

use magi_attn::comm::local::{LocalComm, create};
use magi_attn::comm::{Communicator, RecvOp, SendOp, Ticket};
use magi_attn::device::Stream;
use magi_attn::types::Result;

/// A small generator, so that every rank can compute what its peers will send.
pub struct Random(pub u64);

impl Random {
    pub fn of(parts: &[usize]) -> Random {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for &part in parts {
            random.0 ^= part as u64;
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// `len` bytes that differ for every (from, to, number).
pub fn payload(from: usize, to: usize, number: usize, len: usize) -> Vec<u8> {
    let mut random = Random::of(&[from, to, number, 77]);
    (0..len).map(|_| random.next() as u8).collect()
}

/// Starts an exchange of (peer, bytes) lists.
pub fn start(comm: &LocalComm, sends: &[(usize, Vec<u8>)], recvs: &mut [(usize, Vec<u8>)]) -> Result<Ticket> {
    let sends: Vec<SendOp> = sends
        .iter()
        .map(|(peer, bytes)| SendOp {
            peer: *peer,
            data: bytes.as_ptr(),
            bytes: bytes.len(),
        })
        .collect();
    let recvs: Vec<RecvOp> = recvs
        .iter_mut()
        .map(|(peer, bytes)| RecvOp {
            peer: *peer,
            data: bytes.as_mut_ptr(),
            bytes: bytes.len(),
        })
        .collect();
    // SAFETY: the tests keep their vectors, unmoved on the heap and untouched, until the ticket is gone.
    unsafe { comm.start(&sends, &recvs, Stream::NULL) }
}

/// Starts an exchange and finishes it.
pub fn exchange(comm: &LocalComm, sends: &[(usize, Vec<u8>)], recvs: &mut [(usize, Vec<u8>)]) -> Result<()> {
    let ticket = start(comm, sends, recvs)?;
    comm.finish(ticket, Stream::NULL)
}

/// Receives `bytes` bytes from `peer`.
pub fn receive(comm: &LocalComm, peer: usize, bytes: usize) -> Result<Vec<u8>> {
    let mut recvs = [(peer, vec![0; bytes])];
    exchange(comm, &[], &mut recvs)?;
    let [(_, bytes)] = recvs;
    Ok(bytes)
}

/// Sends `bytes` to `peer`.
pub fn send(comm: &LocalComm, peer: usize, bytes: &[u8]) -> Result<()> {
    exchange(comm, &[(peer, bytes.to_vec())], &mut [])
}

/// Calls `f` for each rank on a thread of its own; the results by rank. Unlike `local::run` it ends nothing.
pub fn on_ranks<T: Send>(size: usize, f: impl Fn(usize, &Arc<LocalComm>) -> T + Sync) -> Vec<T> {
    let comms = create(size).unwrap();
    thread::scope(|scope| {
        let threads: Vec<_> = comms
            .iter()
            .enumerate()
            .map(|(rank, comm)| {
                let f = &f;
                scope.spawn(move || f(rank, comm))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}
