//! How a call's workspace is laid out. One function per pass serves both for the size and for the pointers.

use super::packing::PassPacking;
use crate::device::Carver;
use crate::plan::{Pass, Plan, Stage};
use crate::types::{AttnShape, Config, DType, Device, Result, Side, Tensor, TwoLevel, piece_rows};

/// Most sinks of a token.
pub(super) const MAX_SINKS: i64 = 8;

/// Sizes of one rank's tensors and stages, all that the layout depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    /// Local query tokens.
    pub tokens_q: i64,
    /// Local key tokens.
    pub tokens_k: i64,
    /// Ranks.
    pub world: i64,
    /// Where workspace lies.
    pub device: Device,
    pub shape: AttnShape,
    /// Type in which partial dk and dv travel, and dq of queries that travelled.
    pub wire: DType,
    /// Type in which partial outputs of queries that travelled go home.
    pub output_wire: DType,
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
    /// Over a mesh: rows of the largest gateway buffer.
    pub gateway_rows: i64,
    /// Over a mesh: most rows that one stage passes on inside the host.
    pub forward_rows: i64,
    /// Receive buffers that are alive at once: 2 when a stage is fetched while another is computed.
    pub buffers: usize,
    /// Most queries of other ranks in a stage.
    pub guest_rows: i64,
    /// Most queries that one stage sends, counted once for every rank they go to.
    pub guest_send_rows: i64,
    /// As `buffers`, for queries.
    pub guest_buffers: usize,
    /// Most rows that one stage packs to send.
    pub packed_sends: i64,
    /// Most rows that arrive packed.
    pub packed_recvs: i64,
}

impl PassDims {
    fn new(pass: &Pass, packing: &PassPacking) -> PassDims {
        let (packed_sends, packed_recvs) = packing.rows();
        let most = |f: &dyn Fn(&Stage) -> i64| pass.stages.iter().map(f).max().unwrap_or(0);
        let mesh = |f: fn(&TwoLevel) -> i64| most(&|s: &Stage| s.two_level.as_ref().map_or(0, f));
        let flat = most(&|s| {
            if s.two_level.is_some() {
                0
            } else {
                s.transfer.send_rows()
            }
        });
        let busy = pass.stages.iter().filter(|s| !s.is_idle()).count();
        let hosting = pass.stages.iter().filter(|s| !s.guests.transfer.is_empty());
        PassDims {
            recv_rows: most(&|s| s.transfer.recv_rows),
            send_rows: flat.max(mesh(|t| piece_rows(&t.sends))),
            gateway_rows: mesh(|t| t.gateway_rows),
            forward_rows: mesh(|t| piece_rows(&t.forwards)),
            buffers: busy.min(2),
            guest_rows: most(&|s| s.guests.transfer.recv_rows),
            guest_send_rows: most(&|s| s.guests.transfer.send_rows()),
            guest_buffers: hosting.count().min(2),
            packed_sends,
            packed_recvs,
        }
    }
}

impl Dims {
    /// The sizes of `plan` for its rank, whose tensors lie on `device`.
    pub fn new(
        plan: &Plan,
        packings: [&PassPacking; 2],
        (shape, config): (&AttnShape, &Config),
        device: Device,
    ) -> Dims {
        let (placement, rank) = (&plan.placement, plan.rank);
        let wire = |high: bool| {
            if high {
                shape.dtype.accumulator()
            } else {
                shape.dtype
            }
        };
        Dims {
            tokens_q: placement.side(Side::Q).tokens(rank),
            tokens_k: placement.side(Side::K).tokens(rank),
            world: placement.side(Side::K).world() as i64,
            device,
            shape: *shape,
            wire: wire(config.backward_high_precision_reduce),
            output_wire: wire(config.forward_high_precision_reduce),
            forward: PassDims::new(&plan.forward, packings[0]),
            backward: PassDims::new(&plan.backward, packings[1]),
        }
    }
}

/// Bytes that kernels of a CUDA device work in beside tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KernelBytes {
    pub forward: usize,
    pub backward: usize,
}

/// One of k and v, or of their gradients, in pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyPair {
    pub k: Tensor,
    pub v: Tensor,
}

/// Keys whose runs travel packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packs {
    pub sends: KeyPair,
    pub recvs: KeyPair,
}

/// What a stage's guests need.
pub(super) struct GuestBuffers {
    /// What was received of them.
    pub recv: Vec<Tensor>,
    /// What is computed for them, in the accumulator type.
    pub partial: Vec<Tensor>,
    /// The same as it travels; the partial results themselves where the type is the same.
    pub wire: Vec<Tensor>,
    /// What comes home for this rank's own queries.
    pub staging: Vec<Tensor>,
}

