//! A group collective of the caller's own: lists that every rank has compared, and workspace for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::check;
use super::context::{Context, Session};
use super::group_agree;
use super::group_lists::{GroupLists, GroupRequest, GroupTensor};
use crate::device::{Carver, Stream};
use crate::types::{Allocator, DType, Device, Error, Result, Tensor};

/// What one rank sends and receives in a group, on a communicator.
pub struct GroupPlan {
    context: Arc<Context>,
    pub(super) lists: GroupLists,
    pub(super) local_rows: i64,
    pub(super) received_rows: i64,
    pub(super) tensors: Vec<GroupTensor>,
    pub(super) reduce: bool,
    pub(super) strided: bool,
    pub(super) allocator: Option<Allocator>,
    /// Workspace that it needs.
    pub(super) bytes: usize,
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
        let mut plan = GroupPlan {
            lists: GroupLists::new(&request, context.rank(), context.size())?,
            context: Arc::clone(context),
            local_rows: request.local_rows,
            received_rows: request.received_rows,
            tensors: request.tensors,
            reduce: request.reduce,
            strided: request.strided,
            allocator,
            bytes: 0,
            prepared: AtomicBool::new(false),
        };
        let mut measure = Carver::measure();
        plan.carve(&mut measure)?;
        plan.bytes = measure.used();
        Ok(plan)
    }

    /// The communicator it was made on.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Bytes of workspace that its calls use.
    pub fn workspace_bytes(&self) -> Result<usize> {
        self.context.check_open()?;
        Ok(self.bytes)
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
    pub(super) fn carve(&self, carver: &mut Carver) -> Result<Vec<Slot>> {
        let lists = &self.lists;
        let slot = |t: &GroupTensor| {
            let sum = t.dtype.accumulator();
            let mut block =
                |rows: i64, element: usize| carver.take(rows as usize * t.row_elements as usize * element);
            let either = |all: bool, rows: i64, packed: i64| if all { rows } else { packed };
            let size = t.dtype.size();
            let sends = either(
                self.reduce || self.strided,
                lists.send_rows(),
                lists.send_packing.rows(),
            );
            let receives = either(self.strided, lists.receive_rows(), lists.receive_packing.rows());
            let rounded = self.reduce && t.dtype.is_attention() && t.dtype != sum;
            Ok(Slot {
                staging: block(sends, size)?,
                received: block(receives, size)?,
                sums: block(either(rounded, self.local_rows, 0), sum.size())?,
            })
        };
        self.tensors.iter().map(slot).collect()
    }
}
