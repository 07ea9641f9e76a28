//! CUDA devices, through the driver API. Nothing here needs CUDA to be installed: the driver's library is looked for on
//! first use, and where it is missing `driver::init` says so.

pub mod driver;
mod event;
mod gpu;
mod host_word;
mod launch;
mod memory;
mod module;
pub mod pointer;
pub mod stream;
mod tensor_map;

pub use event::Event;
pub use gpu::{Current, Gpu, Properties};
pub use host_word::HostWord;
pub use launch::{Arguments, Launch};
pub use memory::{DeviceMemory, StreamMemory, fill_words, free_behind};
pub use module::{Function, Module};
pub use stream::OwnStream;
pub use tensor_map::{Promotion, Swizzle, TensorMap, Tiled};
