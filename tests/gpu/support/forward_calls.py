"""Tensors, masks, options and the f64 reference of forward calls on a CUDA device, for the programs one folder up.

What these programs hold results against is in docs/kernels.md, "Accuracy".
"""
import ctypes as C
import json
import math
import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "bench"))
import magi  # noqa: E402

MASKS = os.path.join(HERE, "..", "..", "cases", "masks.json")
DEVICE = "cuda"
HEAD_DIMS = ((64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256))  # that kernels are compiled for
DTYPES = {torch.float64: magi.F64, torch.float32: magi.F32, torch.bfloat16: magi.BF16, torch.float16: magi.F16}
ULP = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-22}


def describe(t):
    """A magi_tensor of a torch tensor."""
    return magi.tensor(t.data_ptr(), DTYPES[t.dtype], list(t.shape), list(t.stride()), magi.CUDA, t.device.index or 0)


def visible(slices, tq, tk, row0=0):
    """[tq, tk] bool: what slices (q0, q1, k0, k1, type) show, to `tq` queries from `row0` on."""
    q = torch.arange(row0, row0 + tq, device=DEVICE)[:, None]
    k = torch.arange(tk, device=DEVICE)[None]
    see = torch.zeros(tq, tk, dtype=torch.bool, device=DEVICE)
    for a, b, c, d, kind in slices:
        rows, keys = slice(max(a - row0, 0), max(b - row0, 0)), slice(max(c, 0), max(d, 0))
        ahead = k[:, keys] - q[rows]
        inside = torch.ones_like(ahead, dtype=torch.bool)
        if kind in (magi.CAUSAL, magi.BI_CAUSAL):
            inside &= ahead <= d - b
        if kind in (magi.INV_CAUSAL, magi.BI_CAUSAL):
            inside &= ahead >= c - a
        see[rows, keys] |= inside
    return see


class Call:
    """Tensors and options of one case."""

    def __init__(self, rng, tq, tk, heads, dims, dtype, scale=0.0, softcap=0.0, sink=None, out_f32=False, maxima=False,
                 accumulate=False, strided=False, std=1.0, margin=0, backend=magi.DEFAULT):
        hq, hkv = heads
        d, dv = dims
        g = torch.Generator(device=DEVICE).manual_seed(rng.randrange(1 << 30))
        make = lambda n, h, x: torch.randn(n, h, x, device=DEVICE, generator=g)
        self.q = (make(tq, hq, d) * std).to(dtype)
        self.k, self.v = make(tk, hkv, d).to(dtype), make(tk, hkv, dv).to(dtype)
        self.dtype, self.scale, self.softcap, self.margin, self.backend = dtype, scale, softcap, margin, backend
        self.sink = None
        if sink:
            shape = (sink[1], hq) if sink[0] == "shared" else (tq, sink[1], hq)
            self.sink = torch.randn(*shape, device=DEVICE, generator=g) * sink[2]
        self.out_dtype = torch.float32 if out_f32 or accumulate else dtype
        self.maxima, self.accumulate, self.strided = maxima, accumulate, strided
        if accumulate:
            self.old_k, self.old_v = make(64, hkv, d).to(dtype), make(64, hkv, dv).to(dtype)
            self.old_see = torch.rand(tq, 64, device=DEVICE, generator=g) < 0.5
            self.old_see[torch.rand(tq, device=DEVICE, generator=g) < 0.2] = False

    def factor(self):
        return self.scale or self.q.shape[2] ** -0.5

    def place(self, t):
        """The tensor inside a wider one full of NaN, or dense with rows of a multiple of 16 bytes."""
        n, h, d = t.shape
        wide = (d + 7) // 8 * 8
        if self.strided:
            w = torch.full((n, h + 1, wide + 16), float("nan"), device=DEVICE, dtype=t.dtype)
            view = w[:, :h, 8 : 8 + d]
        else:
            w = torch.full((n, h, wide), float("nan"), device=DEVICE, dtype=t.dtype)
            view = w[:, :, :d]
        view.copy_(t)
        return view


def intact(view):
    """Whether the tensor that `Call.place` put the view in still holds NaN around it."""
    around = view._base.clone()
    around.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(math.nan)
    return bool(around.isnan().all())


