//! Masks, and what plans are compared with.

pub mod bound;
pub mod masks;
