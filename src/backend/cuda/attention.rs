//! Attention through `Backend` on a CUDA device: the textbook kernels over tile lists that a call prepared.

use std::sync::Arc;

use super::CudaBackend;
use super::textbook::Textbook;
use super::tile_lists::DeviceTiles;
use crate::backend::{BackwardArgs, ForwardArgs};
use crate::types::{Error, Result};

/// What the attention calls of a `CudaBackend` walk in place of their slices; made while a call prepares.
#[derive(Clone, Debug)]
pub struct Attention {
    /// The kernels.
    pub textbook: Textbook,
    /// Query tiles of the slices, for `textbook_params::tile_shape`.
    pub queries: Arc<DeviceTiles>,
    /// Their key tiles.
    pub keys: Arc<DeviceTiles>,
}

impl CudaBackend {
    /// The same backend, for calls over the slices that `attention` was made of.
    pub fn with_attention(self, attention: Attention) -> CudaBackend {
        CudaBackend {
            attention: Some(attention),
            ..self
        }
    }

    fn attention(&self) -> Result<&Attention> {
        let missing = || Error::internal("attention on a CUDA device without tile lists");
        self.attention.as_ref().ok_or_else(missing)
    }

    /// See `Backend::attn_forward`.
    pub(super) fn forward(&self, args: &ForwardArgs<'_>) -> Result<()> {
        let a = self.attention()?;
        a.textbook.forward(self.stream(), &a.queries, args)
    }

    /// See `Backend::attn_backward`.
    pub(super) fn backward(&self, args: &BackwardArgs<'_>) -> Result<()> {
        let a = self.attention()?;
        a.textbook.backward(self.stream(), &a.queries, &a.keys, args)
    }
}
