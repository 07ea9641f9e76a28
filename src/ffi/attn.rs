//! Attention over the ranks of a key.

use super::input::{optional_tensor, sized, tensor};
use super::key::{magi_key, stream_of, with_key};
use super::plain::{magi_stream, magi_tensor};
use crate::runtime::{attn_args, backward, forward};
use crate::types::{Error, Result, Status};

/// dq is added to what it holds.
pub const MAGI_ACCUMULATE_DQ: u32 = 1;
/// dk is added to what it holds.
pub const MAGI_ACCUMULATE_DK: u32 = 2;
/// dv is added to what it holds.
pub const MAGI_ACCUMULATE_DV: u32 = 4;
/// dsink is added to what it holds.
pub const MAGI_ACCUMULATE_DSINK: u32 = 8;

/// Arguments of magi_calc_attn_forward. Start from MAGI_FORWARD_ARGS_INIT. "acc" is the accumulator type: f64 for f64
/// tensors, else f32.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct magi_forward_args {
    /// sizeof(magi_forward_args).
    pub size: usize,
    /// `[local q tokens, heads_q, head_dim]`.
    pub q: *const magi_tensor,
    /// `[local k tokens, heads_kv, head_dim]`.
    pub k: *const magi_tensor,
    /// `[local k tokens, heads_kv, head_dim_v]`.
    pub v: *const magi_tensor,
    /// NULL, or f32 `[s, heads_q]` shared by all queries (the same on every rank), or f32 `[local q tokens, s, heads_q]`;
    /// 1 to 8 sinks. A sink is a key of value 0 whose logit is given, neither scaled nor capped.
    pub sink: *const magi_tensor,
    /// Factor on q . k; 0 means 1 / sqrt(head_dim).
    pub softmax_scale: f64,
    /// Logits become softcap * tanh(logit / softcap); 0 leaves them. Else at least 1e-100.
    pub softcap: f64,
    /// Output `[local q tokens, heads_q, head_dim_v]`, in the input dtype or acc. Rows that see nothing are 0.
    pub out: *const magi_tensor,
    /// Output acc `[local q tokens, heads_q]`, natural logarithm, sink included, -inf for rows that see nothing; may be
    /// NULL. Backward needs it.
    pub lse: *const magi_tensor,
    /// Output f32 `[heads_q]`: largest scaled and capped logit over all ranks, sink excluded, -inf if there is none; may
    /// be NULL, on all ranks or on none.
    pub max_logits: *const magi_tensor,
}

/// Arguments of magi_calc_attn_backward. Start from MAGI_BACKWARD_ARGS_INIT. "acc" is the accumulator type: f64 for f64
/// tensors, else f32.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct magi_backward_args {
    /// sizeof(magi_backward_args).
    pub size: usize,
    /// As in forward.
    pub q: *const magi_tensor,
    /// As in forward.
    pub k: *const magi_tensor,
    /// As in forward.
    pub v: *const magi_tensor,
    /// As in forward.
    pub sink: *const magi_tensor,
    /// What forward returned, in the input dtype or acc.
    pub out: *const magi_tensor,
    /// What forward returned.
    pub lse: *const magi_tensor,
    /// Gradient of out, `[local q tokens, heads_q, head_dim_v]`, input dtype.
    pub dout: *const magi_tensor,
    /// As in forward.
    pub softmax_scale: f64,
    /// As in forward.
    pub softcap: f64,
    /// Output like q, in the input dtype or acc.
    pub dq: *const magi_tensor,
    /// Output like k, in the input dtype or acc.
    pub dk: *const magi_tensor,
    /// Output like v, in the input dtype or acc.
    pub dv: *const magi_tensor,
    /// Output like sink, in acc; NULL exactly when sink is NULL. For a shared sink this rank's part of the sum over
    /// queries, reduced over ranks as the key's config says.
    pub dsink: *const magi_tensor,
    /// MAGI_ACCUMULATE_*: outputs that are added to instead of overwritten.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// Reads the tensors of a forward call.
