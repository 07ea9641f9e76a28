//! What goes into a grouped exchange, and what stands for it until it is finished.

use std::any::Any;

use crate::types::{Error, Result, Status};

/// Bytes that go to one peer.
#[derive(Clone, Copy, Debug)]
pub struct SendOp {
    /// The receiving rank; may be the rank itself.
    pub peer: usize,
    /// First byte; may be null when `bytes` is 0.
    pub data: *const u8,
    /// Length in bytes.
    pub bytes: usize,
}

/// Bytes that come from one peer.
#[derive(Clone, Copy, Debug)]
pub struct RecvOp {
    /// The sending rank; may be the rank itself.
    pub peer: usize,
    /// Where the first byte goes; may be null when `bytes` is 0.
    pub data: *mut u8,
    /// Length in bytes; must be the length that the peer sends.
    pub bytes: usize,
}

/// What every communicator asks of a grouped exchange among `size` ranks: peers that exist, `Status::InvalidArgument`, and no
/// bytes at null, `Status::NullPointer`.
pub(super) fn check_ops(sends: &[SendOp], recvs: &[RecvOp], size: usize) -> Result<()> {
    let sends = sends.iter().map(|o| ("send", o.peer, o.data, o.bytes));
    let recvs = recvs
        .iter()
        .map(|o| ("receive", o.peer, o.data.cast_const(), o.bytes));
    for (what, peer, data, bytes) in sends.chain(recvs) {
        if peer >= size {
            return Err(Error::argument(format!(
                "{what} peer is rank {peer} of {size} ranks"
            )));
        }
        if data.is_null() && bytes != 0 {
            let message = format!("{what} of {bytes} bytes with rank {peer} has data NULL");
            return Err(Error::new(Status::NullPointer, message));
        }
    }
    Ok(())
}

/// An exchange that was started and not yet finished. Dropping it gives up its receives: their destinations are not
/// written any more, and their messages are freed when they arrive.
#[must_use = "the destinations of an exchange are only written by `finish`"]
pub struct Ticket(Box<dyn Any + Send>);

impl Ticket {
    /// Wraps what a communicator keeps about an exchange.
    pub fn new<T: Any + Send>(pending: T) -> Ticket {
        Ticket(Box::new(pending))
    }

    /// A look at what was wrapped, if it is a `T`.
    pub fn inner<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }

    /// What was wrapped, if it is a `T`; `None` for the ticket of another kind of communicator.
    pub fn into_inner<T: Any>(self) -> Option<Box<T>> {
        self.0.downcast().ok()
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket")
    }
}
