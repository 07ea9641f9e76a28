//! Group collectives for their own sake: rows to every rank that needs them, and what was computed for them back.

use std::sync::atomic::AtomicBool;

use super::comm::magi_comm;
use super::config::{magi_config, read_config};
use super::guard::{Handle, guard_destroy, guard_handle};
use super::input;
use super::key::stream_of;
use super::plain::{magi_stream, magi_tensor};
use crate::runtime::{GroupPlan, GroupRequest, GroupTensor, ReduceOp, group_call};
use crate::types::{DType, Error, Piece, Range, Result, Status, Tensor};

/// magi_group_reduce will be called on the plan: takes workspace for what comes in and, for bf16 and f16, for sums.
pub const MAGI_GROUP_REDUCE: u32 = 1;
/// local and received of magi_group_cast, and partial of magi_group_reduce, may be other than dense: takes workspace for
/// dense copies of the rows that travel.
pub const MAGI_GROUP_STRIDED: u32 = 2;

/// How magi_group_reduce adds up.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum magi_group_op {
    /// The sum of all contributions.
    Sum = 0,
    /// The sum divided by the number of contributions.
    Avg = 1,
    /// Tensors come in pairs of out `[rows, heads, width]` and lse `[rows, heads]`, which are merged: each out counts by
    /// exp(lse - merged lse). An lse of -inf has weight 0, and its out is not read.
    Lse = 2,
}

/// A run of rows that goes to, or comes from, one rank.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_group_piece {
    /// Rows: of the local tensors in a send, of the received tensors in a receive.
    pub rows: Range,
    /// The other rank; may be this rank.
    pub peer: i32,
    /// Must be 0.
    pub reserved: i32,
}

/// What the rows of one tensor of a group look like, whatever their shape.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct magi_group_tensor {
    /// Elements of a row: the product of all dimensions but the first; 1 or more.
    pub row_elements: i64,
    /// A magi_dtype: what travels.
    pub dtype: i32,
    /// Must be 0.
    pub reserved: i32,
}

/// What one rank sends and receives in a group. Start from MAGI_GROUP_ARGS_INIT.
///
/// Between two ranks the k-th piece sent is the k-th piece received, and has as many rows; pieces without rows do not count.
/// Pieces of different ranks may stand in any order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct magi_group_args {
    /// sizeof(magi_group_args).
    pub size: usize,
    /// Rows (shape[0]) of the local tensors.
    pub local_rows: i64,
    /// Rows of the received tensors.
    pub received_rows: i64,
    /// `[n_sends]`: local rows that go out. A row may go to any number of ranks, and to one of them more than once.
    pub sends: *const magi_group_piece,
    /// Number of sends.
    pub n_sends: usize,
    /// `[n_receives]`: received rows that come in. No two may meet.
    pub receives: *const magi_group_piece,
    /// Number of receives.
    pub n_receives: usize,
    /// `[n_tensors]`: what travels together, such as k and v; the same on every rank.
    pub tensors: *const magi_group_tensor,
    /// Number of tensors, 1 to 64.
    pub n_tensors: usize,
    /// MAGI_GROUP_*. MAGI_GROUP_REDUCE on every rank or on none.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// What one rank sends and receives in a group, on a communicator. One call at a time, and one at a time for all keys and
/// group plans of a communicator.
pub struct magi_group_plan {
    plan: GroupPlan,
    poisoned: AtomicBool,
}

impl Handle for magi_group_plan {
    fn poisoned(&self) -> &AtomicBool {
        &self.poisoned
    }
    fn abort(&self, why: &str) {
        self.plan.context().fail(&Error::internal(why));
    }
}

/// Reads the lists of a group.
///
/// # Safety
/// Every pointer in `a` must be NULL or point to as many elements as `a` says.
unsafe fn request_of(a: &magi_group_args, two_level: bool) -> Result<GroupRequest> {
    let known = MAGI_GROUP_REDUCE | MAGI_GROUP_STRIDED;
    if a.flags & !known != 0 {
        return Err(Error::argument(format!(
            "args.flags is {:#x}; only the bits of {known:#x} are known",
            a.flags
        )));
    }
    zero("args.reserved", a.reserved.into())?;
    // SAFETY: the caller's promise.
    let (sends, receives, tensors) = unsafe {
        (
            input::array("args.sends", a.sends, a.n_sends)?,
            input::array("args.receives", a.receives, a.n_receives)?,
            input::array("args.tensors", a.tensors, a.n_tensors)?,
        )
    };
    let tensor = |(i, t): (usize, &magi_group_tensor)| {
        let named = |e: Error| Error::new(e.status, format!("args.tensors[{i}].{}", e.message));
        zero(&format!("args.tensors[{i}].reserved"), t.reserved.into())?;
        Ok(GroupTensor {
            row_elements: t.row_elements,
            dtype: DType::from_i32(t.dtype).map_err(named)?,
        })
    };
    Ok(GroupRequest {
        local_rows: a.local_rows,
        received_rows: a.received_rows,
        sends: pieces("sends", sends)?,
        receives: pieces("receives", receives)?,
        tensors: tensors.iter().enumerate().map(tensor).collect::<Result<_>>()?,
        reduce: a.flags & MAGI_GROUP_REDUCE != 0,
        strided: a.flags & MAGI_GROUP_STRIDED != 0,
        two_level,
    })
}

