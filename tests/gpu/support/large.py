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


def enqueue(library, mask, args, backend=magi.SDPA):
    """Computes, with the textbook kernels unless told otherwise, and waits."""
    options = magi.FlexOptions(backend=backend)
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
    if not error <= 1e-10 * want.abs().max().item():
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


def around(t, n, window, q, k, v, dout, out, lse):
    """dq, dk and dv in f64 of token `t` of `n`, each of which sees `window` tokens up to itself; one key head."""
    lo, hi = max(0, t - window + 1), min(n, t + window)
    kk, vv = k[lo:hi, 0].double(), v[lo:hi, 0].double()
    distance = torch.arange(t, hi, device=DEVICE)[:, None] - torch.arange(lo, hi, device=DEVICE)[None]
    see = (distance >= 0) & (distance < window)
    dq, dk, dv = [], 0.0, 0.0
    for h in range(q.shape[1]):
        qq, dd = q[t:hi, h].double(), dout[t:hi, h].double()
        p = torch.exp(qq @ kk.T * q.shape[2] ** -0.5 - lse[t:hi, h, None].double()).masked_fill(~see, 0.0)
        delta = (dd * out[t:hi, h].double()).sum(1, keepdim=True)
        ds = p * (dd @ vv.T - delta) * q.shape[2] ** -0.5
        dq.append(ds[0] @ kk)
        dk, dv = dk + ds[:, t - lo] @ qq, dv + p[:, t - lo] @ dd
    return torch.stack(dq), dk[None], dv[None]


def longest_backward(suite, n=1 << 24, window=1024, d=128):
    """16M tokens of a window, so that offsets of elements pass 2^32 (2^31 where memory is short): some tokens computed again."""
    suite.cases += 1
    hq = 2 if torch.cuda.get_device_properties(0).total_memory > 100e9 else 1
    g = torch.Generator(device=DEVICE).manual_seed(3)
    make = lambda h: torch.randn(n, h, d, device=DEVICE, generator=g, dtype=torch.bfloat16)
    q, k, v, dout = make(hq), make(1), make(1), make(hq)
    out, lse = torch.empty_like(q), torch.empty(n, hq, device=DEVICE)
    found = [torch.full_like(t, math.nan) for t in (q, k, v)]
    names = ("q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv")
    described = {name: C.pointer(describe(t)) for name, t in zip(names, (q, k, v, out, lse, dout, *found))}
    slices = [(0, window, 0, window, magi.CAUSAL), (window, n, 1, n, magi.BI_CAUSAL)]
    mask = magi.Mask(suite.library, slices, n, n)
    for args in (magi.ForwardArgs(**{x: described[x] for x in names[:5]}), magi.BackwardArgs(**described)):
        enqueue(suite.library, mask, args, magi.DEFAULT)
    for name, t in zip(names[6:], found):
        if any(bool(part.isnan().any()) for part in t.split(1 << 20)):
            suite.fail("16M tokens", f"rows of {name} that were not written")
    for t in [0, 1, 1023, 1024, (1 << 23) - 1, 1 << 23, n - 129, n - 128, n - 1] + list(range(77, n, n // 40)):
        t = min(t, n - 1)
        for name, got, want in zip(names[6:], found, around(t, n, window, q, k, v, dout, out, lse)):
            # The second term: where a row sees few keys, dq and dk cancel.
            if not (got[t].double() - want).abs().max() <= 2.0**-6 * want.abs().max() + 1e-3:
                suite.fail("16M tokens", f"{name} of token {t}")
