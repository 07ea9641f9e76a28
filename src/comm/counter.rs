//! What a rank has sent and received.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{RecvOp, SendOp};

/// Bytes that went between a rank and others in exchanges, since its communicator was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To other ranks.
    pub sent: u64,
    /// From other ranks.
    pub received: u64,
}

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Counter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counter {
    /// Counts an exchange that `rank` has started.
    pub fn count(&self, rank: usize, sends: &[SendOp], recvs: &[RecvOp]) {
        let sent: usize = sends.iter().filter(|op| op.peer != rank).map(|op| op.bytes).sum();
        let received: usize = recvs.iter().filter(|op| op.peer != rank).map(|op| op.bytes).sum();
        self.sent.fetch_add(sent as u64, Ordering::Relaxed);
        self.received.fetch_add(received as u64, Ordering::Relaxed);
    }

    /// So far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}
