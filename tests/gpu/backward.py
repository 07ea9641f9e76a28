#!/usr/bin/env python3
"""Checks magi_flex_flash_attn_backward on a CUDA device against f64, on a machine with torch: every listed mask, random masks
and every option, within the bounds of docs/kernels.md, "Accuracy"; the same masks as ranges in device memory, which a captured
graph finds changed, and lists that cannot be made; gradients against differences of forward. Outputs and workspaces are poisoned,
tokens that nothing sees hold NaN, and in turn those that one tile does not see; every call is repeated for equal bits: of dk, dv and
dsink always, of dq in deterministic mode.

    tests/gpu/backward.py [--library libmagi_attn.so] [--random 300] [--only NAME] [--seed 0]
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
from forward_calls import DEVICE, HEAD_DIMS, MASKS, ULP, Ranges, describe, listed, magi, random_mask, visible  # noqa: E402
from backward_calls import NAMES, Bound, Call, gradients  # noqa: E402
import hidden  # noqa: E402
import large  # noqa: E402

COSINE = {torch.bfloat16: 0.999, torch.float16: 0.9999}


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
        call.hide(see)
        out, lse, want = gradients(call, see, torch.float64)
        _, _, textbook = gradients(call, see, torch.float32, rounded=True)
        source = Ranges(slices) if ranges else magi.Mask(self.library, slices, tq, tk)
        most = max(1, len(slices) * (max(tq, tk) // 64 + 1)) if ranges else 0
        bound = Bound(self.library, call, source, out, lse, most)
        first = None
        for again in range(repeats):
            bound.poison()
            # Bits do not depend on how many multiprocessors are left to others.
            bound.options.sm_margin = call.margin + 8 * (again % 3)
            bound.enqueue()
            torch.cuda.synchronize()
            bits = bound.bits()
            if first and not all(torch.equal(first[n], bits[n]) for n in bits):
                self.fail(what, f"another run gave other bits of {[n for n in bits if not torch.equal(first[n], bits[n])]}")
            first = first or bits
        self.compare(what, call, bound.results, want, textbook)
        return bound

    def compare(self, what, call, results, want, textbook):
        for name, got in results.items():
            base = call.start[name].double() if name in call.add else 0.0
            exact, plain = want[name] + base, (textbook[name].double() + base).to(got.dtype).double()
            unseen = {"dq": ~call.sees, "dk": ~call.seen, "dv": ~call.seen}.get(name)
            if unseen is not None and not bool((got[unseen].double() == exact[unseen]).all()):
                self.fail(what, f"{name} of tokens that nothing sees is not as it was or 0")
            self.judge(f"{what}: {name}", name, call, got.double(), exact, plain, want[name])

    def judge(self, what, name, call, got, exact, plain, gradient):
        """Bounds of docs/kernels.md, "Accuracy", a head at a time; [.., heads, dim] or, of sinks, [.., heads]."""
        if not got.numel():
            return
        noise = call.noise(name)
        if name == "dsink":
            got, exact, plain, gradient = (x.unsqueeze(-1) for x in (got, exact, plain, gradient))
        got, exact, plain, gradient = (x.reshape(-1, *x.shape[-2:]) for x in (got, exact, plain, gradient))
        over = (0, 2)
        error, most = (got - exact).abs().amax(over), exact.abs().amax(over)
        limit = 3 * (plain - exact).abs().amax(over) + ULP[call.dtype] / 4 * most + 1e-30
        if min(call.sees.sum(), call.seen.sum()) < 64:
            limit += noise / 4  # a few rounding errors, of the textbook's too, are no statistics
        few = torch.zeros_like(most, dtype=torch.bool)
        if name == "dsink":
            limit += noise / 16  # of all rows those few count whose sinks are large: a fraction of what one may be off by
        elif name != "dv":
            # Large logits leave few rows that count, and where P is near 1 those cancel: fewer still.
            own = noise * (call.most if name == "dq" else call.most.view(most.shape[0], -1).amax(1))
            few = most <= own
            limit += torch.where(few, own / 64, torch.zeros_like(own))
        cancels = gradient.abs().amax(over) <= 1e-4 * noise
        limit = torch.where(cancels, torch.full_like(limit, noise) + limit, limit)
        worst = (error / limit).max().item()
        self.worst = max(self.worst, worst if worst == worst else math.inf)
        if not worst <= 1:
            h = (error / limit).nan_to_num(math.inf).argmax().item()
            sizes = f"error {error[h]:.3g}, the textbook's {(plain - exact).abs().amax(over)[h]:.3g}, largest {most[h]:.3g}, noise {noise:.3g}"
            self.fail(what, f"at {worst:.3f} of its bound in head {h}: {sizes}")
        vanishes = (most < 1e-30) | (limit > most)  # beside the f32 that it is rounded to, or beside its bound
        for h in torch.nonzero(~cancels & ~vanishes & ~few).flatten().tolist():
            cosine = lambda x: torch.nn.functional.cosine_similarity(x[:, h].flatten(), exact[:, h].flatten(), 0, 1e-300).item()
            mine = cosine(got)
            # Tiny cases cancel; three times the textbook's error is nine times its distance from 1.
            if not mine > COSINE.get(call.dtype, 0.9999) and 1 - mine > 9 * (1 - cosine(plain)):
                self.fail(what, f"cosine {mine} in head {h}")

    def refused(self, what, call, enqueue, status, part):
        try:
            enqueue()
            self.fail(what, "the call says nothing")
        except magi.Error as e:
            if e.status != status or part not in str(e):
                self.fail(what, f"the call says {e}")

    def replay(self, deterministic):
        """A captured call reads the ranges, and the data, that are there when the graph runs."""
        tq, tk, n = 1337, 900, 12
        rng = random.Random(7)
        masks = [[(0, tq, 0, tk, magi.CAUSAL)], [(5, 900, 3, 700, magi.BI_CAUSAL), (1000, 1337, 0, 900, magi.FULL)], []]
        while len(masks) < 10:
            slices, a, b = random_mask(rng)
            if a <= tq and b <= tk and len(slices) <= n:
                masks.append(slices)
        call = Call(random.Random(5), tq, tk, (4, 2), (128, 128), torch.bfloat16, deterministic=deterministic)
        clean = [t.clone() for t in (call.q, call.k, call.v, call.dout)]
        lists = Ranges([], n)
        bound = Bound(self.library, call, lists, torch.zeros_like(call.dout), torch.zeros(tq, 4, device=DEVICE), n * 32)
        bound.prepare()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            bound.enqueue()
        for i, slices in enumerate(masks):
            self.cases += 1
            lists.set(slices)
            for t, values in zip((call.q, call.k, call.v, call.dout), clean):
                t.copy_(values)
            see = visible(slices, tq, tk)
            call.hide(see)
            out, lse, want = gradients(call, see, torch.float64)
            for t, values in zip(bound.inputs + [bound.out, bound.lse], (call.q, call.k, call.v, call.dout, out, lse)):
                t.copy_(values)
            bound.poison()
            graph.replay()
            torch.cuda.synchronize()
            _, _, textbook = gradients(call, see, torch.float32, rounded=True)
            self.compare(f"graph replay {i}, deterministic {deterministic}: {slices}", call, bound.results, want, textbook)

    def impossible(self, deterministic):
        """Lists that cannot be made: NaN, told by the next call, which computes nothing; the one after it computes."""
        for f32, add in (((), ()), (("dq", "dk", "dv"), ()), (("dq", "dk", "dv"), ("dq", "dk", "dv"))):
            for what, slices, room, status, part in (
                ("type", [(0, 300, 0, 300, 0), (0, 9, 0, 9, 7)], 0, 103, "options.mask_types[1]"),
                ("room", [(0, 300, 0, 300, 0), (0, 300, 0, 9, 1)], 3, 109, "options.max_items"),
            ):
                self.cases += 1
                call = Call(random.Random(5), 300, 300, (4, 2), (128, 128), torch.bfloat16, f32, add, deterministic)
                good = [(0, 128, 0, 300, magi.FULL), (0, 0, 0, 0, 0)]
                see = visible(good, 300, 300)
                call.hide(see)
                out, lse, want = gradients(call, see, torch.float64)
                _, _, textbook = gradients(call, see, torch.float32, rounded=True)
                lists = Ranges(slices)
                bound = Bound(self.library, call, lists, out, lse, room)
                for t in bound.results.values():
                    t.zero_()
                bound.enqueue()
                torch.cuda.synchronize()
                kept = [n for n, t in bound.results.items() if not bool(t.isnan().all())]
                if kept:
                    self.fail(what, f"{kept} are not NaN")
                lists.set(good)
                self.refused(what, call, bound.enqueue, status, part)
                bound.poison()
                bound.enqueue()
                torch.cuda.synchronize()
                self.compare(f"after {what}", call, bound.results, want, textbook)

    def captured(self, deterministic):
        """The first launch ever of a mask is the first replay of a graph; a second replay reads new data."""
        n, rng = 777, random.Random(11)
        slices = [(0, n, 0, n, magi.CAUSAL)]
        see = visible(slices, n, n)
        call = Call(rng, n, n, (4, 2), (128, 128), torch.bfloat16, deterministic=deterministic)
        call.hide(see)
        bound = Bound(self.library, call, magi.Mask(self.library, slices, n, n), call.dout, torch.zeros(n, 4, device=DEVICE))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.refused("a capture without preparation", call, bound.enqueue, 200, "prepare")
        except RuntimeError:
            pass  # torch may complain that nothing was captured
        bound.prepare()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            bound.enqueue()
        for round_ in range(2):
            self.cases += 1
            for t in (call.q, call.k, call.v, call.dout):
                t.copy_(torch.randn_like(t))
            out, lse, want = gradients(call, see, torch.float64)
            for t, values in zip(bound.inputs + [bound.out, bound.lse], (call.q, call.k, call.v, call.dout, out, lse)):
                t.copy_(values)
            bound.poison()
            graph.replay()
            torch.cuda.synchronize()
            _, _, textbook = gradients(call, see, torch.float32, rounded=True)
            self.compare(f"captured, replay {round_}", call, bound.results, want, textbook)

    def differences(self):
        """Gradients of the textbook kernels in f32 against differences of forward along random directions."""
        tq, tk = 70, 90
        slices = [(0, 40, 0, 90, magi.CAUSAL), (40, 70, 10, 60, magi.BI_CAUSAL)]
        for softcap, sink in ((0.0, None), (3.0, ("shared", 2, 1.0)), (0.0, ("tokens", 3, 1.0))):
            self.cases += 1
            what = f"differences, softcap {softcap}, sink {sink}"
            call = Call(random.Random(3), tq, tk, (4, 2), (40, 24), torch.float32, softcap=softcap, sink=sink, f32=NAMES)
            see = visible(slices, tq, tk)
            call.sees, call.seen = see.any(1), see.any(0)
            mask = magi.Mask(self.library, slices, tq, tk)
            out, lse = torch.empty_like(call.dout), torch.empty(tq, 4, device=DEVICE)

            def loss(moved):
                """Sum of out * dout in f64, out as forward gives it."""
                tensors = {"q": call.q, "k": call.k, "v": call.v, "out": out, "lse": lse, **moved}
                if call.sink is not None:
                    tensors.setdefault("sink", call.sink)
                described = {n: C.pointer(describe(t)) for n, t in tensors.items()}
                args, options = magi.ForwardArgs(softcap=softcap, **described), magi.FlexOptions()
                needed = self.library.workspace_bytes(args, options)
                space = torch.empty(max(1, needed), dtype=torch.uint8, device=DEVICE)
                options.workspace, options.workspace_size = space.data_ptr(), needed
                self.library.enqueue(mask, args, options, torch.cuda.current_stream().cuda_stream)()
                return (out.double() * call.dout.double()).sum().item()

            loss({})
            bound = Bound(self.library, call, mask, out, lse)
            bound.enqueue()
            torch.cuda.synchronize()
            inputs = {"q": call.q, "k": call.k, "v": call.v} | ({} if call.sink is None else {"sink": call.sink})
            for name, t in inputs.items():
                direction, h = torch.randn_like(t), 1e-3
                slope = (loss({name: t + h * direction}) - loss({name: t - h * direction})) / (2 * h)
                got = (bound.results["d" + name].double() * direction.double()).sum().item()
                size = bound.results["d" + name].double().norm().item()
                if not abs(slope - got) <= 5e-3 * size + 1e-3:
                    self.fail(what, f"d{name} along a direction is {got}, differences give {slope} (its norm is {size})")


def one_key(rng, tokens):
    """Every query sees one key: dq and dk cancel."""
    keys = rng.randrange(1, tokens)
    return [(i * tokens // keys, (i + 1) * tokens // keys, i, i + 1, magi.FULL) for i in range(keys)], tokens, keys


def random_call(rng, tq, tk):
    dtype = rng.choice((torch.bfloat16, torch.bfloat16, torch.float16))
    dims = rng.choice(((64, 64), (96, 96), (128, 128), (128, 128), (192, 128), (192, 192), (256, 256)))
    if rng.random() < 0.25:
        dims = (rng.randrange(8, 257), rng.randrange(8, 257))
    sink = rng.choice((None, None, ("shared", rng.randrange(1, 9), 1.0), ("tokens", rng.randrange(1, 9), 1.0),
                       ("shared", rng.randrange(1, 9), 100.0), ("tokens", rng.randrange(1, 9), 100.0)))
    f32 = {n for n in ("dq", "keys") if rng.random() < 0.4}
    f32 = {"dq"} & f32 | ({"dk", "dv"} if "keys" in f32 else set())
    # Adding to dk and dv of the input dtype is for the textbook kernels.
    add = {n for n in ("dq", "dsink") if rng.random() < 0.3} | ({"dk", "dv"} if rng.random() < (0.5 if "dk" in f32 else 0.02) else set())
    # Each combination of these is a kernel to compile: one dtype and head dimension has them all.
    compiled = dtype == torch.bfloat16 and dims == (128, 128)
    return Call(rng, tq, tk, rng.choice(((1, 1), (4, 2), (8, 1), (6, 2), (3, 3), (16, 2), (64, 1))), dims, dtype, f32, add,
                deterministic=rng.random() < 0.4, scale=rng.choice((0.0, 0.0, 0.1)), softcap=rng.choice((0.0, 15.0)) if compiled else 0.0,
                sink=sink, out_f32=rng.random() < 0.3, strided=rng.random() < 0.5, std=rng.choice((1.0, 1.0, 1.0, 20.0)),
                margin=rng.choice((0, 0, 100)), backend=rng.choice((magi.DEFAULT,) * 9 + (magi.SDPA,)))


def title(i, slices, tq, tk, call):
    return (f"random {i}: {len(slices)} slices, {tq} x {tk}, heads {call.q.shape[1]}:{call.k.shape[1]}, dims {call.q.shape[2]}, {call.v.shape[2]}, "
            f"{call.dtype}, f32 {sorted(call.f32)}, add {sorted(call.add)}, deterministic {call.deterministic}, softcap {call.softcap}, "
            f"sinks {None if call.sink is None else tuple(call.sink.shape)}, backend {call.backend}")


def listed_masks(suite, options, rng):
    for name, slices, tq, tk in listed(options.masks):
        if options.only not in name:
            continue
        if tq * tk > 1 << 28:
            for dims in ((64, 64), (128, 128), (256, 256)):
                large.backward(suite, f"{name} {dims}", slices, Call(random.Random(31), tq, tk, large.heads(dims), dims, torch.bfloat16))
            continue
        for dims in ((64, 64), (128, 128), (256, 256)):
            suite.run(f"{name} {dims}", slices, tq, tk, Call(rng, tq, tk, (4, 2), dims, torch.bfloat16))
        suite.run(f"{name} deterministic", slices, tq, tk, Call(rng, tq, tk, (4, 2), (128, 128), torch.bfloat16, deterministic=True), 3)
        call = random_call(rng, tq, tk)
        suite.run(f"{name} options, {title(0, slices, tq, tk, call)}", slices, tq, tk, call)
        if slices:
            suite.run(f"{name} ranges", slices, tq, tk, Call(rng, tq, tk, (4, 2), (128, 128), torch.bfloat16), ranges=True)


def edges(suite, rng):
    """Every head dimension over the same few masks, the most query heads a key head, the ends of what f32 carries, tiny slices."""
    n, bf16, f16 = 700, torch.bfloat16, torch.float16
    window = [(0, 101, 0, 101, magi.CAUSAL), (101, n, 1, n, magi.BI_CAUSAL)]
    longer = [(0, 333, 0, 600, magi.CAUSAL), (333, n, 200, 900, magi.CAUSAL)]
    for dims in HEAD_DIMS:
        for dtype in (bf16, f16):
            for deterministic in (False, True):
                what = f"{dims}, {dtype}, deterministic {deterministic}"
                suite.run(f"window, {what}", window, n, n, Call(rng, n, n, (4, 2), dims, dtype, deterministic=deterministic))
                f32 = {"f32": ("dq", "dk", "dv"), "add": ("dq", "dk", "dv"), "sink": ("shared", 2, 1.0)}
                call = Call(rng, n, 900, (3, 3), dims, dtype, deterministic=deterministic, **f32)
                suite.run(f"more keys, added to f32, {what}", longer, n, 900, call)
                call = Call(rng, n, n, (64, 1), dims, dtype, deterministic=deterministic)
                suite.run(f"64 query heads of one key head, {what}", window, n, n, call)
    n = 200
    for scale, softcap in ((1e-6, 0), (1e-46, 0), (1e-60, 0), (100.0, 0), (-0.1, 0), (0, 0.5), (0, 300.0), (0, 1e3), (0, 1e4), (0, 1e9)):
        for deterministic in (False, True):
            call = Call(rng, n, n, (2, 1), (128, 128), bf16, scale=scale, softcap=softcap, deterministic=deterministic)
            suite.run(f"scale {scale}, softcap {softcap}, deterministic {deterministic}", [(0, n, 0, n, magi.CAUSAL)], n, n, call)
    for dtype, dims, deterministic in ((f16, (64, 64), False), (bf16, (256, 256), True)):  # each is a kernel or two to compile
        call = Call(rng, n, n, (4, 2), dims, dtype, softcap=15.0, deterministic=deterministic)
        suite.run(f"softcap, {dims}, {dtype}, deterministic {deterministic}", [(0, n, 0, n, magi.CAUSAL)], n, n, call)
    for deterministic in (False, True):
        call = Call(rng, n, n, (4, 2), (128, 128), bf16, deterministic=deterministic)
        for t in (call.q, call.k, call.v, call.dout):
            t.fill_(0.3)
        suite.run(f"constant tensors, deterministic {deterministic}", [(0, n, 0, n, magi.CAUSAL)], n, n, call)
    n = 2500
    cells = [(a, a + 50, b, b + 50, rng.randrange(4)) for a in range(0, n, 50) for b in range(0, n, 50)]
    for dims in ((128, 128), (256, 256)):
        for deterministic, ranges in ((False, False), (True, False), (True, True)):
            call = Call(rng, n, n, (2, 1), dims, bf16, deterministic=deterministic)
            suite.run(f"2,500 slices of 50 x 50, {dims}, deterministic {deterministic}", cells, n, n, call, ranges=ranges)
    # Tiles that see the same queries, more of them than the cache holds of a head: thread blocks begin parts together. Margins
    # leave one for each tile, fewer, and fewer still.
    n, keys = 100_000, 600
    for dims in ((64, 64), (128, 128), (256, 256)):
        for deterministic, ranges in ((False, False), (True, False), (False, True)):
            call = Call(rng, n, keys, (3, 3), dims, bf16, deterministic=deterministic, margin=112)
            what = f"parts begun together, {dims}, deterministic {deterministic}"
            suite.run(what, [(0, n, 0, keys, magi.FULL)], n, keys, call, repeats=3, ranges=ranges)


def repeated(suite, rng):
    """Twenty runs give the same bits: whole tiles, query heads of a tile shared out to several thread blocks, every option."""
    for what, slices, tq, tk, heads in (
        ("documents", [(a, a + 333, a, a + 333, magi.CAUSAL) for a in range(0, 1332, 333)], 1332, 1332, (8, 2)),
        ("shared out", [(0, 1500, 0, 300, magi.INV_CAUSAL)], 1500, 300, (16, 1)),
    ):
        twenty = lambda name, call, **o: suite.run(f"twenty runs, {what}, {name}", slices, tq, tk, call, repeats=20, **o)
        for dims in HEAD_DIMS:
            for dtype, deterministic in ((torch.bfloat16, True), (torch.float16, True), (torch.bfloat16, False)):
                call = Call(rng, tq, tk, heads, dims, dtype, deterministic=deterministic)
                twenty(f"{dims}, {dtype}, deterministic {deterministic}", call)
        every = ("dq", "dk", "dv")
        for dims in ((128, 128), (256, 256)):
            for options in ({"sink": ("shared", 3, 1.0)}, {"sink": ("tokens", 8, 1.0)}, {"f32": every, "add": every}):
                twenty(f"{dims}, {options}", Call(rng, tq, tk, heads, dims, torch.bfloat16, deterministic=True, **options))
            twenty(f"{dims}, ranges", Call(rng, tq, tk, heads, dims, torch.bfloat16, deterministic=True), ranges=True)
        for deterministic in (False, True):
            call = Call(rng, tq, tk, heads, (128, 128), torch.bfloat16, softcap=15.0, deterministic=deterministic)
            twenty(f"softcap, deterministic {deterministic}", call)


def short_rows(suite):
    """Queries that see few keys, and more sums of dq than the cache holds: dq has a kernel of its own, as in deterministic mode."""
    # Documents of 192: half of a tile's rows, or of its keys, see nothing of some blocks.
    for length, n in ((333, 8 * 333), (192, 14 * 192)):
        documents = [(a, a + length, a, a + length, magi.CAUSAL) for a in range(0, n, length)]
        for dims in ((64, 64), (96, 96), (128, 128)):
            dq, what = [], f"documents of {length}, {dims}"
            for deterministic in (False, True):
                call = Call(random.Random(37), n, n, (64, 4), dims, torch.bfloat16, deterministic=deterministic)
                dq.append(suite.run(f"{what}, deterministic {deterministic}", documents, n, n, call).results["dq"])
            if not torch.equal(*dq):
                suite.fail(what, "dq is not that of deterministic mode")


def random_masks(suite, count, rng):
    for i in range(count):
        slices, tq, tk = one_key(rng, rng.choice((5, 64, 300, 1337))) if i % 15 == 14 else random_mask(rng)
        call = random_call(rng, tq, tk)
        what = title(i, slices, tq, tk, call)
        suite.run(what, slices, tq, tk, call)
        if slices:
            call = random_call(rng, tq, tk)
            call.backend = magi.DEFAULT  # textbook kernels take no ranges
            if {"dk", "dv"} & call.add - call.f32:
                continue
            suite.run(title(i, slices, tq, tk, call) + ", as ranges", slices, tq, tk, call, ranges=True)


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
    for deterministic in (False, True):
        suite.captured(deterministic)
    suite.differences()
    suite.report("captured and differences")
    listed_masks(suite, options, rng)
    suite.report("listed masks")
    if not options.only:
        random_masks(suite, options.random, rng)
        suite.report("random masks")
        edges(suite, random.Random(23))
        suite.report("edges")
        repeated(suite, random.Random(29))
        suite.report("twenty runs")
        short_rows(suite)
        suite.report("short rows")
        hidden.backward(suite)
        suite.report("NaN beside tiles")
        large.longest_backward(suite)
        suite.report("16M tokens")
        for deterministic in (False, True):
            suite.replay(deterministic)
            suite.impossible(deterministic)
    suite.report("all")
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
