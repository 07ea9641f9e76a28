//! The calls on a group plan: group_cast, and group_reduce as its transpose.

use super::check::{place_on, written};
use super::context::Session;
use super::group::{Lane, ReduceOp, start};
use super::group_lists::{Contribution, GroupTensor, rows_of};
use super::group_plan::{GroupPlan, Slot, dense};
use crate::backend::Backend;
use crate::device::{Carver, Stream, fault};
use crate::types::{DType, Error, Piece, Range, Result, Status, Tensor};

/// Tensors that a parameter is an array of, with the parameter's name.
type Array<'a> = (&'a str, &'a [Tensor]);

/// Sends rows of `local` and receives into `received`, as `plan` says. Collective. Errors as the C function documents.
pub fn cast(plan: &GroupPlan, local: &[Tensor], received: &[Tensor], stream: Stream) -> Result<()> {
    let (input, output) = (("local", local), ("received", received));
    plan.check_stream(stream)?;
    plan.context().check_open()?;
    plan.expect_count(local.len())?;
    for (i, t) in plan.tensors.iter().enumerate() {
        let wire = [t.dtype];
        tensor(plan, (input, i), &wire, plan.local_rows)?;
        tensor(plan, (output, i), &wire, plan.received_rows)?;
        travels(plan, (input, i))?;
        travels(plan, (output, i))?;
        same_rows((output, i), (input, i))?;
    }
    apart(output, input)?;
    let mut session = plan.collective(stream)?;
    fault::point("group_cast", plan.context().rank())?;
    let slots = slots(plan, &mut session)?;
    let comm = session.context().comm();
    let backend = session.context().backend();
    let lists = &plan.lists;

    let mut sends = Vec::with_capacity(local.len());
    let mut targets = Vec::with_capacity(local.len());
    for ((from, to), slot) in local.iter().zip(received).zip(&slots) {
        sends.push(sendable(
            backend,
            from,
            (&lists.sends, &lists.staged_sends),
            slot.staging,
        )?);
        targets.push(if to.is_dense() {
            (*to, &lists.receives)
        } else {
            let staged = &lists.staged_receives;
            let rows = lists.receive_rows();
            (dense(slot.received, to.dtype(), rows, to, comm.device()), staged)
        });
    }
    let recvs: Vec<Lane> = targets.iter().map(|&(t, pieces)| lane(t, pieces)).collect();
    let ticket = start(comm, &sends, &recvs, stream)?;
    session.in_step(|| {
        for (from, to) in local.iter().zip(received) {
            for (old, new) in &lists.keeps {
                backend.range_gather(*from, &[*old], to.rows(new.start, new.end))?;
            }
        }
        comm.finish(ticket, stream)?;
        for (to, (target, _)) in received.iter().zip(&targets).filter(|(to, _)| !to.is_dense()) {
            backend.range_scatter(*target, *to, &rows_of(&lists.receives))?;
        }
        Ok(())
    })
}

/// Sends rows of `partial`, one for every received row, back to where group_cast has them from, and adds those that come in
/// to `local`, in rank order, in the accumulator type; what `local` holds counts first with `accumulate`. Collective. Errors
/// as the C function documents.
pub fn reduce(
    plan: &GroupPlan,
    op: ReduceOp,
    partial: &[Tensor],
    accumulate: bool,
    local: &[Tensor],
    stream: Stream,
) -> Result<()> {
    let (input, output) = (("partial", partial), ("local", local));
    plan.check_stream(stream)?;
    plan.context().check_open()?;
    if !plan.reduce {
        return Err(Error::argument(
            "plan was made without MAGI_GROUP_REDUCE in args.flags; it has no workspace for sums",
        ));
    }
    plan.expect_count(partial.len())?;
    for (i, t) in plan.tensors.iter().enumerate() {
        tensor(plan, (input, i), &[t.dtype], plan.received_rows)?;
        travels(plan, (input, i))?;
        if !t.dtype.is_attention() {
            let message = format!(
                "partial[{i}] has dtype {}; only f64, f32, bf16 and f16 can be reduced",
                t.dtype.name()
            );
            return Err(Error::new(Status::DtypeMismatch, message));
        }
        let either = [t.dtype, t.dtype.accumulator()];
        tensor(plan, (output, i), &either, plan.local_rows)?;
        same_rows((output, i), (input, i))?;
    }
    if op == ReduceOp::Lse {
        pairs(&plan.tensors, partial)?;
    }
    apart(output, input)?;
    let mut session = plan.collective(stream)?;
    fault::point("group_reduce", plan.context().rank())?;
    let slots = slots(plan, &mut session)?;
    let comm = session.context().comm();
    let backend = session.context().backend();
    let lists = &plan.lists;

    let mut sends = Vec::with_capacity(partial.len());
    let mut sums = Sums {
        op,
        accumulate,
        partial,
        staging: Vec::with_capacity(partial.len()),
        target: Vec::with_capacity(partial.len()),
    };
    for ((from, to), slot) in partial.iter().zip(local).zip(&slots) {
        let pieces = (lists.receives.as_slice(), lists.staged_receives.as_slice());
        sends.push(sendable(backend, from, pieces, slot.received)?);
        let rows = lists.send_rows();
        sums.staging
            .push(dense(slot.staging, from.dtype(), rows, from, comm.device()));
        let acc = from.dtype().accumulator();
        sums.target.push(if to.dtype() == acc {
            *to
        } else {
            dense(slot.sums, acc, plan.local_rows, to, comm.device())
        });
    }
    let recvs: Vec<Lane> = sums
        .staging
        .iter()
        .map(|&t| lane(t, &lists.staged_sends))
        .collect();
    let ticket = start(comm, &sends, &recvs, stream)?;
    session.in_step(|| {
        sums.begin(backend, local)?;
        comm.finish(ticket, stream)?;
        sums.add(plan, backend)?;
        for (sum, to) in sums.target.iter().zip(local) {
            if sum.dtype() != to.dtype() {
                backend.cast(*sum, *to, false)?;
            }
        }
        Ok(())
    })
}