def softmax(call, k, v, see, dtype, rounded=False):
    """out, lse, maxima in `dtype`; `rounded` computes as a textbook does that rounds P to the inputs' dtype."""
    hq, hkv = call.q.shape[1], k.shape[1]
    tq, dv = call.q.shape[0], v.shape[2]
    out = torch.zeros(tq, hq, dv, device=DEVICE, dtype=dtype)
    lse = torch.full((tq, hq), -math.inf, device=DEVICE, dtype=dtype)
    maxima = torch.full((hq,), -math.inf, device=DEVICE, dtype=dtype)
    if see.numel() == 0:
        see = torch.zeros(tq, 1, dtype=torch.bool, device=DEVICE)
        k = torch.zeros(1, hkv, k.shape[2], device=DEVICE, dtype=k.dtype)
        v = torch.zeros(1, hkv, dv, device=DEVICE, dtype=v.dtype)
    for h in range(hq):
        kh, vh = (t[:, h // (hq // hkv)].to(dtype).nan_to_num() for t in (k, v))
        s = call.q[:, h].to(dtype) @ kh.T * call.factor()
        if call.softcap:
            s = call.softcap * torch.tanh(s / call.softcap)
        s = s.masked_fill(~see, -math.inf)
        if tq:
            maxima[h] = s.max()
        z = s
        if call.sink is not None:
            sink = call.sink[None, :, h] if call.sink.dim() == 2 else call.sink[:, :, h]
            z = torch.cat([s, sink.to(dtype).expand(tq, -1)], 1)
        lse[:, h] = torch.logsumexp(z, 1)
        if rounded:
            m = s.max(1, keepdim=True).values
            empty = m.isinf()  # of such a row the lse is that of sinks, and exp(0 - lse) may be infinite
            m = torch.where(empty, torch.zeros_like(m), m)
            p = torch.exp(s - m).to(call.dtype).to(dtype)
            weight = torch.exp(m - lse[:, h, None])
            out[:, h] = p @ vh * torch.where(empty, torch.zeros_like(weight), weight)
        else:
            safe = torch.where(lse[:, h].isinf(), torch.zeros_like(lse[:, h]), lse[:, h])
            out[:, h] = torch.exp(s - safe[:, None]) @ vh
    return out, lse, maxima


class NoMask:
    """In place of a mask handle, for calls whose options hold ranges."""

    handle = None


class Ranges:
    """Slices (q0, q1, k0, k1, type) in device memory, with room for `room` of them; the rest are empty."""

    def __init__(self, slices, room=None):
        n = room or len(slices)
        self.lists = [torch.empty(*shape, dtype=torch.int32, device=DEVICE) for shape in ((n, 2), (n, 2), (n,))]
        self.set(slices)
        self.described = [magi.tensor(t.data_ptr(), magi.I32, list(t.shape), list(t.stride()), magi.CUDA, t.device.index or 0)
                          for t in self.lists]

    def set(self, slices):
        n = self.lists[2].shape[0]
        rows = torch.tensor(list(slices) + [(0, 0, 0, 0, 0)] * (n - len(slices)), dtype=torch.int32).reshape(n, 5)
        for t, part in zip(self.lists, (rows[:, 0:2], rows[:, 2:4], rows[:, 4])):
            t.copy_(part)

    def into(self, options):
        options.q_ranges, options.k_ranges, options.mask_types = (C.pointer(t) for t in self.described)


class Bound:
    """A call whose tensors lie in memory, ready to be enqueued; `earlier`: out, lse and maxima that it merges with."""

    def __init__(self, library, call, slices, earlier=None, ranges=False):
        (tq, hq, _), tk = call.q.shape, call.k.shape[0]
        self.library = library
        self.out = call.place(torch.full((tq, hq, call.v.shape[2]), math.nan, device=DEVICE, dtype=call.out_dtype))
        self.lse, self.maxima = torch.full((tq, hq), math.nan, device=DEVICE), torch.full((hq,), math.nan, device=DEVICE)
        self.results = (self.out, self.lse, self.maxima)
        for t, values in zip(self.results, earlier or ()):
            t.copy_(values)
        self.start = [t.clone() for t in self.results]
        self.inputs = [call.place(t) for t in (call.q, call.k, call.v)]
        q, k, v, out, lse, maxima = (C.pointer(describe(t)) for t in (*self.inputs, *self.results))
        sink = None if call.sink is None else C.pointer(describe(call.sink))
        self.args = magi.ForwardArgs(q=q, k=k, v=v, sink=sink, softmax_scale=call.scale, softcap=call.softcap, out=out, lse=lse,
                                     max_logits=maxima if call.maxima else None)
        self.options = magi.FlexOptions(accumulate=int(call.accumulate), sm_margin=call.margin, backend=call.backend)
        if ranges:
            self.lists, self.mask = Ranges(slices), NoMask()
            self.lists.into(self.options)
            self.options.max_items = max(1, len(slices) * (tq // 64 + 1))
        else:
            self.mask = magi.Mask(library, slices, tq, tk)
        needed = library.workspace_bytes(self.args, self.options)
        self.space = torch.full((max(1, needed),), 0xFF, dtype=torch.uint8, device=DEVICE)
        self.options.workspace, self.options.workspace_size = self.space.data_ptr(), needed
        self.enqueue = library.enqueue(self.mask, self.args, self.options, torch.cuda.current_stream().cuda_stream)

    def run(self):
        """Poisons results and workspace, computes and waits."""
        for t, values in zip(self.results, self.start):
            t.copy_(values)
        self.space.fill_(0xFF)
        self.enqueue()
        torch.cuda.synchronize()


def bits(t):
    """Whole numbers that are equal where bits are."""
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]).clone()


def listed(path=MASKS):
    """Name, slices, queries and keys of every listed mask."""
    for case in json.load(open(path)):
        slices = [(*s["q"], *s["k"], magi.MASK_TYPES[s["type"]]) for s in case["slices"]]
        yield case["name"], slices, case["total_seqlen_q"], case["total_seqlen_k"]


def random_mask(rng):
    """Slices that share no cell: stretches of rows, in each stretches of keys, most of them shown."""
    tq, tk = (rng.choice((1, 5, 64, 127, 128, 129, 300, 700, 1337)) for _ in range(2))
    if rng.random() < 0.05:
        n = rng.randrange(200, 1500)
        return [(a, min(a + 50, n), a, min(a + 50, n), magi.FULL) for a in range(0, n, 50)], n, n
    slices = []
    rows = sorted({0, tq, *(rng.randrange(tq + 1) for _ in range(rng.choice((0, 1, 3, 9))))})
    for a, b in zip(rows, rows[1:]):
        keys = sorted({0, tk, *(rng.randrange(tk + 1) for _ in range(rng.choice((0, 1, 3, 6))))})
        slices += [(a, b, c, d, rng.randrange(4)) for c, d in zip(keys, keys[1:]) if rng.random() < 0.65]
    return slices, tq, tk
