//! A group collective of the caller's own: lists that every rank has compared, and workspace for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::check;
use super::context::{Context, Session};
use super::group_agree;
use super::group_lists::{GroupLists, GroupRequest, GroupTensor};
use super::group_moves::{Moves, Relay};
use super::group_way::Way;
use crate::device::{Carver, Stream};
use crate::types::{Allocator, DType, Device, Error, Mesh, Result, Tensor};

/// What one rank sends and receives in a group, on a communicator.
pub struct GroupPlan {
    context: Arc<Context>,
    pub(super) lists: GroupLists,
    /// Rows go over this mesh of hosts, where there is one.
    pub(super) mesh: Option<Mesh>,
    /// How they travel. Over a mesh it is known when the ranks have told each other what leaves their hosts.
    pub(super) moves: OnceLock<Moves>,
    pub(super) local_rows: i64,
    pub(super) received_rows: i64,
    pub(super) tensors: Vec<GroupTensor>,
    pub(super) reduce: bool,
    pub(super) strided: bool,
    pub(super) allocator: Option<Allocator>,
    pub(super) prepared: AtomicBool,
}

/// Where one tensor's workspace lies.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// Rows on their way to other ranks, or what these send back for them.
    pub staging: *mut u8,
    /// Rows that come from other ranks.
    pub received: *mut u8,
    /// Sums in the accumulator type.
    pub sums: *mut u8,
    /// Over a mesh: rows on their way to other hosts, or the sums that these send back for them.
    pub crossing: *mut u8,
    /// The gateway buffer: rows that came from other hosts, or the sums that go back.
    pub gateway: *mut u8,
    /// Rows of the gateway buffer on their way to ranks of this host, or what these send back for them.
    pub forwards: *mut u8,
    /// Rows that come from gateways of this host.
    pub relayed: *mut u8,
}

/// A dense tensor of `rows` rows like those of `like`, at `data`.
pub(super) fn dense(data: *mut u8, dtype: DType, rows: i64, like: &Tensor, device: Device) -> Tensor {
    let mut shape = like.shape().to_vec();
    shape[0] = rows;
    // SAFETY: callers pass a block that was carved for as many rows of this tensor, and that nothing else uses while
    // their session lives.
    unsafe { Tensor::dense(data, dtype, device, &shape) }
}

impl GroupPlan {
    /// Checks and orders the lists of this rank. No communication. Errors as the C function documents.
    pub fn create(
        context: &Arc<Context>,
        request: GroupRequest,
        allocator: Option<Allocator>,
    ) -> Result<GroupPlan> {
        context.check_open()?;
        let plan = GroupPlan {
            lists: GroupLists::new(&request, context.rank(), context.size())?,
            mesh: context.mesh_for(request.two_level)?,
            moves: OnceLock::new(),
            context: Arc::clone(context),
            local_rows: request.local_rows,
            received_rows: request.received_rows,
            tensors: request.tensors,
            reduce: request.reduce,
            strided: request.strided,
            allocator,
            prepared: AtomicBool::new(false),
        };
        if !plan.is_relayed() {
            let straight = plan.lists.straight(context.rank());
            plan.bytes_for(&straight)?;
            plan.settle(straight);
        }
        Ok(plan)
    }

    /// Whether rows may pass through other ranks: where there is one host, or one rank on each, all go straight to theirs.
    pub(super) fn is_relayed(&self) -> bool {
        self.mesh.is_some_and(|m| m.inter > 1 && m.intra > 1)
    }

    /// From here on rows travel like this. Once.
    pub(super) fn settle(&self, moves: Moves) {
        let _ = self.moves.set(moves);
    }

    /// The communicator it was made on.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Bytes of workspace that its calls use.
    pub fn workspace_bytes(&self) -> Result<usize> {
        self.context.check_open()?;
        let unknown = || {
            Error::argument(
                "plan goes over a mesh of hosts and is not prepared: how much passes through this rank is known when the \
                 ranks have compared their lists",
            )
        };
        self.bytes_for(self.moves.get().ok_or_else(unknown)?)
    }

    /// Bytes of workspace for `moves`.
    pub(super) fn bytes_for(&self, moves: &Moves) -> Result<usize> {
        let mut measure = Carver::measure();
        self.carve(moves, &mut measure)?;
        Ok(measure.used())
    }

    /// How the rows of a prepared plan travel.
    pub(super) fn moves(&self) -> Result<&Moves> {
        let unsettled = || Error::internal("a group plan that is prepared does not know how its rows travel");
        self.moves.get().ok_or_else(unsettled)
    }

    /// Fails with `Status::InvalidArgument` unless the plan has `count` tensors.
    pub fn expect_count(&self, count: usize) -> Result<()> {
        let want = self.tensors.len();
        if count == want {
            return Ok(());
        }
        Err(Error::argument(format!(
            "count is {count}; the plan has {want} tensors"
        )))
    }

    /// Compares lists with all ranks and takes workspace, unless that was done. Collective.
    pub fn prepare(&self, stream: Stream) -> Result<()> {
        self.check_stream(stream)?;
        self.collective(stream).map(drop)
    }

    /// Starts a collective call: a session on a prepared plan.
    pub(super) fn collective(&self, stream: Stream) -> Result<Session<'_>> {
        let mut session = self.context.enter_on(stream)?;
        let prepared = self.prepared.load(Ordering::Acquire);
        session.expect_collective(prepared)?;
        if !prepared {
            group_agree::run(&mut session, self, stream)?;
        }
        Ok(session)
    }

    pub(super) fn check_stream(&self, stream: Stream) -> Result<()> {
        check::stream(self.context.device(), stream)
    }

    /// Cuts the workspace, one slot for each tensor.
    pub(super) fn carve(&self, moves: &Moves, carver: &mut Carver) -> Result<Vec<Slot>> {
        let none = Relay::default();
        let relay = moves.relay.as_ref().unwrap_or(&none);
        // What travels from or into a caller's tensor: all of it is staged, or what is packed.
        let staged = |way: &Way, all: bool| if all { way.rows() } else { way.packing.rows() };
        let slot = |t: &GroupTensor| {
            let (size, sum) = (t.dtype.size(), t.dtype.accumulator());
            let mut block =
                |rows: i64, element: usize| carver.take(rows as usize * t.row_elements as usize * element);
            let rounded = self.reduce && t.dtype.is_attention() && t.dtype != sum;
            let either = if self.reduce { size.max(sum.size()) } else { size };
            Ok(Slot {
                staging: block(staged(&moves.sends, self.reduce || self.strided), size)?,
                received: block(staged(&moves.receives, self.strided), size)?,
                sums: block(if rounded { self.local_rows } else { 0 }, sum.size())?,
                crossing: block(staged(&relay.crossing, self.reduce || self.strided), either)?,
                gateway: block(relay.gateway.rows(), either)?,
                forwards: block(staged(&relay.forwards, self.reduce), size)?,
                relayed: block(staged(&relay.relayed, self.strided), size)?,
            })
        };
        self.tensors.iter().map(slot).collect()
    }
}
