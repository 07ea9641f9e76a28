//! Streams, workspace and the process: what plans, communicators and backends run on.

pub mod arena;
pub mod carver;
pub mod fault;
pub mod process;
pub mod stream;

pub use arena::Arena;
pub use carver::{ALIGNMENT, Carver};
pub use stream::Stream;