///
/// # Safety
/// Every pointer in `a` must be NULL or a descriptor as magi_tensor says.
pub(super) unsafe fn forward_of(a: &magi_forward_args) -> Result<attn_args::Forward> {
    // SAFETY: the caller's promise.
    unsafe {
        Ok(attn_args::Forward {
            q: tensor("args.q", a.q)?,
            k: tensor("args.k", a.k)?,
            v: tensor("args.v", a.v)?,
            sink: optional_tensor("args.sink", a.sink)?,
            softmax_scale: a.softmax_scale,
            softcap: a.softcap,
            out: tensor("args.out", a.out)?,
            lse: optional_tensor("args.lse", a.lse)?,
            max_logits: optional_tensor("args.max_logits", a.max_logits)?,
        })
    }
}

/// Reads the tensors of a backward call.
///
/// # Safety
/// As `forward_of`.
pub(super) unsafe fn backward_of(a: &magi_backward_args) -> Result<attn_args::Backward> {
    let known = MAGI_ACCUMULATE_DQ | MAGI_ACCUMULATE_DK | MAGI_ACCUMULATE_DV | MAGI_ACCUMULATE_DSINK;
    if a.flags & !known != 0 {
        return Err(Error::argument(format!(
            "args.flags is {:#x}; only the bits of {known:#x} are known",
            a.flags
        )));
    }
    if a.reserved != 0 {
        return Err(Error::argument(format!(
            "args.reserved is {}; it must be 0",
            a.reserved
        )));
    }
    // SAFETY: the caller's promise.
    unsafe {
        Ok(attn_args::Backward {
            q: tensor("args.q", a.q)?,
            k: tensor("args.k", a.k)?,
            v: tensor("args.v", a.v)?,
            sink: optional_tensor("args.sink", a.sink)?,
            out: tensor("args.out", a.out)?,
            lse: tensor("args.lse", a.lse)?,
            dout: tensor("args.dout", a.dout)?,
            softmax_scale: a.softmax_scale,
            softcap: a.softcap,
            dq: tensor("args.dq", a.dq)?,
            dk: tensor("args.dk", a.dk)?,
            dv: tensor("args.dv", a.dv)?,
            dsink: optional_tensor("args.dsink", a.dsink)?,
            accumulate_dq: a.flags & MAGI_ACCUMULATE_DQ != 0,
            accumulate_dk: a.flags & MAGI_ACCUMULATE_DK != 0,
            accumulate_dv: a.flags & MAGI_ACCUMULATE_DV != 0,
            accumulate_dsink: a.flags & MAGI_ACCUMULATE_DSINK != 0,
        })
    }
}

/// Attention of this rank's queries over all keys that they see, on whichever rank those are.
///
/// Errors: NULL_POINTER, STRUCT_SIZE, SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_STRIDE, DEVICE_MISMATCH, TENSOR_OVERLAP,
/// INVALID_ARGUMENT, HANDLE_BUSY, COMM_DESTROYED, POISONED; PLAN_MISMATCH, OUT_OF_MEMORY when the key was not prepared;
/// COMM_FAILED, TIMEOUT, ABORTED; on a CUDA device NOT_SUPPORTED (config.backend is FFA and cannot compute this call, or a
/// captured stream with more than one rank), CUDA_FAILED. Collective: every rank of the key calls it, also one without
/// tokens.
///
/// # Safety
/// `args` must be NULL or as its type says, its tensors as magi_tensor says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_calc_attn_forward(
    key: Option<&magi_key>,
    args: *const magi_forward_args,
    stream: magi_stream,
) -> Status {
    with_key("magi_calc_attn_forward", key, |k| {
        // SAFETY: the caller's promise.
        let args = unsafe { forward_of(&sized("args", args)?) }?;
        forward::run(k, &args, stream_of(stream))
    })
}

/// Gradients of magi_calc_attn_forward for the tokens that this rank owns. Keys travel again; nothing but out and lse is
/// kept from forward.
///
/// Errors: as magi_calc_attn_forward. Collective.
///
/// # Safety
/// As magi_calc_attn_forward.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn magi_calc_attn_backward(
    key: Option<&magi_key>,
    args: *const magi_backward_args,
    stream: magi_stream,
) -> Status {
    with_key("magi_calc_attn_backward", key, |k| {
        // SAFETY: the caller's promise.
        let args = unsafe { backward_of(&sized("args", args)?) }?;
        backward::run(k, &args, stream_of(stream))
    })
}
