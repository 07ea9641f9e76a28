//! The C ABI: the only place with `extern "C"`.
//!
//! `include/magi_attn.h` is generated from this folder and nothing else, its sections in the order of the modules
//! below. After a change, `MAGI_UPDATE_HEADER=1 cargo test --test header` writes the header anew.

// Types carry their C names, so that the Rust side and the header read alike and nothing has to be renamed.
#![allow(non_camel_case_types)]

mod version;
