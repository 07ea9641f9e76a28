//! Moves bytes between ranks: grouped sends and receives, all-gather, abort. No attention, no arithmetic.

mod communicator;
pub mod local;
pub mod nccl;
mod transport;

pub use communicator::{Communicator, DEFAULT_TIMEOUT, MAX_TIMEOUT};
pub use transport::{RecvOp, SendOp, Ticket};
