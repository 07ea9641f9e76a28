//! How a call's workspace is laid out. One function per pass serves both for the size and for the pointers.

use crate::device::Carver;
use crate::plan::{Pass, Plan};
use crate::types::{AttnShape, Config, DType, Device, Result, Side, Tensor};

/// Sizes of one rank's tensors and stages, all that the layout depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    /// Local query tokens.
    pub tokens_q: i64,
    /// Local key tokens.
    pub tokens_k: i64,
    pub shape: AttnShape,
    /// Type in which partial dk and dv travel.
    pub wire: DType,
    pub forward: PassDims,
    pub backward: PassDims,
}

/// Largest transfers of a pass's stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct PassDims {
    /// Rows of the largest receive buffer.
    pub recv_rows: i64,
    /// Most rows that one stage sends.
    pub send_rows: i64,
    /// Receive buffers that are alive at once: 2 when a stage is fetched while another is computed.
    pub buffers: usize,
}

impl PassDims {
    fn new(pass: &Pass) -> PassDims {
        let most = |f: fn(&crate::types::Transfer) -> i64| {
            pass.stages.iter().map(|s| f(&s.transfer)).max().unwrap_or(0)
        };
        let fetching = pass.stages.iter().filter(|s| s.transfer.recv_rows > 0).count();
        PassDims {
            recv_rows: most(|t| t.recv_rows),
            send_rows: most(|t| t.send_rows()),
            buffers: fetching.min(2),
        }
    }
}

impl Dims {
    /// The sizes of `plan` for its rank.
    pub fn new(plan: &Plan, shape: &AttnShape, config: &Config) -> Dims {
        let (placement, rank) = (&plan.placement, plan.rank);
        let wire = if config.backward_high_precision_reduce {
            shape.dtype.accumulator()
        } else {
            shape.dtype
        };
        Dims {
            tokens_q: placement.side(Side::Q).tokens(rank),
            tokens_k: placement.side(Side::K).tokens(rank),
            shape: *shape,
            wire,
            forward: PassDims::new(&plan.forward),
            backward: PassDims::new(&plan.backward),
        }
    }
}

/// One of k and v, or of their gradients, in pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyPair {
    pub k: Tensor,
    pub v: Tensor,
}

/// What forward works in.
pub(super) struct ForwardSpace {
    /// Running out, for callers who want it in another dtype.
    pub out: Tensor,
    /// Running lse, for callers who want none.
    pub lse: Tensor,
    /// Dense copies of strided keys and values.
    pub packed: KeyPair,
    /// Stage i receives into `recv[i % recv.len()]`.
    pub recv: Vec<KeyPair>,
}

/// What backward works in.
pub(super) struct BackwardSpace {
    pub dq: Tensor,
    /// Gradients of the local keys and values.
    pub local: KeyPair,
    /// Rowsum of out * dout.
    pub delta: Tensor,
    pub packed: KeyPair,
    pub recv: Vec<KeyPair>,
    /// Partial gradients of received keys, in the accumulator type.
    pub partial: Vec<KeyPair>,
    /// The same as they travel; the partial ones themselves when the type is the same.
    pub wire: Vec<KeyPair>,
    /// Partial gradients of local keys as they come in from other ranks.
    pub staging: Vec<KeyPair>,
}

/// Hands out dense tensors.
struct Layout<'a> {
    carver: &'a mut Carver,
}

impl Layout<'_> {
    fn tensor(&mut self, dtype: DType, shape: &[i64]) -> Result<Tensor> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |b, &n| b.checked_mul(n as usize))
            .unwrap_or(usize::MAX);
        let data = self.carver.take(bytes)?;
        // SAFETY: the carver gave `bytes` bytes to this tensor alone, for as long as its block lives; while measuring
        // the pointer is null and the tensor is dropped unused.
        Ok(unsafe { Tensor::dense(data, dtype, Device::Cpu, shape) })
    }

    fn pair(&mut self, dtype: DType, rows: i64, s: &AttnShape) -> Result<KeyPair> {
        let k = self.tensor(dtype, &[rows, s.heads_kv, s.head_dim])?;
        let v = self.tensor(dtype, &[rows, s.heads_kv, s.head_dim_v])?;
        Ok(KeyPair { k, v })
    }

    fn pairs(&mut self, count: usize, dtype: DType, rows: i64, s: &AttnShape) -> Result<Vec<KeyPair>> {
        (0..count).map(|_| self.pair(dtype, rows, s)).collect()
    }
}

impl ForwardSpace {
    /// Cuts forward's workspace.
    pub fn carve(dims: &Dims, carver: &mut Carver) -> Result<ForwardSpace> {
        let (s, acc, pass) = (&dims.shape, dims.shape.dtype.accumulator(), &dims.forward);
        let mut layout = Layout { carver };
        let packed_rows = if pass.send_rows > 0 { dims.tokens_k } else { 0 };
        Ok(ForwardSpace {
            out: layout.tensor(acc, &[dims.tokens_q, s.heads_q, s.head_dim_v])?,
            lse: layout.tensor(acc, &[dims.tokens_q, s.heads_q])?,
            packed: layout.pair(s.dtype, packed_rows, s)?,
            recv: layout.pairs(pass.buffers, s.dtype, pass.recv_rows, s)?,
        })
    }
}

impl BackwardSpace {
    /// Cuts backward's workspace.
    pub fn carve(dims: &Dims, carver: &mut Carver) -> Result<BackwardSpace> {
        let (s, acc, pass) = (&dims.shape, dims.shape.dtype.accumulator(), &dims.backward);
        let mut layout = Layout { carver };
        let packed_rows = if pass.send_rows > 0 { dims.tokens_k } else { 0 };
        // A stage's reduction runs while the next stage is computed, so these come in twos like the receive buffers;
        // and a rank that receives nothing may still be sent gradients of what it sent.
        let buffers = if pass.recv_rows > 0 || pass.send_rows > 0 {
            2
        } else {
            0
        };
        let partial = layout.pairs(buffers, acc, pass.recv_rows, s)?;
        let wire = if dims.wire == acc {
            partial.clone()
        } else {
            layout.pairs(buffers, dims.wire, pass.recv_rows, s)?
        };
        Ok(BackwardSpace {
            dq: layout.tensor(acc, &[dims.tokens_q, s.heads_q, s.head_dim])?,
            local: layout.pair(acc, dims.tokens_k, s)?,
            delta: layout.tensor(acc, &[dims.tokens_q, s.heads_q])?,
            packed: layout.pair(s.dtype, packed_rows, s)?,
            recv: layout.pairs(pass.buffers, s.dtype, pass.recv_rows, s)?,
            partial,
            wire,
            staging: layout.pairs(buffers, dims.wire, pass.send_rows, s)?,
        })
    }
}

/// Bytes that the larger pass needs.
pub(super) fn bytes(dims: &Dims) -> Result<usize> {
    let (mut forward, mut backward) = (Carver::measure(), Carver::measure());
    ForwardSpace::carve(dims, &mut forward)?;
    BackwardSpace::carve(dims, &mut backward)?;
    Ok(forward.used().max(backward.used()))
}
