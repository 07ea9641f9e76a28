//! The C ABI: handles, status codes, tensor descriptors. The only place with `extern "C"`.
//!
//! Every function checks, converts, and calls one function of the runtime inside a guard that turns errors and panics
//! into a status and a message. The header is generated from here; its sections are these modules, in this order.

// The names are those of the C header.
#![allow(non_camel_case_types)]

pub mod version;

pub mod status;

pub mod plain;

pub mod config;

pub mod environment;

pub mod comm;

pub mod comm_nccl;

pub mod mask;

pub mod mask_make;

pub mod key;

pub mod key_stage;

pub mod key_profile;

pub mod key_more;

pub mod key_joint;

pub mod movement;

pub mod attn;

pub mod single;

pub mod group;

pub mod support;

/// In no header: the C tests that link the test-only build declare these themselves.
/// cbindgen:ignore
#[cfg(feature = "fault")]
mod fault;
mod guard;
mod input;