fn zero(param: &str, value: i64) -> Result<()> {
    if value == 0 {
        return Ok(());
    }
    Err(Error::argument(format!("{param} is {value}; it must be 0")))
}

fn pieces(name: &str, given: &[magi_group_piece]) -> Result<Vec<Piece>> {
    let piece = |(i, p): (usize, &magi_group_piece)| {
        zero(&format!("args.{name}[{i}].reserved"), p.reserved.into())?;
        let peer = u32::try_from(p.peer).map_err(|_| {
            Error::argument(format!(
                "args.{name}[{i}].peer is {}; it must be a rank, 0 or more",
                p.peer
            ))
        })?;
        Ok(Piece { peer, rows: p.rows })
    };
    given.iter().enumerate().map(piece).collect()
}

/// The descriptors of one parameter.
///
/// # Safety
/// `data` must be NULL or point to `count` descriptors as magi_tensor says.
unsafe fn tensors(param: &str, data: *const magi_tensor, count: usize) -> Result<Vec<Tensor>> {
    // SAFETY: the caller's promise.
    let all = unsafe { input::array(param, data, count) }?;
    all.iter()
        .enumerate()
        // SAFETY: the caller's promise.
        .map(|(i, t)| unsafe { input::tensor(&format!("{param}[{i}]"), t) })
        .collect()
}

/// A group of ranks that send each other rows, as this rank sees it: which of its rows go where, and where what comes in is
/// put. No communication here.
///
/// `config`: NULL for defaults overlaid by the environment. Its allocator makes workspace; with hierarchical_comm, the same on
/// every rank, rows go over the mesh that magi_comm_set_mesh has set before: each row to another host once. Its other fields
/// have no effect.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, INVALID_ARGUMENT, INVALID_ENUM, INVALID_RANGE (rows beyond their total, or received
/// twice), INVALID_ENVIRONMENT, COMM_DESTROYED, OUT_OF_MEMORY, POISONED. Any thread; not collective. Destroy with
/// magi_group_plan_destroy.
///
/// # Safety
/// `args` must be NULL or as its type says, `config` NULL or a magi_config, `plan` point to a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_group_plan_create(
    comm: Option<&magi_comm>,
    args: *const magi_group_args,
    config: *const magi_config,
    plan: *mut *mut magi_group_plan,
) -> Status {
    guard_handle("magi_group_plan_create", "comm", comm, |c| {
        input::check_out("plan", plan)?;
        // SAFETY: the caller's promise.
        let config = unsafe { read_config("config", config) }?;
        // SAFETY: the caller's promise.
        let request = unsafe { request_of(&input::sized("args", args)?, config.hierarchical_comm) }?;
        let made = Box::new(magi_group_plan {
            plan: GroupPlan::create(&c.context, request, config.allocator)?,
            poisoned: AtomicBool::new(false),
        });
        // SAFETY: the caller's promise.
        unsafe { input::write_out("plan", plan, Box::into_raw(made)) }
    })
}

/// Compares with all ranks what they send and expect, learns what passes through this rank over a mesh, and takes workspace,
/// so that later calls do none of it. The first magi_group_cast or magi_group_reduce on a plan does it when this was not
/// called.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT (stream), PLAN_MISMATCH (on every rank, naming two ranks that do not fit together),
/// OUT_OF_MEMORY (on every rank), NOT_SUPPORTED (on every rank: over a mesh more than 4,194,304 pieces leave their hosts),
/// HANDLE_BUSY, COMM_DESTROYED, POISONED, COMM_FAILED, TIMEOUT, ABORTED. Collective.
#[unsafe(no_mangle)]
pub extern "C" fn magi_group_plan_prepare(plan: Option<&magi_group_plan>, stream: magi_stream) -> Status {
    guard_handle("magi_group_plan_prepare", "plan", plan, |p| {
        p.plan.prepare(stream_of(stream))
    })
}

