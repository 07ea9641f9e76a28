//! Everything that can be wrong with the tensors of a group collective, found before anything is done.

use super::check::{place_on, written};
use super::group::ReduceOp;
use super::group_lists::GroupTensor;
use super::group_plan::GroupPlan;
use crate::device::Stream;
use crate::types::{DType, Error, Result, Status, Tensor};

/// Tensors that a parameter is an array of, with the parameter's name.
type Array<'a> = (&'a str, &'a [Tensor]);

/// Everything about a cast.
pub(super) fn cast(plan: &GroupPlan, local: &[Tensor], received: &[Tensor], stream: Stream) -> Result<()> {
    let (input, output) = (("local", local), ("received", received));
    plan.check_stream(stream)?;
    plan.context().check_open()?;
    plan.expect_count(local.len())?;
    plan.expect_count(received.len())?;
    for (i, t) in plan.tensors.iter().enumerate() {
        let wire = [t.dtype];
        tensor(plan, (input, i), &wire, plan.local_rows)?;
        tensor(plan, (output, i), &wire, plan.received_rows)?;
        travels(plan, (input, i))?;
        travels(plan, (output, i))?;
        same_rows((output, i), (input, i))?;
    }
    apart(output, input)
}

/// Everything about a reduction.
pub(super) fn reduce(
    plan: &GroupPlan,
    op: ReduceOp,
    partial: &[Tensor],
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
    plan.expect_count(local.len())?;
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
    apart(output, input)
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
