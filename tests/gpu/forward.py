#!/usr/bin/env python3
"""Checks magi_flex_flash_attn_forward on a CUDA device against f64, on a machine with torch: every listed mask, random
masks, and every option, within the bounds of docs/kernels.md, "Accuracy"; the same masks as ranges in device memory, which a
captured graph finds changed, and lists that cannot be made. Outputs are poisoned, tokens that nothing sees hold NaN, and in
turn those that one tile does not see; every call is repeated for equal bits.

    tests/gpu/forward.py [--library libmagi_attn.so] [--random 300] [--only NAME] [--seed 0]
"""
import argparse
import ctypes as C
import math
import os
import random
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "support"))
from forward_calls import (DEVICE, HEAD_DIMS, MASKS, ULP, Bound, Call, NoMask, Ranges, bits, describe, intact,  # noqa: E402
                           listed, magi, random_mask, softmax, visible)
import hidden  # noqa: E402
import large  # noqa: E402


class Suite:
    def __init__(self, library):
        self.library, self.cases, self.failures, self.worst, self.began = library, 0, 0, 0.0, time.monotonic()

    def fail(self, what, why):
        self.failures += 1
        print(f"FAIL {what}: {why}", flush=True)

    def report(self, what):
        seconds = time.monotonic() - self.began
        print(f"{what}: {self.cases} cases, {self.failures} failures, worst at {self.worst:.3f} of its bound, {seconds:.1f} s", flush=True)

    def run(self, what, slices, tq, tk, call, repeats=2, ranges=False):
        self.cases += 1
        see = visible(slices, tq, tk)
        unseen = ~see.any(0) if tk else torch.zeros(0, dtype=torch.bool, device=DEVICE)
        call.k[unseen], call.v[unseen] = math.nan, math.nan
        k, v, seen, earlier = call.k, call.v, see, None
        if call.accumulate:
            earlier = softmax(call, call.old_k, call.old_v, call.old_see, torch.float64)
            k, v, seen = torch.cat([k, call.old_k]), torch.cat([v, call.old_v]), torch.cat([see, call.old_see], 1)
        bound = Bound(self.library, call, slices, earlier, ranges)
        first = None
        for _ in range(repeats):
            bound.run()
            found = [bits(t) for t in bound.results]
            if first and not all(torch.equal(a, b) for a, b in zip(first, found)):
                self.fail(what, "another run gave other bits")
            first = first or found
        if not intact(bound.out):
            self.fail(what, "something was written beside out")
        self.compare(what, call, *bound.results, softmax(call, k, v, seen, torch.float64),
                     softmax(call, k, v, seen, torch.float32, rounded=True)[0])

    def simple(self, tq, tk, slices, room=None, max_items=0):
        """A call over ranges, out, lse, the ranges, and a function that enqueues it on the current stream."""
        call = Call(random.Random(5), tq, tk, (4, 2), (128, 128), torch.bfloat16)
        out = torch.full((tq, 4, 128), math.nan, device=DEVICE, dtype=torch.bfloat16)
        lse = torch.full((tq, 4), math.nan, device=DEVICE)
        lists, options = Ranges(slices, room), magi.FlexOptions(max_items=max_items)
        lists.into(options)
        described = [C.pointer(describe(t)) for t in (call.q, call.k, call.v, out, lse)]
        args = magi.ForwardArgs(q=described[0], k=described[1], v=described[2], out=described[3], lse=described[4])
        needed = self.library.workspace_bytes(args, options)
        space = torch.full((needed,), 0xFF, dtype=torch.uint8, device=DEVICE)
        options.workspace, options.workspace_size = space.data_ptr(), needed
        self.library.prepare(NoMask(), args, options)

        def enqueue():
            stream = torch.cuda.current_stream().cuda_stream
            self.library.enqueue(NoMask(), args, options, stream)()

        enqueue.keep = (space, described, args, options)
        return call, out, lse, lists, enqueue

    def refused(self, what, enqueue, status, part):
        try:
            enqueue()
            self.fail(what, "the call says nothing")
        except magi.Error as e:
            if e.status != status or part not in str(e):
                self.fail(what, f"the call says {e}")

    def replay(self):
        """A captured call reads the ranges that are there when the graph runs. Cells covered twice count twice."""
        tq, tk, n = 1337, 900, 12
        call, out, lse, lists, enqueue = self.simple(tq, tk, [], room=n, max_items=n * 32)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            enqueue()
        rng = random.Random(7)
        masks = [[(0, tq, 0, tk, magi.CAUSAL)], [(5, 900, 3, 700, magi.BI_CAUSAL), (1000, 1337, 0, 900, magi.FULL)], []]
        while len(masks) < 12:
            slices, a, b = random_mask(rng)
            if a <= tq and b <= tk and len(slices) <= n:
                masks.append(slices)
        for i, slices in enumerate(masks):
            self.cases += 1
            lists.set(slices)
            out.fill_(math.nan)
            lse.fill_(math.nan)
            graph.replay()
            torch.cuda.synchronize()
            see = visible(slices, tq, tk)
            self.compare(f"graph replay {i}: {slices}", call, out, lse, None, softmax(call, call.k, call.v, see, torch.float64),
                         softmax(call, call.k, call.v, see, torch.float32, rounded=True)[0])
        lists.set([(0, tq, 0, tk, magi.FULL)])
        graph.replay()
        torch.cuda.synchronize()
        once = lse.clone()
        lists.set([(0, tq, 0, tk, magi.FULL), (-9, tq + 9, -9, tk + 9, magi.FULL)])
        graph.replay()
        torch.cuda.synchronize()
        self.cases += 1
        if not torch.allclose(lse, once + math.log(2), atol=1e-3):
            self.fail("ranges twice", "lse is not larger by log 2")

    def impossible(self):
        """Lists that cannot be made: NaN, told by the next call, which computes nothing; the one after it computes."""
        for what, slices, room, status, part in (
            ("type", [(0, 300, 0, 300, 0), (0, 9, 0, 9, 7)], 0, 103, "options.mask_types[1]"),
            ("room", [(0, 300, 0, 300, 0), (0, 300, 0, 9, 1)], 2, 109, "options.max_items"),
        ):
            self.cases += 1
            _, out, lse, lists, enqueue = self.simple(300, 300, slices, max_items=room)
            out.zero_()
            lse.zero_()
            enqueue()
            torch.cuda.synchronize()
            if not bool(out.isnan().all()) or not bool(lse.isnan().all()):
                self.fail(what, "outputs are not NaN")
            lists.set([(0, 128, 0, 300, magi.FULL), (0, 0, 0, 0, 0)])
            self.refused(what, enqueue, status, part)
            enqueue()
            torch.cuda.synchronize()
            if bool(out.isnan().any()) or bool(lse[:128].isinf().any()) or not bool((lse[128:] == -math.inf).all()):
                self.fail(what, "the call after it is wrong")

    def compare(self, what, call, out, lse, maxima, reference, textbook):
        want, want_lse, want_max = reference
        textbook = textbook.to(call.out_dtype).double()
        error = (out.double() - want).abs().amax((0, 2)) if out.numel() else torch.zeros(out.shape[1])
        if out.numel():
            bound = 2 * (textbook - want).abs().amax((0, 2)) + ULP[call.dtype] / 4 * want.abs().amax((0, 2))
            worst = torch.where(error == 0, torch.zeros_like(error), error / bound).max().item()
            self.worst = max(self.worst, worst if worst == worst else math.inf)
            if not worst <= 1:
                self.fail(what, f"out is at {worst:.3f} of its bound")
            empty = want_lse.isinf()
            if not bool((lse[empty].double() == want_lse[empty]).all()) or not bool((out[empty] == 0).all()):
                self.fail(what, "rows that see nothing are not 0 and -inf")
            off = (lse.double() - want_lse)[~empty].abs() / (1e-4 + 1e-6 * want_lse[~empty].abs())
            if off.numel() and not off.max().item() <= 1:
                self.fail(what, f"lse is at {off.max().item():.3f} of its bound")
        if call.maxima:
            none = want_max.isinf()
            off = (maxima.double() - want_max)[~none].abs() / (1e-3 + 1e-3 * want_max[~none].abs())
            if not bool((maxima[none] == -math.inf).all()) or (off.numel() and not off.max().item() <= 1):
                self.fail(what, "max_logits")


