#!/usr/bin/env python3
"""Checks magi_flex_flash_attn_backward on a CUDA device against f64, on a machine with torch: every listed mask, random masks
and every option, within the bounds of docs/kernels.md; the same masks as ranges in device memory, which a captured graph finds
changed, and lists that cannot be made; gradients against differences of forward. Outputs and workspaces are poisoned, tokens
that nothing sees hold NaN, and every call is repeated for equal bits: of dk, dv and dsink always, of dq in deterministic mode.

    tests/gpu/backward.py [--library libmagi_attn.so] [--random 300] [--only NAME] [--seed 0]
"""
import argparse
import ctypes as C
import math
import os
import random
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import forward  # noqa: E402
import magi  # noqa: E402
from forward import DEVICE, ULP, NoMask, Ranges, describe, listed, random_mask, visible  # noqa: E402

NAMES = ("dq", "dk", "dv", "dsink")
ADD = {"dq": 1, "dk": 2, "dv": 4, "dsink": 8}
COSINE = {torch.bfloat16: 0.999, torch.float16: 0.9999}


class Call(forward.Call):
    """Tensors and options of one case. `f32`, `add`: names of outputs that are f32, and that are added to."""

    def __init__(self, rng, tq, tk, heads, dims, dtype, f32=(), add=(), deterministic=False, **options):
        super().__init__(rng, tq, tk, heads, dims, dtype, **options)
        g = torch.Generator(device=DEVICE).manual_seed(rng.randrange(1 << 30))
        draw = lambda *shape: torch.randn(*shape, device=DEVICE, generator=g)
        self.dout = draw(tq, heads[0], dims[1]).to(dtype)
        self.f32, self.add, self.deterministic = set(f32) | {"dsink"}, set(add), deterministic
        self.start = {}
        for name in NAMES:
            like = {"dq": self.q, "dk": self.k, "dv": self.v, "dsink": self.sink}[name]
            if like is not None:
                values = draw(*like.shape) if name in self.add else torch.full(like.shape, math.nan, device=DEVICE)
                self.start[name] = values.to(torch.float32 if name in self.f32 else dtype)

    def hide(self, see):
        """NaN in every token that nothing sees."""
        self.sees, self.seen = see.any(1), see.any(0)
        self.k[~self.seen], self.v[~self.seen] = math.nan, math.nan
        self.q[~self.sees], self.dout[~self.sees] = math.nan, math.nan

    def noise(self, name):
        """What rounding leaves of a gradient that cancels: eps |dout| |v| |k or q|."""
        if name == "dv" or not bool(self.sees.any()):
            return 0.0
        norm = lambda x, seen: x[seen].float().norm(dim=-1).max().item()
        product = norm(self.dout, self.sees) * norm(self.v, self.seen)
        if name == "dsink":
            return ULP[self.dtype] / 2 * product
        return ULP[self.dtype] / 2 * product * (norm(self.k, self.seen) if name == "dq" else norm(self.q, self.sees)) * self.factor()


def gradients(call, see, real, rounded=False):
    """out, lse and the gradients by name, in `real`; `rounded` rounds out, P and dS to the inputs' dtype, as a textbook does.
    Leaves the largest P of each query head in `call.most`."""
    tq, hq = call.q.shape[:2]
    group = hq // call.k.shape[1]
    down = (lambda x: x.to(call.dtype).to(real)) if rounded else (lambda x: x)
    zeros = lambda t: torch.zeros(t.shape, device=DEVICE, dtype=real)
    found = {"dq": zeros(call.q), "dk": zeros(call.k), "dv": zeros(call.v)}
    out, lse = zeros(call.dout), torch.zeros(tq, hq, device=DEVICE, dtype=real)
    call.most = torch.zeros(hq, device=DEVICE, dtype=torch.float64)
    if call.sink is not None:
        found["dsink"] = zeros(call.sink)
    hidden = lambda x, seen: torch.where(seen[:, None], x.to(real), torch.zeros((), device=DEVICE, dtype=real))
    for h in range(hq):
        kh = h // group
        q, dout = hidden(call.q[:, h], call.sees), hidden(call.dout[:, h], call.sees)
        k, v = hidden(call.k[:, kh], call.seen), hidden(call.v[:, kh], call.seen)
        s = q @ k.T * call.factor()
        slope = None
        if call.softcap:
            t = torch.tanh(s / call.softcap)
            s, slope = call.softcap * t, 1 - t * t
        s = s.masked_fill(~see, -math.inf)
        sink = torch.full((tq, 1), -math.inf, device=DEVICE, dtype=real)
        if call.sink is not None:
            sink = (call.sink[None, :, h] if call.sink.dim() == 2 else call.sink[:, :, h]).to(real).expand(tq, -1)
        lse[:, h] = torch.logsumexp(torch.cat([s, sink], 1), 1)
        safe = torch.where(lse[:, h].isinf(), torch.zeros_like(lse[:, h]), lse[:, h])[:, None]
        p = torch.exp(s - safe)
        call.most[h] = p.max() if p.numel() else 0.0
        out[:, h] = down(down(p) @ v)
        delta = (out[:, h] * dout).sum(1, keepdim=True)
        ds = p * (dout @ v.T - delta)
        ds = down(ds if slope is None else ds * slope)
        found["dq"][:, h] = ds @ k * call.factor()
        found["dk"][:, kh] += ds.T @ q * call.factor()
        found["dv"][:, kh] += down(p).T @ dout
        if call.sink is not None:
            each = -torch.exp(sink - safe) * delta
            if call.sink.dim() == 2:
                found["dsink"][:, h] = each.sum(0)
            else:
                found["dsink"][:, :, h] = each
    return out, lse, found


