#!/usr/bin/env python3
"""What else computes the same rows: cuDNN and FlashAttention-2 as PyTorch has them, FlexAttention compiled, and the matmul that is
the yardstick.

attention.py lets them take turns with the library. Alone: python3 bench/peers.py, with attention.py's options, times them without it.
"""
import math
import sys

import torch
import torch.nn.functional as F

MATMUL = 8192


class Unable(Exception):
    """This peer has no way to compute this row; the text says why."""


def matmul(device, seed):
    """A bf16 product of two random 8192 x 8192 matrices."""
    draw = torch.Generator(device=device).manual_seed(seed)
    a, b = (torch.randn(MATMUL, MATMUL, device=device, generator=draw).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def matmul_flops():
    """Floating-point operations of that product."""
    return 2 * MATMUL**3


def _leaves(data, layout):
    """q, k, v of a row, as [1, heads, tokens, dim] or [tokens, heads, dim]; leaves of autograd for backward."""
    tensors = (data.q, data.k, data.v)
    if layout == "bhsd":
        tensors = tuple(x.transpose(0, 1)[None] for x in tensors)
    return tuple(x.detach().requires_grad_(data.row.backward) for x in tensors)


def _finish(data, forward, leaves, layout):
    """(call, result): what is timed, and a function that gives out as [tokens, heads, dim]."""

    def result():
        with torch.no_grad():
            out = forward()
        return out[0].transpose(0, 1) if layout == "bhsd" else out

    if not data.row.backward:

        def call():
            with torch.no_grad():
                forward()

        return call, result
    out = forward()
    dout = data.dout.transpose(0, 1)[None] if layout == "bhsd" else data.dout
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True), result


def _dense(data):
    """Whether the mask is one document, full or causal; Unable otherwise."""
    mask = data.row.mask
    if mask.documents is None or len(mask.documents) != 2 or mask.window_left is not None or mask.block is not None:
        raise Unable("only full and causal masks of one document")
    if mask.total_q != mask.total_k:
        raise Unable("queries and keys differ in number")
    return mask.causal


def cudnn(data):
    """cuDNN through scaled_dot_product_attention."""
    causal, leaves = _dense(data), _leaves(data, "bhsd")
    grouped = data.row.heads_q != data.row.heads_kv
    # Once for the process: torch's context manager for this would cost each call host time.
    for choose in (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.enable_mem_efficient_sdp, torch.backends.cuda.enable_math_sdp):
        choose(False)
    torch.backends.cuda.enable_cudnn_sdp(True)

    def forward():
        return F.scaled_dot_product_attention(*leaves, is_causal=causal, enable_gqa=grouped)

    return _finish(data, forward, leaves, "bhsd")


def fa2(data):
    """FlashAttention-2: PyTorch's own build, through the operator below torch.nn.attention.varlen, which also takes windows."""
    mask, row = data.row.mask, data.row
    if mask.documents is None or mask.block is not None:
        raise Unable("only documents, causal or not, with or without a window")
    if row.head_dim != row.head_dim_v:
        raise Unable("head_dim_v must be head_dim")
    leaves = _leaves(data, "shd")
    lengths = [b - a for a, b in zip(mask.documents, mask.documents[1:])]
    ends = torch.tensor(mask.documents, dtype=torch.int32, device=data.device)
    window = {} if mask.window_left is None else {"window_size_left": mask.window_left, "window_size_right": 0}
    if len(lengths) == 1:
        batch = tuple(x[None] for x in leaves)

        def forward():
            return torch.ops.aten._flash_attention_forward(
                *batch, None, None, lengths[0], lengths[0], 0.0, mask.causal, False, scale=row.scale, **window
            )[0][0]
    else:

        def forward():
            return torch.ops.aten._flash_attention_forward(
                *leaves, ends, ends, max(lengths), max(lengths), 0.0, mask.causal, False, scale=row.scale, **window
            )[0]

    return _finish(data, forward, leaves, "shd")


def _mask_mod(mask, device):
    """FlexAttention's function of a mask; None for a full one."""
    ends = mask.documents
    terms = []
    if len(ends) > 2:
        owner = torch.repeat_interleave(
            torch.arange(len(ends) - 1, device=device), torch.tensor(ends, device=device).diff(), output_size=mask.total_q
        )
        terms.append(lambda q, k: owner[q] == owner[k])
    if mask.causal:
        terms.append(lambda q, k: q >= k)
    if mask.window_left is not None:
        left = mask.window_left
        terms.append(lambda q, k: q - k <= left)
    if mask.block is not None:
        # The end of the block that each query is in.
        stop = torch.tensor(
            [min(row + mask.block, b) for a, b in zip(ends, ends[1:]) for row in range(a, b, mask.block) for _ in range(min(mask.block, b - row))],
            device=device,
        )
        terms.append(lambda q, k: k < stop[q])
    if not terms:
        return None

    def mod(_batch, _head, q, k):
        seen = terms[0](q, k)
        for term in terms[1:]:
            seen = seen & term(q, k)
        return seen

    return mod


def flex(data):
    """FlexAttention, compiled. The first call of a shape takes seconds to minutes."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask, row = data.row.mask, data.row
    if mask.documents is None:
        raise Unable("no mask function for this mask")
    # Compiled anew for each row: beyond some number of shapes the compiler would give up and run it uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    mod = _mask_mod(mask, data.device)
    blocks = mod and create_block_mask(mod, None, None, mask.total_q, mask.total_k, device=data.device, _compile=True)
    leaves = _leaves(data, "bhsd")
    grouped = row.heads_q != row.heads_kv

    def forward():
        return compiled(*leaves, block_mask=blocks, enable_gqa=grouped)

    return _finish(data, forward, leaves, "bhsd")


PEERS = {"cudnn": cudnn, "fa2": fa2, "flex": flex}


def prepare(name, data):
    """(call, result) of a peer after one call of it. Raises Unable, also when the peer itself refuses."""
    try:
        call, result = PEERS[name](data)
        call()
        torch.cuda.synchronize()
    except Unable:
        raise
    # Whatever a peer fails with, the others are still to be timed.
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise Unable(f"{type(error).__name__}: {lines[0][:120] if lines else ''}") from error
    return call, result


def difference(a, b):
    """Relative difference of two results; NaN where one holds NaN."""
    a, b = a.float(), b.float()
    norm = b.norm().item()
    return (a - b).norm().item() / norm if norm else math.inf


if __name__ == "__main__":
    import attention

    sys.exit(attention.main([*sys.argv[1:], "--peers-only"]))
