"""Masks too large to be held as a matrix: the fast kernels against the textbook kernels in f64, which run on the device too.

Those are compared with f64 by torch in the last rows; how far off a rounding textbook is (docs/kernels.md, "Accuracy") is computed
some rows at a time.
"""
import copy
import ctypes as C
import math

import torch

import backward_calls
import forward_calls
import magi
from forward_calls import DEVICE, describe, softmax, visible

ROWS = 4096  # computed at once
LAST = 256  # rows in which the textbook kernels are checked


def heads(dims):
    """Few: products in f64 without tensor cores take seconds."""
    return (2, 1) if max(dims) <= 128 else (1, 1)


def parts(call, slices):
    """Calls of some rows each, and what those see."""
    tq, tk = call.q.shape[0], call.k.shape[0]
    for a in range(0, tq, ROWS):
        part = copy.copy(call)
        part.q = call.q[a : a + ROWS]
        if hasattr(call, "dout"):
            part.dout, part.sees = call.dout[a : a + ROWS], call.sees[a : a + ROWS]
        yield part, visible(slices, part.q.shape[0], tk, a)


def enqueue(library, mask, args):
    """Computes with the textbook kernels, and waits."""
    options = magi.FlexOptions(backend=magi.SDPA)
    needed = library.workspace_bytes(args, options)
    space = torch.empty(max(1, needed), dtype=torch.uint8, device=DEVICE)
    options.workspace, options.workspace_size = space.data_ptr(), needed
    library.enqueue(mask, args, options, torch.cuda.current_stream().cuda_stream)()
    torch.cuda.synchronize()


def exact_forward(library, call, mask):
    """Inputs, out and lse in f64."""
    tensors = {name: getattr(call, name).double() for name in ("q", "k", "v")}
    tq, hq = call.q.shape[:2]
    tensors["out"] = torch.full((tq, hq, call.v.shape[2]), math.nan, device=DEVICE, dtype=torch.float64)
    tensors["lse"] = torch.full((tq, hq), math.nan, device=DEVICE, dtype=torch.float64)
    enqueue(library, mask, magi.ForwardArgs(**{n: C.pointer(describe(t)) for n, t in tensors.items()}))
    return tensors


def near(suite, what, found, want):
    """Fails unless f64 results are the same but for the last digits."""
    error = (found - want).abs().max().item()
    if not error <= 1e-11 * want.abs().max().item():
        suite.fail(what, f"the textbook kernels are off by {error}")


def last(call, slices):
    """The last rows of a call as one of their own, and what they see."""
    part = copy.copy(call)
    tq, tk = call.q.shape[0], call.k.shape[0]
    part.q = call.q[tq - LAST :]
    if hasattr(call, "dout"):
        part.dout, part.sees = call.dout[tq - LAST :], call.sees[tq - LAST :]
    return part, visible(slices, LAST, tk, tq - LAST)


def forward(suite, what, slices, call):
    """A forward call with neither sinks nor an earlier result."""
    suite.cases += 1
    tq, tk = call.q.shape[0], call.k.shape[0]
    exact = exact_forward(suite.library, call, magi.Mask(suite.library, slices, tq, tk))
    part, see = last(call, slices)
    near(suite, what, exact["out"][tq - LAST :], softmax(part, call.k, call.v, see, torch.float64)[0])
    bound = forward_calls.Bound(suite.library, call, slices)
    bound.run()
    textbook = torch.cat([softmax(part, call.k, call.v, see, torch.float32, rounded=True)[0] for part, see in parts(call, slices)])
    suite.compare(what, call, bound.out, bound.lse, None, (exact["out"], exact["lse"], None), textbook)


def exact_backward(library, call, mask):
    """out, lse and the gradients by name, in f64."""
    tensors = exact_forward(library, call, mask)
    tensors["dout"] = call.dout.double()
    found = {"d" + n: torch.full_like(tensors[n], math.nan) for n in ("q", "k", "v")}
    enqueue(library, mask, magi.BackwardArgs(**{n: C.pointer(describe(t)) for n, t in {**tensors, **found}.items()}))
    return tensors["out"], tensors["lse"], found


def rounded_backward(call, slices):
    """Gradients as a textbook has them that rounds; leaves the largest P of each head in `call.most`."""
    found = {"dq": [], "dk": 0.0, "dv": 0.0}
    call.most = torch.zeros(call.q.shape[1], device=DEVICE, dtype=torch.float64)
    for part, see in parts(call, slices):
        _, _, some = backward_calls.gradients(part, see, torch.float32, rounded=True)
        found["dq"].append(some["dq"])
        found["dk"], found["dv"] = found["dk"] + some["dk"], found["dv"] + some["dv"]
        call.most = torch.maximum(call.most, part.most)
    return {**found, "dq": torch.cat(found["dq"])}


def backward(suite, what, slices, call, forms=(False, True)):
    """A backward call without sinks, in which every query and every key sees something; `forms`: deterministic or not."""
    tq, tk = call.q.shape[0], call.k.shape[0]
    call.sees, call.seen = (torch.ones(n, dtype=torch.bool, device=DEVICE) for n in (tq, tk))
    mask = magi.Mask(suite.library, slices, tq, tk)
    out, lse, exact = exact_backward(suite.library, call, mask)
    part, see = last(call, slices)
    near(suite, what, exact["dq"][tq - LAST :], backward_calls.gradients(part, see, torch.float64)[2]["dq"])
    textbook = rounded_backward(call, slices)
    for call.deterministic in forms:
        suite.cases += 1
        bound = backward_calls.Bound(suite.library, call, mask, out, lse)
        bound.poison()
        bound.enqueue()
        torch.cuda.synchronize()
        suite.compare(f"{what}, deterministic {call.deterministic}", call, bound.results, exact, textbook)
