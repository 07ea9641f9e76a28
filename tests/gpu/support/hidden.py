"""What a tile of a kernel does not see may hold anything, also where other tiles see it.

For each tile in turn all tokens that none of its rows sees hold NaN; its rows must then have the bits that they have without.
"""
import math
import random

import torch

import backward_calls
import forward_calls
import magi
from forward_calls import DEVICE, HEAD_DIMS, bits, visible

BF16, F16 = torch.bfloat16, torch.float16

# Every edge lies inside a step, and most tiles meet several slices.
DOCUMENTS = [(a, min(a + 333, 1100), a, min(a + 333, 1100), magi.CAUSAL) for a in range(0, 1100, 333)]
WINDOW = [(0, 101, 0, 101, magi.CAUSAL), (101, 1100, 1, 1100, magi.BI_CAUSAL)]
PREFIX = [(0, 700, 0, 37, magi.FULL), (0, 700, 37, 737, magi.CAUSAL), (700, 1100, 411, 1001, magi.INV_CAUSAL)]
CELLS = [(a, a + 50, b, b + 50, (a + 3 * b) // 50 % 4) for a in range(0, 1100, 50) for b in range(0, 1100, 50) if (a * 7 + b * 3) // 50 % 3]
MASKS = {"documents": DOCUMENTS, "window": WINDOW, "prefix": PREFIX, "cells": CELLS}
TOKENS = 1100

# Long rows, which are cut into pieces, and few queries, whose heads are packed: 8 queries of 16 heads a tile.
LONG = [(0, 130, 0, 4001, magi.CAUSAL), (130, 300, 2500, 7777, magi.BI_CAUSAL)]
FEW = [(a, min(a + 3, 20), 150 * a, 150 * a + 1999, magi.CAUSAL) for a in range(0, 20, 3)]


def hide(inputs, clean, unseen):
    """NaN in the tokens `unseen` of the inputs, what `clean` holds in the others."""
    for t, values in zip(inputs, clean):
        t.copy_(values)
        t[unseen] = math.nan


def forward_case(suite, what, slices, call, tile, ranges=False):
    """`tile`: queries of a tile, or a multiple of it."""
    suite.cases += 1
    tq, tk = call.q.shape[0], call.k.shape[0]
    see = visible(slices, tq, tk)
    bound = forward_calls.Bound(suite.library, call, slices, ranges=ranges)
    inputs = bound.inputs[1:]
    clean = [t.clone() for t in inputs]
    bound.run()
    want = bits(bound.out), bits(bound.lse)
    if bool(bound.out.isnan().any()):
        suite.fail(what, "NaN without any in the inputs")
    for a in range(0, tq, tile):
        rows = slice(a, min(a + tile, tq))
        hide(inputs, clean, ~see[rows].any(0))
        bound.run()
        if not all(torch.equal(t[rows], bits(got)[rows]) for t, got in zip(want, (bound.out, bound.lse))):
            suite.fail(what, f"NaN that rows {rows.start} to {rows.stop} do not see changes them")


def forward(suite):
    """Tiles have 128 queries, those of the plain form 192 where heads are of 64, less where heads are packed."""
    rng = random.Random(17)
    call = lambda dims, dtype=BF16, tq=TOKENS, tk=TOKENS, heads=(4, 2), **o: forward_calls.Call(rng, tq, tk, heads, dims, dtype, **o)
    for name, slices in MASKS.items():
        for dims in HEAD_DIMS:
            for dtype in (BF16, F16):
                what = f"NaN beside a tile, {name}, {dims}, {dtype}"
                forward_case(suite, what, slices, call(dims, dtype), 192 if dims == (64, 64) else 128)
        for dims, tile in (((64, 64), 192), ((128, 128), 128), ((256, 256), 128)):
            forward_case(suite, f"NaN beside a tile, {name}, {dims}, ranges", slices, call(dims), tile, ranges=True)
        for dims in ((64, 64), (128, 128)):
            options = {"sink": ("shared", 2, 1.0), "strided": True}
            forward_case(suite, f"NaN beside a tile, {name}, {dims}, sinks", slices, call(dims, **options), 128)
    for dims in ((64, 64), (128, 128)):
        forward_case(suite, f"NaN beside a tile, pieces, {dims}", LONG, call(dims, tq=300, tk=7777, heads=(2, 1)), 128)
        forward_case(suite, f"NaN beside a tile, packed heads, {dims}", FEW, call(dims, tq=20, tk=4849, heads=(16, 1)), 8)


def backward_case(suite, what, slices, call, tile, ranges=False):
    """`tile`: keys of a tile. Of queries the deterministic kernel has 128."""
    suite.cases += 1
    tq, tk = call.q.shape[0], call.k.shape[0]
    see = visible(slices, tq, tk)
    call.sees, call.seen = see.any(1), see.any(0)
    out, lse, _ = backward_calls.gradients(call, see, torch.float64)
    source = backward_calls.Ranges(slices) if ranges else magi.Mask(suite.library, slices, tq, tk)
    bound = backward_calls.Bound(suite.library, call, source, out, lse, max(1, len(slices) * (max(tq, tk) // 64 + 1)) if ranges else 0)
    q, k, v, dout = bound.inputs
    tensors = (q, dout, bound.out, bound.lse, k, v)
    clean = [t.clone() for t in tensors]

    def run():
        bound.poison()
        bound.enqueue()
        torch.cuda.synchronize()
        return bound.bits()

    want = run()
    if any(bool(t.isnan().any()) for t in bound.results.values()):
        suite.fail(what, "NaN without any in the inputs")
    for a in range(0, tk, tile):
        keys = slice(a, min(a + tile, tk))
        hide(tensors[:4], clean[:4], ~see[:, keys].any(1))
        found = run()
        if not all(torch.equal(want[n][keys], found[n][keys]) for n in ("dk", "dv")):
            suite.fail(what, f"NaN that does not see keys {keys.start} to {keys.stop} changes them")
    hide(tensors[:4], clean[:4], torch.zeros(tq, dtype=torch.bool, device=DEVICE))
    for a in range(0, tq if call.deterministic else 0, 128):
        rows = slice(a, min(a + 128, tq))
        hide(tensors[4:], clean[4:], ~see[rows].any(0))
        if not torch.equal(want["dq"][rows], run()["dq"][rows]):
            suite.fail(what, f"NaN that queries {rows.start} to {rows.stop} do not see changes them")


def backward(suite):
    rng = random.Random(19)
    for name, slices in MASKS.items():
        for dims in HEAD_DIMS:
            tile = 128 if max(dims) <= 128 else 64
            for dtype, deterministic in ((BF16, False), (BF16, True), (F16, False)):
                call = backward_calls.Call(rng, TOKENS, TOKENS, (4, 2), dims, dtype, deterministic=deterministic)
                backward_case(suite, f"NaN beside a tile, {name}, {dims}, {dtype}, deterministic {deterministic}", slices, call, tile)
        for dims, tile in (((128, 128), 128), ((256, 256), 64)):
            call = backward_calls.Call(rng, TOKENS, TOKENS, (4, 2), dims, BF16, deterministic=True)
            backward_case(suite, f"NaN beside a tile, {name}, {dims}, ranges", slices, call, tile, ranges=True)
