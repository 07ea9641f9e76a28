#!/usr/bin/env python3
"""Calls with one mask on several streams at once, eager and captured, on a machine with torch: every result must have the bits that
one call alone gives, also when hundreds wait on each stream, when a graph runs beside calls that came long after it was captured, and
when the mask is destroyed while they are under way.

    tests/gpu/streams.py [--library libmagi_attn.so] [--calls 256]
"""
import argparse
import ctypes as C
import gc
import math
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))
from forward_calls import DEVICE, describe, magi  # noqa: E402

# Work for many more thread blocks than a launch has here, so that all take it from the counter; blocks of two launches fit the
# device side by side.
TOKENS, HEADS, DIM, MARGIN = 500, 16, 64, 120
# Clock cycles that a stream sleeps while calls gather behind it.
SLEEP = 60_000_000


class Side:
    """One stream, its inputs, and what each call on it must give."""

    def __init__(self, library, mask, seed, calls):
        g = torch.Generator(device=DEVICE).manual_seed(seed)
        make = lambda: torch.randn(TOKENS, HEADS, DIM, device=DEVICE, generator=g, dtype=torch.float32).to(torch.bfloat16)
        self.library, self.mask = library, mask
        self.qkv = [make() for _ in range(3)]
        self.stream = torch.cuda.Stream()
        self.out = torch.empty(calls, TOKENS, HEADS, DIM, device=DEVICE, dtype=torch.bfloat16)
        self.lse = torch.empty(calls, TOKENS, HEADS, device=DEVICE)
        self.calls = [self.call(i) for i in range(calls)]
        self.reset()
        self.calls[0]()
        torch.cuda.synchronize()
        self.want = self.out[0].clone(), self.lse[0].clone()
        self.reset()

    def call(self, i):
        described = [C.pointer(describe(t)) for t in (*self.qkv, self.out[i], self.lse[i])]
        args = magi.ForwardArgs(q=described[0], k=described[1], v=described[2], out=described[3], lse=described[4])
        options = magi.FlexOptions(sm_margin=MARGIN)
        assert self.library.workspace_bytes(args, options) == 0
        return self.library.enqueue(self.mask, args, options, self.stream.cuda_stream)

    def reset(self):
        self.out.fill_(math.nan)
        self.lse.fill_(math.nan)
        torch.cuda.synchronize()

    def sleep(self):
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(SLEEP)

    def wrong(self, calls):
        """How many of the first `calls` results have other bits."""
        out, lse = self.want
        good = (self.out[:calls] == out).flatten(1).all(1) & (self.lse[:calls] == lse).flatten(1).all(1)
        return calls - int(good.sum())


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--library")
    parse.add_argument("--calls", type=int, default=256)
    options = parse.parse_args()
    library, n, failures = magi.Library(options.library), options.calls, 0
    mask = magi.Mask(library, [(0, TOKENS, 0, TOKENS, magi.CAUSAL)], TOKENS, TOKENS)
    sides = [Side(library, mask, seed, n) for seed in (1, 2)]

    def judge(what, calls):
        nonlocal failures
        torch.cuda.synchronize()
        wrong = [side.wrong(calls) for side in sides]
        if any(wrong):
            failures += 1
            print(f"FAIL {what}: {wrong} of {calls} results on each stream are wrong", flush=True)
        for side in sides:
            side.reset()

    for side in sides:
        side.sleep()
    for a, b in zip(sides[0].calls, sides[1].calls):
        a()
        b()
    judge("calls in turns", n)
    for side in sides:
        side.sleep()
    for side in sides:
        for call in side.calls:
            call()
    judge("one stream's calls behind the other's", n)

    graphs = []
    for side in sides:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side.stream):
            side.calls[0]()
        graphs.append(graph)
    for i in range(n):
        with torch.cuda.stream(sides[0].stream):
            graphs[0].replay()
        sides[1].calls[0]()
        if i + 1 < n:
            torch.cuda.synchronize()
            if any(side.wrong(1) for side in sides):
                break
            for side in sides:
                side.out[0].fill_(math.nan)
            torch.cuda.synchronize()
    judge(f"a graph beside call {i}", 1)
    for side, graph in zip(sides, graphs):
        with torch.cuda.stream(side.stream):
            graph.replay()
    judge("two graphs", 1)

    for side in sides:
        side.sleep()
        for call in side.calls:
            call()
    handle, mask.handle = mask.handle, None
    library.c.magi_mask_destroy(handle)
    judge("a mask destroyed under way", n)
    sides.clear()
    gc.collect()
    print(f"{2 * n} calls at once, {failures} failures", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