/// Bytes of workspace that calls on this plan use. The communicator holds the largest of its keys and group plans. 0 for dense
/// tensors and no reduction, unless many small pieces go between two ranks and travel packed, or rows pass through this rank.
///
/// Errors: NULL_POINTER, INVALID_ARGUMENT (over a mesh, before the plan is prepared), COMM_DESTROYED, POISONED. Any thread.
///
/// # Safety
/// `bytes` must point to a size_t.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_group_plan_workspace_size(
    plan: Option<&magi_group_plan>,
    bytes: *mut usize,
) -> Status {
    guard_handle("magi_group_plan_workspace_size", "plan", plan, |p| {
        let needed = p.plan.workspace_bytes()?;
        // SAFETY: the caller's promise.
        unsafe { input::write_out("bytes", bytes, needed) }
    })
}

/// Sends rows of `local` to the ranks that the plan names and puts what comes in into rows of `received`. Rows of `received`
/// that no piece names stay as they are.
///
/// `local`: `[count]` tensors `[local_rows, ..]`; `received`: `[count]` tensors `[received_rows, ..]`, of the same trailing
/// shape; dtype and row elements as the plan says; dense, or any strides with MAGI_GROUP_STRIDED. `count`: the plan's number of
/// tensors. Errors: NULL_POINTER, INVALID_ARGUMENT, INVALID_ENUM, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE,
/// DEVICE_MISMATCH, TENSOR_OVERLAP, HANDLE_BUSY, COMM_DESTROYED, POISONED; PLAN_MISMATCH, OUT_OF_MEMORY when the plan was not
/// prepared; COMM_FAILED, TIMEOUT, ABORTED. Collective: every rank calls it, also one without pieces. Its gradient is
/// magi_group_reduce with MAGI_GROUP_OP_SUM.
///
/// # Safety
/// `local` and `received` must point to `count` tensors as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_group_cast(
    plan: Option<&magi_group_plan>,
    local: *const magi_tensor,
    received: *const magi_tensor,
    count: usize,
    stream: magi_stream,
) -> Status {
    guard_handle("magi_group_cast", "plan", plan, |p| {
        // Before anything is read that is not there.
        p.plan.expect_count(count)?;
        // SAFETY: the caller's promise.
        let (local, received) = unsafe {
            (
                tensors("local", local, count)?,
                tensors("received", received, count)?,
            )
        };
        group_call::cast(&p.plan, &local, &received, stream_of(stream))
    })
}

/// The transpose of magi_group_cast: rows of `partial`, one for each received row, go back to where they came from, and each
/// row of `local` becomes what all that come back for it make together.
///
/// Contributions are added in ascending rank, those of one rank in the order of its pieces, in the accumulator type (f64 for
/// f64, else f32), whatever the dtype that travels; the result is rounded once. Over a mesh those of another host are added
/// there first, likewise, and count as one at the place of that host's ranks. So the bits are the same on every run.
/// `op`: a magi_group_op. `partial`: `[count]` tensors `[received_rows, ..]` in the plan's dtypes; rows that no piece names are
/// not read. `accumulate`: 0 overwrites `local`, rows without a contribution with 0 (lse: -inf); 1 takes what `local` holds as
/// one more contribution, the first. `local`: `[count]` tensors `[local_rows, ..]` in the plan's dtype or its accumulator type,
/// any strides. Errors: as magi_group_cast, and INVALID_ARGUMENT for a plan without MAGI_GROUP_REDUCE, DTYPE_MISMATCH for dtypes
/// other than f64, f32, bf16 and f16. Collective.
///
/// # Safety
/// `partial` and `local` must point to `count` tensors as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_group_reduce(
    plan: Option<&magi_group_plan>,
    op: i32,
    partial: *const magi_tensor,
    accumulate: i32,
    local: *const magi_tensor,
    count: usize,
    stream: magi_stream,
) -> Status {
    guard_handle("magi_group_reduce", "plan", plan, |p| {
        let op = match op {
            0 => ReduceOp::Sum,
            1 => ReduceOp::Avg,
            2 => ReduceOp::Lse,
            other => {
                let message = format!("op is {other}; it must be 0 (sum), 1 (avg) or 2 (lse)");
                return Err(Error::new(Status::InvalidEnum, message));
            }
        };
        let accumulate = input::flag("accumulate", accumulate)?;
        p.plan.expect_count(count)?;
        // SAFETY: the caller's promise.
        let (partial, local) = unsafe {
            (
                tensors("partial", partial, count)?,
                tensors("local", local, count)?,
            )
        };
        group_call::reduce(&p.plan, op, &partial, accumulate, &local, stream_of(stream))
    })
}

/// Frees the handle. NULL does nothing. Not while a call on it runs.
#[unsafe(no_mangle)]
pub extern "C" fn magi_group_plan_destroy(plan: Option<Box<magi_group_plan>>) {
    guard_destroy(|| drop(plan));
}
