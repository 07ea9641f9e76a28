//! Ranks that are threads or processes with a CUDA device each: bytes travel by NCCL, and everything else (who is there,
//! small all-gathers, who failed and why) over TCP.

pub mod api;
mod comm;
mod create;
mod engine;
mod exchange;
mod frame;
mod handle;
mod hub;
mod id;
pub mod launch;
mod link;
mod peer;
mod table;

pub use api::Nccl;
pub use comm::NcclComm;
pub use create::{Options, adopt, from_id, from_launch, invite};
pub use frame::Cookie;
pub use hub::Hub;
pub use id::{ID_BYTES, UniqueId};
pub use launch::Launch;
pub use link::{Invitation, Link};
pub use table::MOST_RANKS;
