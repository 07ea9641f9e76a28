//! Moves bytes between ranks: grouped sends and receives, all-gather, abort. No attention, no arithmetic.

mod communicator;
mod counter;
pub mod local;
pub mod nccl;
mod transport;

pub use communicator::{Communicator, DEFAULT_TIMEOUT, MAX_TIMEOUT};
pub use counter::Traffic;
pub use transport::{RecvOp, SendOp, Ticket};