class Bound:
    """A call whose tensors lie in memory, ready to be enqueued."""

    def __init__(self, library, call, source, out, lse, max_items=0):
        """`source`: a mask, or Ranges."""
        self.library, self.call = library, call
        self.out, self.lse = call.place(out.to(call.out_dtype)), lse.float()
        self.inputs = [call.place(t) for t in (call.q, call.k, call.v, call.dout)]
        self.results = {n: call.place(t) if t.dim() == 3 and n != "dsink" else t.clone() for n, t in call.start.items()}
        named = dict(zip(("q", "k", "v", "dout"), self.inputs), out=self.out, lse=self.lse, **self.results)
        if call.sink is not None:
            named["sink"] = call.sink
        self.described = {name: C.pointer(describe(t)) for name, t in named.items()}
        flags = sum(ADD[n] for n in call.add if n in self.results)
        self.args = magi.BackwardArgs(softmax_scale=call.scale, softcap=call.softcap, flags=flags, **self.described)
        self.options = magi.FlexOptions(sm_margin=call.margin, backend=call.backend, deterministic=int(call.deterministic),
                                        max_items=max_items)
        self.source, self.mask = source, source
        if isinstance(source, Ranges):
            source.into(self.options)
            self.mask = NoMask()
        needed = library.workspace_bytes(self.args, self.options)
        self.space = torch.full((max(1, needed),), 0xFF, dtype=torch.uint8, device=DEVICE)
        self.options.workspace, self.options.workspace_size = self.space.data_ptr(), needed

    def prepare(self):
        self.library.prepare(self.mask, self.args, self.options, torch.cuda.current_stream().cuda_stream)

    def enqueue(self):
        self.library.enqueue(self.mask, self.args, self.options, torch.cuda.current_stream().cuda_stream)()

    def poison(self):
        for name, t in self.results.items():
            t.copy_(self.call.start[name])
        self.space.fill_(0xFF)

    def bits(self):
        """Of every result that has the same ones on every run."""
        fixed = [n for n in self.results if n != "dq" or self.call.deterministic]
        as_int = lambda t: t.contiguous().view(torch.int16 if t.element_size() == 2 else torch.int32).clone()
        return {n: as_int(self.results[n]) for n in fixed}


class Suite:
    def __init__(self, library):
        self.library, self.cases, self.failures, self.worst = library, 0, 0, 0.0

    def fail(self, what, why):
        self.failures += 1
        print(f"FAIL {what}: {why}", flush=True)

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
            bound.options.sm_margin = call.margin + 8 * again
            bound.enqueue()
            torch.cuda.synchronize()
            bits = bound.bits()
            if first and not all(torch.equal(first[n], bits[n]) for n in bits):
                self.fail(what, f"another run gave other bits of {[n for n in bits if not torch.equal(first[n], bits[n])]}")
            first = first or bits
        self.compare(what, call, bound.results, want, textbook)

    def compare(self, what, call, results, want, textbook):
        for name, got in results.items():
            base = call.start[name].double() if name in call.add else 0.0
            exact, plain = want[name] + base, (textbook[name].double() + base).to(got.dtype).double()
            unseen = {"dq": ~call.sees, "dk": ~call.seen, "dv": ~call.seen}.get(name)
            if unseen is not None and not bool((got[unseen].double() == exact[unseen]).all()):
                self.fail(what, f"{name} of tokens that nothing sees is not as it was or 0")
            self.judge(f"{what}: {name}", name, call, got.double(), exact, plain, want[name])

    def judge(self, what, name, call, got, exact, plain, gradient):
        """Bounds of docs/kernels.md, a head at a time; [.., heads, dim] or, of sinks, [.., heads]."""
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
        if options.only not in name or tq * tk > 1 << 28:
            continue
        for dims in ((64, 64), (128, 128), (256, 256)):
            suite.run(f"{name} {dims}", slices, tq, tk, Call(rng, tq, tk, (4, 2), dims, torch.bfloat16))
        suite.run(f"{name} deterministic", slices, tq, tk, Call(rng, tq, tk, (4, 2), (128, 128), torch.bfloat16, deterministic=True), 3)
        call = random_call(rng, tq, tk)
        suite.run(f"{name} options, {title(0, slices, tq, tk, call)}", slices, tq, tk, call)
        if slices:
            suite.run(f"{name} ranges", slices, tq, tk, Call(rng, tq, tk, (4, 2), (128, 128), torch.bfloat16), ranges=True)


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
    parse.add_argument("--masks", default=os.path.join(HERE, "..", "cases", "masks.json"))
    options = parse.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    suite = Suite(magi.Library(options.library))
    rng = random.Random(options.seed)
    for deterministic in (False, True):
        suite.captured(deterministic)
    suite.differences()
    print(f"captured and differences: {suite.cases} cases, {suite.failures} failures", flush=True)
    listed_masks(suite, options, rng)
    print(f"listed masks: {suite.cases} cases, {suite.failures} failures, worst at {suite.worst:.3f} of its bound", flush=True)
    if not options.only:
        random_masks(suite, options.random, rng)
        for deterministic in (False, True):
            suite.replay(deterministic)
            suite.impossible(deterministic)
    print(f"{suite.cases} cases, {suite.failures} failures, worst at {suite.worst:.3f} of its bound", flush=True)
    return 1 if suite.failures else 0


if __name__ == "__main__":
    sys.exit(main())
