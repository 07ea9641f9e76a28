//! Ranks that are threads of one process, with messages in host memory.

mod comm;
mod inbox;
mod lane;
mod run;
mod verdict;
mod world;

pub use comm::{LocalComm, MAX_WORLD_SIZE, create};
pub use run::run;