/// A reduction of all tensors of a group.
struct Sums<'a> {
    op: ReduceOp,
    accumulate: bool,
    partial: &'a [Tensor],
    /// What comes from other ranks.
    staging: Vec<Tensor>,
    /// In the accumulator type: the caller's tensors, or workspace.
    target: Vec<Tensor>,
}

impl Sums<'_> {
    /// What is there before the first contribution.
    fn begin(&self, backend: &dyn Backend, local: &[Tensor]) -> Result<()> {
        if self.accumulate {
            for (sum, held) in self.target.iter().zip(local) {
                if sum.dtype() != held.dtype() {
                    backend.cast(*held, *sum, false)?;
                }
            }
            return Ok(());
        }
        if self.op == ReduceOp::Lse {
            return self
                .target
                .chunks_exact(2)
                .try_for_each(|pair| backend.attn_init(pair[0], pair[1], None, None));
        }
        self.target.iter().try_for_each(|sum| backend.fill_zero(*sum))
    }

    /// Adds every contribution, by ascending source.
    fn add(&self, plan: &GroupPlan, backend: &dyn Backend) -> Result<()> {
        let lists = &plan.lists;
        for contribution in &lists.contributions {
            match contribution {
                Contribution::Peer(from, to) => self.merge(backend, &self.staging, *from, to)?,
                Contribution::Own => {
                    for (to, from) in &lists.keeps {
                        self.merge(backend, self.partial, *from, &[*to])?;
                    }
                }
            }
        }
        if self.op != ReduceOp::Avg {
            return Ok(());
        }
        for (rows, count) in &lists.counts {
            let count = count + i64::from(self.accumulate);
            for sum in self.target.iter().filter(|_| count > 1) {
                backend.divide(sum.rows(rows.start, rows.end), count)?;
            }
        }
        Ok(())
    }

    /// Adds rows `from` of `sources` to rows `to`.
    fn merge(&self, backend: &dyn Backend, sources: &[Tensor], from: Range, to: &[Range]) -> Result<()> {
        let part = |t: &Tensor| t.rows(from.start, from.end);
        if self.op == ReduceOp::Lse {
            return sources
                .chunks_exact(2)
                .zip(self.target.chunks_exact(2))
                .try_for_each(|(new, sum)| {
                    backend.lse_reduce(part(&new[0]), part(&new[1]), sum[0], sum[1], to)
                });
        }
        sources
            .iter()
            .zip(&self.target)
            .try_for_each(|(new, sum)| backend.range_reduce(part(new), *sum, to))
    }
}

fn lane(tensor: Tensor, pieces: &[Piece]) -> Lane<'_> {
    Lane { tensor, pieces }
}