/// What queries that travel need.
pub(super) struct GuestSpace {
    /// Dense copies of strided tensors of this rank's queries.
    pub packed: Vec<Tensor>,
    /// Stages take them in turn.
    pub buffers: Vec<GuestBuffers>,
}

/// What forward works in.
pub(super) struct ForwardSpace {
    /// Running out, for callers who want it in another dtype.
    pub out: Tensor,
    /// Running lse, for callers who want none.
    pub lse: Tensor,
    /// Dense copies of strided keys and values.
    pub packed: KeyPair,
    /// Stages receive into these in turn.
    pub recv: Vec<KeyPair>,
    /// What stages take in for other ranks of the host, likewise.
    pub gateway: Vec<KeyPair>,
    /// Small runs on their way, likewise.
    pub packs: Vec<Packs>,
    /// Of queries q travels, out and lse come back.
    pub guests: GuestSpace,
    /// On a CUDA device: the largest logits of every rank, `[ranks, heads_q]`.
    pub maxima: Tensor,
    /// What kernels work in, in bytes.
    pub kernels: Tensor,
}

/// What backward works in.
pub(super) struct BackwardSpace {
    /// Gradients of each query's own sinks are here before dq is, where they are added to what is there.
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
    /// What stages take in for other ranks of the host, in turn.
    pub gateway: Vec<KeyPair>,
    /// Small runs on their way, in turn, and gradients on their way back.
    pub packs: Vec<Packs>,
    pub packed_wire: Vec<KeyPair>,
    /// Sums of gradients for the gateway's rows, as computed and as they travel, and what they are made of.
    pub gateway_sum: KeyPair,
    pub gateway_wire: KeyPair,
    pub gateway_staging: KeyPair,
    /// Of queries q, dout, lse and delta travel, dq comes back.
    pub guests: GuestSpace,
    /// Gradients of a shared sink: this rank's, and on a CUDA device every rank's. `[MAX_SINKS, heads_q]` of each.
    pub sinks: Tensor,
    /// What kernels work in, in bytes.
    pub kernels: Tensor,
}

/// A query-side tensor: its type and the shape of a row.
type Rows<'a> = (DType, &'a [i64]);

/// Hands out dense tensors.
struct Layout<'a> {
    carver: &'a mut Carver,
    device: Device,
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
        Ok(unsafe { Tensor::dense(data, dtype, self.device, shape) })
    }

    /// Rows that a CUDA device needs and the processor does not.
    fn on_cuda(&self, rows: i64) -> i64 {
        if self.device == Device::Cpu { 0 } else { rows }
    }

    fn pair(&mut self, dtype: DType, rows: i64, s: &AttnShape) -> Result<KeyPair> {
        let k = self.tensor(dtype, &[rows, s.heads_kv, s.head_dim])?;
        let v = self.tensor(dtype, &[rows, s.heads_kv, s.head_dim_v])?;
        Ok(KeyPair { k, v })
    }

    fn packs(&mut self, pass: &PassDims, s: &AttnShape) -> Result<Vec<Packs>> {
        let one = |_| {
            Ok(Packs {
                sends: self.pair(s.dtype, pass.packed_sends, s)?,
                recvs: self.pair(s.dtype, pass.packed_recvs, s)?,
            })
        };
        (0..pass.buffers).map(one).collect()
    }

    fn pairs(&mut self, count: usize, dtype: DType, rows: i64, s: &AttnShape) -> Result<Vec<KeyPair>> {
        (0..count).map(|_| self.pair(dtype, rows, s)).collect()
    }
}

