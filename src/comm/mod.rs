//! Moves bytes between ranks: grouped sends and receives, all-gather, abort. No attention, no arithmetic.

mod communicator;
pub mod local;
mod transport;

pub use communicator::{Communicator, DEFAULT_TIMEOUT, MAX_TIMEOUT};
pub use transport::{RecvOp, SendOp, Ticket};
