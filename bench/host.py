"""Rows in host memory: the CPU backend against sums in plain Python, without numpy. For small shapes."""
import ctypes as C
import math
import random
import struct
from array import array
from operator import mul

import magi

# Array type, magi_dtype, and the error allowed relative to the largest value: the CPU backend computes in f64 and rounds once.
DTYPES = {"f64": ("d", magi.F64, 1e-10), "f32": ("f", magi.F32, 1e-6), "bf16": ("H", magi.BF16, 2.0**-8)}


def bf16_bits(value):
    """Nearest bfloat16, ties to even, as its 16 bits."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def bf16_value(bits):
    """What 16 bits of a bfloat16 stand for."""
    return struct.unpack("<f", struct.pack("<I", bits << 16))[0]


class HostTensor:
    """A row-major tensor [tokens, heads, dim], or [tokens, heads] with dim 0, in an array."""

    def __init__(self, dtype, shape, fill):
        self.kind, code, _ = DTYPES[dtype]
        self.shape, self.width = shape, shape[2] if len(shape) == 3 else 1
        count = math.prod(shape)
        encode = bf16_bits if self.kind == "H" else float
        self.values = array(self.kind, (encode(fill()) for _ in range(count)))
        self.magi = magi.tensor(self.values.buffer_info()[0], code, shape)

    def at(self, token, head):
        """The vector of a token and head, as floats."""
        begin = (token * self.shape[1] + head) * self.width
        values = self.values[begin : begin + self.width]
        return [bf16_value(x) for x in values] if self.kind == "H" else list(values)

    def finite(self):
        """Whether no element is NaN or infinite."""
        floats = map(bf16_value, self.values) if self.kind == "H" else self.values
        return all(math.isfinite(x) for x in floats)


def dot(a, b):
    """a . b"""
    return math.fsum(map(mul, a, b))


class HostRow:
    """Tensors of a row and the checks of what a call left in them."""

    def __init__(self, library, row, seed):
        self.row, self.library = row, library
        self.mask = magi.Mask(library, row.mask.slices, row.mask.total_q, row.mask.total_k)
        draw = random.Random(seed)
        normal = lambda: draw.gauss(0, 1)  # noqa: E731
        nan = lambda: math.nan  # noqa: E731
        tq, tk, hq, hk = row.mask.total_q, row.mask.total_k, row.heads_q, row.heads_kv
        d, dv, exact = row.head_dim, row.head_dim_v, "f64" if row.dtype == "f64" else "f32"
        self.q = HostTensor(row.dtype, (tq, hq, d), normal)
        self.k = HostTensor(row.dtype, (tk, hk, d), normal)
        self.v = HostTensor(row.dtype, (tk, hk, dv), normal)
        self.out = HostTensor(row.dtype, (tq, hq, dv), nan)
        self.lse = HostTensor(exact, (tq, hq), nan)
        if row.backward:
            self.dout = HostTensor(row.dtype, (tq, hq, dv), normal)
            self.dq = HostTensor(row.dtype, (tq, hq, d), nan)
            self.dk = HostTensor(row.dtype, (tk, hk, d), nan)
            self.dv = HostTensor(row.dtype, (tk, hk, dv), nan)

    def run(self):
        """The forward pass, and backward if it is the row's."""
        named = ("q", "k", "v", "out", "lse")
        self._call(magi.ForwardArgs(**{n: C.pointer(getattr(self, n).magi) for n in named}))
        if self.row.backward:
            named += ("dout", "dq", "dk", "dv")
            self._call(magi.BackwardArgs(**{n: C.pointer(getattr(self, n).magi) for n in named}))

    def _call(self, args):
        options = magi.FlexOptions()
        needed = self.library.workspace_bytes(args, options)
        memory = C.create_string_buffer(needed + 256)
        if needed:
            options.workspace = C.addressof(memory) + -C.addressof(memory) % 256
            options.workspace_size = needed
        self.library.enqueue(self.mask, args, options)()

    def check(self, samples, seed):
        """Largest error of sampled tokens relative to the largest value, by output, and whether all is well."""
        row, bound = self.row, DTYPES[self.row.dtype][2]
        worst, scores = {"out": (0.0, 0.0), "lse": (0.0, 0.0)}, {}
        for token in row.sample("q", samples, seed):
            for head in range(row.heads_q):
                out, lse = self._forward(token, head)
                _note(worst, "out", self.out.at(token, head), out)
                got = self.lse.at(token, head)[0]
                if math.isinf(lse) or math.isinf(got):
                    scores[f"lse of ({token}, {head})"] = got == lse
                else:
                    _note(worst, "lse", [got], [lse])
        outputs = [self.out]
        if row.backward:
            self._check_backward(samples, seed, worst)
            outputs += [self.dq, self.dk, self.dv]
        found = {name: error / largest if largest else error for name, (error, largest) in worst.items()}
        # Gradients are made of the rounded out.
        bounds = {name: bound if name in ("out", "lse") else 10 * bound for name in found}
        good = all(found[n] <= bounds[n] for n in found) and all(scores.values()) and all(t.finite() for t in outputs)
        return {"good": good, "error": found, "bound": bounds, "rows": samples}

    def _forward(self, token, head):
        """out and lse of one query in f64."""
        row, kv = self.row, head // (self.row.heads_q // self.row.heads_kv)
        keys = [k for a, b in row.mask.visible(token) for k in range(a, b)]
        if not keys:
            return [0.0] * row.head_dim_v, -math.inf
        q = self.q.at(token, head)
        logits = [row.scale * dot(q, self.k.at(k, kv)) for k in keys]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        total = math.fsum(weights)
        out = [math.fsum(map(mul, weights, column)) / total for column in zip(*(self.v.at(k, kv) for k in keys))]
        return out, top + math.log(total)

    def _cell(self, token, head, key, kv):
        """Probability of a visible cell and the gradient of its logit."""
        p = math.exp(self.row.scale * dot(self.q.at(token, head), self.k.at(key, kv)) - self.lse.at(token, head)[0])
        dout = self.dout.at(token, head)
        return p, p * (dot(dout, self.v.at(key, kv)) - dot(dout, self.out.at(token, head)))

    def _check_backward(self, samples, seed, worst):
        row, group = self.row, self.row.heads_q // self.row.heads_kv
        for name in ("dq", "dk", "dv"):
            worst[name] = (0.0, 0.0)
        for token in row.sample("q", samples, seed):
            for head in range(row.heads_q):
                dq = [0.0] * row.head_dim
                for key in (k for a, b in row.mask.visible(token) for k in range(a, b)):
                    _, ds = self._cell(token, head, key, head // group)
                    dq = [x + row.scale * ds * y for x, y in zip(dq, self.k.at(key, head // group))]
                _note(worst, "dq", self.dq.at(token, head), dq)
        for key in row.sample("k", samples, seed):
            for kv in range(row.heads_kv):
                dk, dv = [0.0] * row.head_dim, [0.0] * row.head_dim_v
                for token in (q for a, b in row.mask.viewers(key) for q in range(a, b)):
                    for head in range(kv * group, (kv + 1) * group):
                        p, ds = self._cell(token, head, key, kv)
                        dk = [x + row.scale * ds * y for x, y in zip(dk, self.q.at(token, head))]
                        dv = [x + p * y for x, y in zip(dv, self.dout.at(token, head))]
                _note(worst, "dk", self.dk.at(key, kv), dk)
                _note(worst, "dv", self.dv.at(key, kv), dv)


def _note(worst, name, got, want):
    """Keeps the largest error and the largest value; NaN counts as infinite error."""
    error, largest = worst[name]
    for x, y in zip(got, want):
        difference = abs(x - y)
        error = max(error, math.inf if math.isnan(difference) else difference)
        largest = max(largest, abs(y))
    worst[name] = (error, largest)
