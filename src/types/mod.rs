//! The ground floor: plain values that every other floor may use, and that use none of them.

mod alias;
mod band;
mod config;
mod dtype;
pub mod env;
mod error;
mod mask;
mod mask_build;
mod mask_overlap;
mod range;
mod ranges;
mod rates;
mod shape;
mod slice;
mod slice_print;
mod stage;
mod tensor;

pub use band::Band;
pub use config::{AllocFn, Allocator, Config, DsinkReduce, Effort, FreeFn, PlacementKind};
pub use dtype::DType;
pub use error::{Error, Result, Status};
pub use mask::Mask;
pub use range::Range;
pub use ranges::Ranges;
pub use rates::Rates;
pub use shape::AttnShape;
pub use slice::{MaskType, Slice, TypedSlice};
pub use stage::{Piece, Side, StageSlice, Transfer};
pub use tensor::{Device, MAX_DIMS, Tensor};