/// The pieces of `t` as a communicator can send them: where they are, or packed one after the other.
fn sendable<'a>(
    backend: &dyn Backend,
    t: &Tensor,
    (pieces, staged): (&'a [Piece], &'a [Piece]),
    space: *mut u8,
) -> Result<Lane<'a>> {
    if t.is_dense() {
        return Ok(lane(*t, pieces));
    }
    let rows = staged.last().map_or(0, |p| p.rows.end);
    let packed = dense(space, t.dtype(), rows, t, t.device());
    backend.range_gather(*t, &rows_of(pieces), packed)?;
    Ok(lane(packed, staged))
}

fn slots(plan: &GroupPlan, session: &mut Session<'_>) -> Result<Vec<Slot>> {
    let arena = &mut session.state.arena;
    plan.carve(&mut Carver::over(arena.base(), arena.bytes())?)
}

/// One tensor: place, dtype, rows.
fn tensor(plan: &GroupPlan, ((name, all), i): (Array<'_>, usize), dtypes: &[DType], rows: i64) -> Result<()> {
    let (t, name) = (&all[i], format!("{name}[{i}]"));
    place_on((&name, t), plan.context().comm().device())?;
    if !dtypes.contains(&t.dtype()) {
        let mut want: Vec<&str> = dtypes.iter().map(|d| d.name()).collect();
        want.dedup();
        let message = format!(
            "{name} has dtype {}; for this plan it must be {}",
            t.dtype().name(),
            want.join(" or ")
        );
        return Err(Error::new(Status::DtypeMismatch, message));
    }
    let elements = plan.tensors[i].row_elements;
    if (t.tokens(), t.row_elements()) != (rows, elements) {
        let message = format!(
            "{name} has shape {:?}; for this plan it must have {rows} rows of {elements} elements",
            t.shape()
        );
        return Err(Error::new(Status::ShapeMismatch, message));
    }
    Ok(())
}

/// Bytes are sent from and received into dense tensors; others need workspace.
fn travels(plan: &GroupPlan, ((name, all), i): (Array<'_>, usize)) -> Result<()> {
    if plan.strided || all[i].is_dense() {
        return Ok(());
    }
    let message = format!(
        "{name}[{i}] has stride {:?} and is not dense; a plan takes that with MAGI_GROUP_STRIDED in args.flags",
        all[i].stride()
    );
    Err(Error::new(Status::InvalidStride, message))
}

fn same_rows(((name, all), i): (Array<'_>, usize), ((other, o), _): (Array<'_>, usize)) -> Result<()> {
    if all[i].shape()[1..] == o[i].shape()[1..] {
        return Ok(());
    }
    let message = format!(
        "{name}[{i}] has shape {:?}; behind the rows it must be that of {other}[{i}], {:?}",
        all[i].shape(),
        o[i].shape()
    );
    Err(Error::new(Status::ShapeMismatch, message))
}

/// Outputs share no memory with inputs or each other.
fn apart((written_name, outputs): Array<'_>, (read_name, inputs): Array<'_>) -> Result<()> {
    let names = |name: &str, count: usize| (0..count).map(|i| format!("{name}[{i}]")).collect::<Vec<_>>();
    let (of_outputs, of_inputs) = (names(written_name, outputs.len()), names(read_name, inputs.len()));
    let outputs: Vec<_> = of_outputs.iter().map(String::as_str).zip(outputs).collect();
    let inputs: Vec<_> = of_inputs.iter().map(String::as_str).zip(inputs).collect();
    written(&outputs, &inputs)
}

/// For lse tensors come in twos: out `[rows, heads, width]` and lse `[rows, heads]` in its accumulator type.
fn pairs(tensors: &[GroupTensor], partial: &[Tensor]) -> Result<()> {
    if !tensors.len().is_multiple_of(2) {
        return Err(Error::argument(format!(
            "op is lse, which takes pairs of out and lse; the plan has {} tensors",
            tensors.len()
        )));
    }
    for (i, pair) in partial.chunks_exact(2).enumerate() {
        let (out, lse, at) = (&pair[0], &pair[1], 2 * i + 1);
        let acc = out.dtype().accumulator();
        if lse.dtype() != acc {
            let message = format!(
                "partial[{at}] has dtype {}; the lse of partial[{}] must be {}",
                lse.dtype().name(),
                2 * i,
                acc.name()
            );
            return Err(Error::new(Status::DtypeMismatch, message));
        }
        if out.shape().len() != 3 || lse.shape() != &out.shape()[..2] {
            let message = format!(
                "partial[{}] and partial[{at}] have shapes {:?} and {:?}; they must be [rows, heads, width] and [rows, heads]",
                2 * i,
                out.shape(),
                lse.shape()
            );
            return Err(Error::new(Status::ShapeMismatch, message));
        }
    }
    Ok(())
}