def repeated(suite, rng):
    """Twenty runs give the same bits: whole tiles, tiles in pieces that whoever comes last joins, packed heads, every option."""
    for what, slices, tq, tk, heads in (
        ("documents", [(a, a + 333, a, a + 333, magi.CAUSAL) for a in range(0, 1332, 333)], 1332, 1332, (8, 2)),
        ("pieces", [(0, 300, 0, 20011, magi.CAUSAL)], 300, 20011, (2, 1)),
        ("packed heads", [(0, 9, 0, 9000, magi.FULL)], 9, 9000, (16, 1)),
    ):
        twenty = lambda name, call, **o: suite.run(f"twenty runs, {what}, {name}", slices, tq, tk, call, repeats=20, **o)
        for dims in HEAD_DIMS:
            for dtype in (torch.bfloat16, torch.float16):
                twenty(f"{dims}, {dtype}", Call(rng, tq, tk, heads, dims, dtype))
        for dims in ((64, 64), (128, 128)):
            for options in ({"sink": ("shared", 3, 1.0)}, {"sink": ("tokens", 8, 1.0)}, {"accumulate": True}, {"out_f32": True}):
                twenty(f"{dims}, {options}", Call(rng, tq, tk, heads, dims, torch.bfloat16, **options))
            twenty(f"{dims}, ranges", Call(rng, tq, tk, heads, dims, torch.bfloat16), ranges=True)
        for options in ({"softcap": 15.0}, {"softcap": 15.0, "maxima": True}, {"maxima": True, "accumulate": True}):
            twenty(f"{options}", Call(rng, tq, tk, heads, (128, 128), torch.bfloat16, **options))


