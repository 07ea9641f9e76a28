//! Attention over very long sequences and irregular masks, on one device or many.
//!
//! The product is the C ABI (`include/magi_attn.h`); the Rust modules below it are public for tests and benchmarks
//! and follow no stability rule. See `docs/architecture.md` for the floors.

pub mod backend;
pub mod types;
