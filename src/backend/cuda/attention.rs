//! Launchers of the attention kernels.

use super::CudaBackend;
use crate::backend::{BackwardArgs, ForwardArgs};
use crate::types::{AttnShape, Error, Result, Status};

fn not_supported(pass: &str, shape: &AttnShape) -> Error {
    let message = format!(
        "this build has no {pass} attention kernel for CUDA devices (asked for: {}, head_dim {}, head_dim_v {}); hand in \
         tensors in host memory, which the CPU computes",
        shape.dtype.name(),
        shape.head_dim,
        shape.head_dim_v
    );
    Error::new(Status::NotSupported, message)
}

impl CudaBackend {
    /// See `Backend::attn_forward`.
    pub(super) fn forward(&self, args: &ForwardArgs<'_>) -> Result<()> {
        Err(not_supported("forward", &args.shape))
    }

    /// See `Backend::attn_backward`.
    pub(super) fn backward(&self, args: &BackwardArgs<'_>) -> Result<()> {
        Err(not_supported("backward", &args.shape))
    }
}