def switched(suite, rng):
    """Softcap and maxima beyond the dtype and head dimension that random calls have them for: each is a kernel to compile."""
    n = 700
    masks = ([(0, n, 0, n, magi.CAUSAL)], [(a, min(a + 99, n), a // 2, a // 2 + 301, magi.BI_CAUSAL) for a in range(0, n, 99)])
    for dtype, dims, options in (
        (torch.float16, (64, 64), {"softcap": 15.0, "maxima": True}),
        (torch.bfloat16, (256, 256), {"softcap": 15.0, "maxima": True, "sink": ("shared", 2, 1.0)}),
        (torch.float16, (192, 128), {"maxima": True, "accumulate": True}),
        (torch.bfloat16, (128, 128), {"softcap": 15.0, "maxima": True, "accumulate": True}),
    ):
        for slices in masks:
            for ranges in (False, True):
                what = f"{dtype}, {dims}, {options}, {len(slices)} slices, ranges {ranges}"
                suite.run(what, slices, n, n, Call(rng, n, n, (4, 2), dims, dtype, **options), ranges=ranges)


def edges(suite, rng):
    """Maxima below 0 where the last tile is short, numbers at the ends of what f32 carries, and a NaN among sinks."""
    for tq, heads in ((100, (2, 2)), (389, (3, 3)), (3, (8, 1))):
        call = Call(rng, tq, 1000, heads, (128, 128), torch.bfloat16, maxima=True)
        call.q.fill_(1)
        call.k = -(call.k.abs() + 0.5)
        suite.run(f"maxima below 0, {tq} queries", [(0, tq, 0, 1000, magi.FULL)], tq, 1000, call)
    n = 200
    for scale, softcap in ((1e-6, 0), (1e-46, 0), (1e-60, 0), (100.0, 0), (-0.1, 0), (0, 0.5), (0, 300.0), (0, 1e3), (0, 1e4), (0, 1e9)):
        call = Call(rng, n, n, (2, 1), (128, 128), torch.bfloat16, scale=scale, softcap=softcap)
        suite.run(f"scale {scale}, softcap {softcap}", [(0, n, 0, n, magi.CAUSAL)], n, n, call)
    n = 2500
    cells = [(a, a + 50, b, b + 50, rng.randrange(4)) for a in range(0, n, 50) for b in range(0, n, 50)]
    for ranges in (False, True):
        suite.run("2,500 slices of 50 x 50", cells, n, n, Call(rng, n, n, (2, 1), (128, 128), torch.bfloat16), ranges=ranges)
    n = 200
    for sinks in ([math.nan], [1.0, math.nan], [math.nan, -math.inf]):
        suite.cases += 1
        call = Call(rng, n, n, (2, 1), (128, 128), torch.bfloat16)
        out, lse = torch.zeros_like(call.q), torch.zeros(n, 2, device=DEVICE)
        sink = torch.tensor(sinks, device=DEVICE)[:, None].expand(-1, 2).contiguous()
        q, k, v, o, l, s = (C.pointer(describe(t)) for t in (call.q, call.k, call.v, out, lse, sink))
        args, options = magi.ForwardArgs(q=q, k=k, v=v, out=o, lse=l, sink=s), magi.FlexOptions()
        suite.library.enqueue(magi.Mask(suite.library, [(9, n, 0, n, magi.FULL)], n, n), args, options)()
        torch.cuda.synchronize()
        if not bool(lse.isnan().all()) or not bool(out[9:].isnan().all()) or bool((out[:9] != 0).any()):
            suite.fail(f"sinks {sinks}", "NaN was lost")


def unusual(suite, rng):
    """Rows of which a few keys have all the weight, constant tensors, and sinks that outweigh everything or nothing."""
    n, heads = 333, (4, 2)
    slices = [(0, n, 0, n, magi.CAUSAL)]
    for dims in ((64, 64), (128, 128), (256, 256)):
        one_hot = torch.eye(dims[0], device=DEVICE)[torch.arange(n, device=DEVICE) % dims[0], None] * 8
        for dtype in (torch.bfloat16, torch.float16):
            for out_f32 in (False, True):
                call = Call(rng, n, n, heads, dims, dtype, scale=1.0, out_f32=out_f32)
                call.q, call.k = (one_hot.to(dtype).repeat(1, h, 1) for h in heads)
                suite.run(f"one-hot rows, {dims}, {dtype}, f32 {out_f32}", slices, n, n, call)
                call = Call(rng, n, n, heads, dims, dtype, out_f32=out_f32)
                for t in (call.q, call.k, call.v):
                    t.fill_(0.5)
                suite.run(f"constant tensors, {dims}, {dtype}, f32 {out_f32}", slices, n, n, call)
            for layout in ("shared", "tokens"):
                call = Call(rng, n, n, heads, dims, dtype, sink=(layout, 2, 1.0))
                call.sink[..., 0], call.sink[..., 1], call.sink[..., 0, 2] = 100, -100, 100
                suite.run(f"sinks of +-100, {layout}, {dims}, {dtype}", slices, n, n, call)


def longest(suite):
    """16M tokens, so that offsets of elements pass 2^32: some rows of a window, computed again."""
    n, window, (hq, d) = 1 << 24, 1024, (2, 128)
    g = torch.Generator(device=DEVICE).manual_seed(3)
    q, k, v = (torch.randn(n, h, d, device=DEVICE, generator=g, dtype=torch.bfloat16) for h in (hq, 1, 1))
    out, lse = torch.full_like(q, math.nan), torch.full((n, hq), math.nan, device=DEVICE)
    described = [C.pointer(describe(t)) for t in (q, k, v, out, lse)]
    args = magi.ForwardArgs(q=described[0], k=described[1], v=described[2], out=described[3], lse=described[4])
    slices = [(0, window, 0, window, magi.CAUSAL), (window, n, 1, n, magi.BI_CAUSAL)]
    mask, options = magi.Mask(suite.library, slices, n, n), magi.FlexOptions()
    space = torch.empty(max(1, suite.library.workspace_bytes(args, options)), dtype=torch.uint8, device=DEVICE)
    options.workspace, options.workspace_size = space.data_ptr(), space.numel()
    suite.library.enqueue(mask, args, options, torch.cuda.current_stream().cuda_stream)()
    torch.cuda.synchronize()
    suite.cases += 1
    if bool(lse.isnan().any()) or any(bool(part.isnan().any()) for part in out.split(1 << 20)):
        suite.fail("16M tokens", "rows that were not written")
    rows = [0, 1, 1023, 1024, (1 << 23) - 1, 1 << 23, n - 129, n - 128, n - 1] + list(range(77, n, n // 40))
    for row in rows:
        first = max(0, row - window + 1)
        kk, vv = k[first : row + 1, 0].double(), v[first : row + 1, 0].double()
        s = q[row].double() @ kk.T * d**-0.5
        want, error = torch.softmax(s, 1) @ vv, (lse[row].double() - torch.logsumexp(s, 1)).abs().max()
        if not (out[row].double() - want).abs().max() <= 2.0**-7 * want.abs().max() or not error <= 2e-4:
            suite.fail("16M tokens", f"row {row}")


def random_call(rng, tq, tk):
    dtype = rng.choice((torch.bfloat16, torch.bfloat16, torch.float16))
    dims = rng.choice(((64, 64), (96, 96), (128, 128), (128, 128), (192, 128), (192, 192), (256, 256)))
    if rng.random() < 0.25:
        dims = (rng.randrange(8, 257), rng.randrange(8, 257))
    sink = rng.choice((None, None, ("shared", rng.randrange(1, 9), 1.0), ("tokens", rng.randrange(1, 9), 30.0)))
    accumulate = sink is None and rng.random() < 0.2
    # Each combination of these is a kernel to compile: one dtype and head dimension has them all.
    compiled = dtype == torch.bfloat16 and dims == (128, 128)
    return Call(rng, tq, tk, rng.choice(((1, 1), (4, 2), (8, 1), (6, 2), (3, 3), (16, 2))), dims, dtype,
                scale=rng.choice((0.0, 0.0, 0.1)), softcap=rng.choice((0.0, 15.0)) if compiled else 0.0, sink=sink,
                out_f32=rng.random() < 0.2, maxima=compiled and rng.random() < 0.5, accumulate=accumulate, strided=rng.random() < 0.5,
                std=rng.choice((1.0, 1.0, 1.0, 20.0)), margin=rng.choice((0, 0, 100)), backend=rng.choice((magi.DEFAULT,) * 9 + (magi.SDPA,)))


def captured(suite, rng):
    """The first launch ever of a mask is the first replay of a graph; a second replay reads new data."""
    n = 777
    slices = [(0, n, 0, n, magi.CAUSAL)]
    call = Call(rng, n, n, (4, 2), (128, 128), torch.bfloat16)
    out, lse = torch.full_like(call.q, math.nan), torch.full((n, 4), math.nan, device=DEVICE)
    described = [describe(t) for t in (call.q, call.k, call.v, out, lse)]
    q, k, v, o, l = (C.pointer(t) for t in described)
    args, options = magi.ForwardArgs(q=q, k=k, v=v, out=o, lse=l), magi.FlexOptions()
    mask = magi.Mask(suite.library, slices, n, n)
    space = torch.empty(max(1, suite.library.workspace_bytes(args, options)), dtype=torch.uint8, device=DEVICE)
    options.workspace, options.workspace_size = space.data_ptr(), space.numel()

    def enqueue():
        suite.library.enqueue(mask, args, options, torch.cuda.current_stream().cuda_stream)()

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            suite.refused("a capture without preparation", enqueue, 200, "prepare")
    except RuntimeError:
        pass  # torch may complain that nothing was captured
    suite.library.prepare(mask, args, options, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        enqueue()
    see = visible(slices, n, n)
    for round_ in range(2):
        suite.cases += 1
        for t in (call.q, call.k, call.v):
            t.copy_(torch.randn_like(t))
        out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        suite.compare(f"replay {round_}", call, out, lse, None, softmax(call, call.k, call.v, see, torch.float64),
                      softmax(call, call.k, call.v, see, torch.float32, rounded=True)[0])


def shared(suite):
    """Keys and values that heads share, and queries that tokens share, by a stride of 0: the bits of the same tensors in full."""
    tq, tk = 300, 500
    call = Call(random.Random(23), tq, tk, (4, 2), (128, 128), torch.bfloat16)
    mask = magi.Mask(suite.library, [(0, tq, 0, tk, magi.CAUSAL)], tq, tk)

    def run(*tensors):
        out, lse = torch.full_like(call.q, math.nan), torch.full((tq, 4), math.nan, device=DEVICE)
        q, k, v, o, l = (C.pointer(describe(t)) for t in (*tensors, out, lse))
        args, options = magi.ForwardArgs(q=q, k=k, v=v, out=o, lse=l), magi.FlexOptions()
        space = torch.empty(max(1, suite.library.workspace_bytes(args, options)), dtype=torch.uint8, device=DEVICE)
        options.workspace, options.workspace_size = space.data_ptr(), space.numel()
        suite.library.enqueue(mask, args, options, torch.cuda.current_stream().cuda_stream)()
        torch.cuda.synchronize()
        return bits(out), bits(lse)

    heads = lambda t: t[:, :1].expand(-1, t.shape[1], -1)
    for what, q, k, v in (
        ("keys and values of one head", call.q, heads(call.k), heads(call.v)),
        ("queries of one token", call.q[:1].expand(tq, -1, -1), call.k, call.v),
    ):
        suite.cases += 1
        if not all(torch.equal(a, b) for a, b in zip(run(q, k, v), run(q.contiguous(), k.contiguous(), v.contiguous()))):
            suite.fail(what, "a stride of 0 gives other bits")


def listed_mask(suite, name, slices, tq, tk, rng):
    for dims in ((64, 64), (128, 128), (256, 256)):
        if tq * tk > 1 << 28:
            large.forward(suite, f"{name} {dims}", slices, Call(random.Random(31), tq, tk, large.heads(dims), dims, torch.bfloat16))
        else:
            suite.run(f"{name} {dims}", slices, tq, tk, Call(rng, tq, tk, (4, 2), dims, torch.bfloat16))
    if tq * tk > 1 << 28:
        return
    suite.run(f"{name} options", slices, tq, tk, random_call(rng, tq, tk))
    if slices:
        suite.run(f"{name} ranges", slices, tq, tk, Call(rng, tq, tk, (4, 2), (128, 128), torch.bfloat16), ranges=True)


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--library")
    parse.add_argument("--random", type=int, default=300)
    parse.add_argument("--only", default="")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--masks", default=MASKS)
    options = parse.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    suite = Suite(magi.Library(options.library))
    rng = random.Random(options.seed)
    captured(suite, rng)
    if not options.only:
        suite.replay()  # first of all: nothing has been launched that makes lists of ranges
    for name, slices, tq, tk in listed(options.masks):
        if options.only in name:
            listed_mask(suite, name, slices, tq, tk, rng)
    suite.report("listed masks")
    for i in range(0 if options.only else options.random):
        slices, tq, tk = random_mask(rng)
        call = random_call(rng, tq, tk)
        what = f"random {i}: {len(slices)} slices, {tq} x {tk}, heads {call.q.shape[1]}:{call.k.shape[1]}, dims {call.q.shape[2]}, {call.v.shape[2]}, {call.dtype}"
        suite.run(what, slices, tq, tk, call)
        if slices:
            call = random_call(rng, tq, tk)
            call.backend = magi.DEFAULT  # textbook kernels take no ranges
            suite.run(what + ", as ranges", slices, tq, tk, call, ranges=True)
    if not options.only:
        suite.report("random masks")
        repeated(suite, rng)
        suite.report("twenty runs")
        switched(suite, rng)
        edges(suite, rng)
        unusual(suite, rng)
        suite.report("edges")
        hidden.forward(suite)
        suite.report("NaN beside tiles")
        longest(suite)
        shared(suite)
        suite.impossible()
    suite.report("all")
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