impl Layout<'_> {
    fn rows(&mut self, of: &[Rows<'_>], rows: i64) -> Result<Vec<Tensor>> {
        let tensor = |&(dtype, row): &Rows<'_>| self.tensor(dtype, &[&[rows], row].concat());
        of.iter().map(tensor).collect()
    }

    /// Space for the guests of a pass: `sent` is what travels of a query, `results` what comes back, in the type it travels
    /// in.
    fn guests(
        &mut self,
        dims: &Dims,
        pass: &PassDims,
        sent: &[Rows<'_>],
        results: &[Rows<'_>],
    ) -> Result<GuestSpace> {
        let packed_rows = if pass.guest_send_rows > 0 {
            dims.tokens_q
        } else {
            0
        };
        let packed = self.rows(sent, packed_rows)?;
        let mut buffers = Vec::new();
        for _ in 0..pass.guest_buffers {
            let acc = dims.shape.dtype.accumulator();
            let as_computed: Vec<Rows<'_>> = results.iter().map(|r| (acc, r.1)).collect();
            let partial = self.rows(&as_computed, pass.guest_rows)?;
            let mut wire = partial.clone();
            for (wire, result) in wire.iter_mut().zip(results).filter(|(_, r)| r.0 != acc) {
                *wire = self.tensor(result.0, &[&[pass.guest_rows], result.1].concat())?;
            }
            buffers.push(GuestBuffers {
                recv: self.rows(sent, pass.guest_rows)?,
                partial,
                wire,
                staging: self.rows(results, pass.guest_send_rows)?,
            });
        }
        Ok(GuestSpace { packed, buffers })
    }
}

impl ForwardSpace {
    /// Cuts forward's workspace.
    pub fn carve(dims: &Dims, kernels: KernelBytes, carver: &mut Carver) -> Result<ForwardSpace> {
        let (s, acc, pass) = (&dims.shape, dims.shape.dtype.accumulator(), &dims.forward);
        let mut layout = Layout {
            carver,
            device: dims.device,
        };
        let packed_rows = if pass.send_rows > 0 { dims.tokens_k } else { 0 };
        Ok(ForwardSpace {
            out: layout.tensor(acc, &[dims.tokens_q, s.heads_q, s.head_dim_v])?,
            lse: layout.tensor(acc, &[dims.tokens_q, s.heads_q])?,
            packed: layout.pair(s.dtype, packed_rows, s)?,
            recv: layout.pairs(pass.buffers, s.dtype, pass.recv_rows, s)?,
            gateway: layout.pairs(pass.buffers, s.dtype, pass.gateway_rows, s)?,
            packs: layout.packs(pass, s)?,
            guests: layout.guests(
                dims,
                pass,
                &[(s.dtype, &[s.heads_q, s.head_dim])],
                &[
                    (dims.output_wire, &[s.heads_q, s.head_dim_v]),
                    (acc, &[s.heads_q]),
                ],
            )?,
            maxima: layout.tensor(DType::F32, &[layout.on_cuda(dims.world), s.heads_q])?,
            kernels: layout.tensor(DType::U8, &[kernels.forward as i64])?,
        })
    }
}

impl BackwardSpace {
    /// Cuts backward's workspace.
    pub fn carve(dims: &Dims, kernels: KernelBytes, carver: &mut Carver) -> Result<BackwardSpace> {
        let (s, acc, pass) = (&dims.shape, dims.shape.dtype.accumulator(), &dims.backward);
        let mut layout = Layout {
            carver,
            device: dims.device,
        };
        let packed_rows = if pass.send_rows > 0 { dims.tokens_k } else { 0 };
        // A stage's reduction runs while the next stage is computed, so these come in twos like the receive buffers.
        let partial = layout.pairs(pass.buffers, acc, pass.recv_rows, s)?;
        let gateway_sum = layout.pair(acc, pass.gateway_rows, s)?;
        let (wire, gateway_wire) = if dims.wire == acc {
            (partial.clone(), gateway_sum)
        } else {
            let wire = layout.pairs(pass.buffers, dims.wire, pass.recv_rows, s)?;
            (wire, layout.pair(dims.wire, pass.gateway_rows, s)?)
        };
        Ok(BackwardSpace {
            dq: layout.tensor(acc, &[dims.tokens_q, s.heads_q, s.head_dim])?,
            local: layout.pair(acc, dims.tokens_k, s)?,
            delta: layout.tensor(acc, &[dims.tokens_q, s.heads_q])?,
            packed: layout.pair(s.dtype, packed_rows, s)?,
            recv: layout.pairs(pass.buffers, s.dtype, pass.recv_rows, s)?,
            partial,
            wire,
            staging: layout.pairs(pass.buffers, dims.wire, pass.send_rows, s)?,
            gateway: layout.pairs(pass.buffers, s.dtype, pass.gateway_rows, s)?,
            packs: layout.packs(pass, s)?,
            packed_wire: layout.pairs(pass.buffers, dims.wire, pass.packed_recvs, s)?,
            gateway_sum,
            gateway_wire,
            gateway_staging: layout.pair(dims.wire, pass.forward_rows, s)?,
            guests: layout.guests(
                dims,
                pass,
                &[
                    (s.dtype, &[s.heads_q, s.head_dim]),
                    (s.dtype, &[s.heads_q, s.head_dim_v]),
                    (acc, &[s.heads_q]),
                    (acc, &[s.heads_q]),
                ],
                &[(dims.wire, &[s.heads_q, s.head_dim])],
            )?,
            sinks: layout.tensor(acc, &[1 + layout.on_cuda(dims.world), MAX_SINKS, s.heads_q])?,
            kernels: layout.tensor(DType::U8, &[kernels.backward as i64])?,
        })
    }
}

/// Bytes that the larger pass needs.
pub(super) fn bytes(dims: &Dims, kernels: KernelBytes) -> Result<usize> {
    let (mut forward, mut backward) = (Carver::measure(), Carver::measure());
    ForwardSpace::carve(dims, kernels, &mut forward)?;
    BackwardSpace::carve(dims, kernels, &mut backward)?;
    Ok(forward.used().max(backward.used()))
}
