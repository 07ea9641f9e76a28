"""Tensors, options and the f64 reference of backward calls on a CUDA device, for the programs one folder up."""
import ctypes as C
import math

import torch

import forward_calls
import magi
from forward_calls import DEVICE, ULP, NoMask, Ranges, bits, describe

NAMES = ("dq", "dk", "dv", "dsink")
ADD = {"dq": 1, "dk": 2, "dv": 4, "dsink": 8}


class Call(forward_calls.Call):
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
        return ULP[self.dtype] / 2 * product * (norm(self.k, self.seen) if name == "dq" else norm(self.q, self.sees)) * abs(self.factor())


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
        return {n: bits(t) for n, t in self.results.items() if n != "dq" or self.call.deterministic}
