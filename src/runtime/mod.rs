//! Ties plans, communicators and backends together: keys, movement of tokens, group collectives, attention.

pub mod attn_args;
pub mod backward;
mod cache;
mod check;
mod context;
pub mod device_mask;
mod device_ranges;
pub mod forward;
mod gather;
mod gpu_backward;
mod group;
mod group_agree;
pub mod group_call;
mod group_check;
mod group_lists;
mod group_plan;
mod key;
pub mod movement;
pub mod on_gpu;
mod prepare;
mod redistribute;
mod reduction;
mod request;
pub mod roll;
mod scratch;
pub mod single;
mod stages;
pub mod support;
mod travel;
mod two_level;
mod workspace;

pub use context::{Context, Session};
pub use group::{Lane, PendingReduce, ReduceOp, group_cast, group_reduce};
pub use group_lists::{GroupRequest, GroupTensor};
pub use group_plan::GroupPlan;
pub use key::Key;
