//! The ground floor: plain values that every other floor may use, and that use none of them.

mod alias;
mod band;
mod config;
pub mod draw;
mod dtype;
pub mod env;
mod env_table;
mod error;
mod kernel_build;
mod mask;
mod mask_build;
mod mask_dense;
mod mask_overlap;
mod mask_prefix;
mod mask_video;
mod range;
mod ranges;
mod rates;
mod shape;
mod slice;
mod slice_print;
mod stage;
mod tensor;
mod tiles;
mod two_level;
mod value;

pub use band::Band;
pub use config::{
    AllocFn, Allocator, Compute, Config, DsinkReduce, Effort, FreeFn, HostStage, KernelChoice, PlacementKind,
};
pub use dtype::DType;
pub use error::{Error, Result, Status};
pub use kernel_build::KernelBuild;
pub use mask::Mask;
pub use range::Range;
pub use ranges::Ranges;
pub use rates::Rates;
pub use shape::AttnShape;
pub use slice::{MaskType, Slice, TypedSlice};
pub use stage::{Piece, Side, StageSlice, Transfer};
pub use tensor::{Device, MAX_DIMS, Tensor};
pub use tiles::{Item, RowLimits, Tile, TileList, TileShape};
pub use two_level::{Mesh, TwoLevel, piece_rows};
