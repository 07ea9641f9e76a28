//! Streams, workspace, log lines and the process: what plans, communicators and backends run on.

pub mod arena;
pub mod carver;
pub mod cuda;
pub mod fault;
pub mod log;
pub mod nvtx;
pub mod places;
pub mod process;
pub mod stream;

pub use arena::Arena;
pub use carver::{ALIGNMENT, Carver};
pub use stream::Stream;
