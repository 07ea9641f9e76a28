"""Rows in the memory of a CUDA device, through torch: inputs, the library's calls, and checks of sampled tokens in f64.

All of it also works on torch's "cpu" device, with the CPU backend: test_bench.py does that where torch is there.
"""
import ctypes as C
import math
import time

import magi
import torch

DTYPES = {"bf16": (torch.bfloat16, magi.BF16), "f16": (torch.float16, magi.F16)}
CODES = {torch.bfloat16: magi.BF16, torch.float16: magi.F16, torch.float32: magi.F32}


def describe(t):
    """The magi_tensor of a torch tensor, which has to live as long."""
    where = (magi.CUDA, t.device.index) if t.is_cuda else (magi.CPU, 0)
    return magi.tensor(t.data_ptr(), CODES[t.dtype], t.shape, t.stride(), *where)


class DeviceRow:
    """Tensors of a row; outputs hold NaN until a call writes them. Without a library there are tensors only."""

    def __init__(self, library, row, seed, sm_margin=0, device="cuda:0", deterministic=False):
        self.row, self.library, self.sm_margin, self.deterministic = row, library, sm_margin, deterministic
        self.device = torch.device(device)
        draw = torch.Generator(device=self.device).manual_seed(seed)
        dtype, _ = DTYPES[row.dtype]
        tq, tk, hq, hk = row.mask.total_q, row.mask.total_k, row.heads_q, row.heads_kv
        d, dv = row.head_dim, row.head_dim_v

        def normal(*shape):
            return torch.randn(*shape, device=self.device, dtype=torch.float32, generator=draw).to(dtype)

        self.q, self.k, self.v = normal(tq, hq, d), normal(tk, hk, d), normal(tk, hk, dv)
        self.out = torch.empty(tq, hq, dv, device=self.device, dtype=dtype)
        self.lse = torch.empty(tq, hq, device=self.device, dtype=torch.float32)
        if row.backward:
            self.dout = normal(tq, hq, dv)
            self.dq, self.dk, self.dv = (torch.empty_like(x) for x in (self.q, self.k, self.v))
        if library is None:
            return
        self.mask = self._mask()
        # What is timed is `call`.
        self.forward = self._call(magi.ForwardArgs, ("q", "k", "v", "out", "lse"))
        self.call = self.forward
        if row.backward:
            self.call = self._call(magi.BackwardArgs, ("q", "k", "v", "out", "lse", "dout", "dq", "dk", "dv"))

    def poison(self):
        """Fills outputs with NaN, so that an element that no call writes is found."""
        for name in ("out", "lse") + (("dq", "dk", "dv") if self.row.backward else ()):
            getattr(self, name).fill_(math.nan)

    def _mask(self):
        mask = self.row.mask
        return magi.Mask(self.library, mask.slices, mask.total_q, mask.total_k)

    def _call(self, kind, names):
        """A function of a stream handle that makes a function which enqueues the call on that stream."""
        tensors = {name: describe(getattr(self, name)) for name in names}
        args = kind(**{name: C.pointer(t) for name, t in tensors.items()})
        options = magi.FlexOptions(sm_margin=self.sm_margin, deterministic=int(self.deterministic))
        needed = self.library.workspace_bytes(args, options)
        workspace = torch.empty(needed + 256, dtype=torch.uint8, device=self.device)
        if needed:
            address = workspace.data_ptr()
            options.workspace, options.workspace_size = address + -address % 256, needed

        def on(stream):
            call = self.library.enqueue(self.mask, args, options, stream)
            call.workspace = workspace
            return call

        on.workspace_bytes, on.args, on.options = needed, args, options
        return on

    def prepare_ms(self, stream):
        """Host time of preparing the timed pass for a mask that was not used before, kernels being loaded: milliseconds."""
        mask = self._mask()
        begin = time.perf_counter()
        self.library.prepare(mask, self.call.args, self.call.options, stream)
        return (time.perf_counter() - begin) * 1e3

    def run(self, stream):
        """Poisons the outputs and computes them: forward, then backward if it is the row's."""
        self.poison()
        self.forward(stream)()
        if self.row.backward:
            self.call(stream)()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def check(self, samples, seed):
        """Errors of sampled tokens against f64, a head at a time; whether they keep the project's bounds."""
        written = bool(torch.isfinite(self.out).all()) and not bool(torch.isnan(self.lse).any())
        tokens = self.row.sample("q", samples, seed)
        lse_good, lse_error = True, 0.0
        got, want, plain = [], [], []
        for token in tokens:
            out, lse, textbook = self._reference(token)
            got.append(self.out[token].double())
            want.append(out)
            plain.append(textbook)
            mine = self.lse[token].double()
            if lse is None:
                lse_good &= bool((mine == -math.inf).all()) and bool((self.out[token] == 0).all())
                continue
            difference = (mine - lse).abs()
            lse_good &= bool((difference <= 1e-4 + 1e-6 * lse.abs()).all())
            lse_error = max(lse_error, difference.max().item())
        got, want, plain = (torch.stack(x) for x in (got, want, plain))
        # [tokens, heads, dim] -> a figure a head
        mine, theirs = ((x - want).abs().amax((0, 2)) for x in (got, plain))
        largest = want.abs().amax((0, 2))
        allowed = 2 * theirs + torch.finfo(self.out.dtype).eps * largest / 4
        out_good = bool((mine <= allowed).all())
        ratio = (mine / allowed.clamp_min(1e-30)).max().item()
        error = ((got - want).norm() / want.norm().clamp_min(1e-30)).item()
        result = {
            "good": written and out_good and lse_good,
            "written": written,
            "rows": len(tokens),
            "out_of_bound": ratio,
            "out_relative": error,
            "lse_absolute": lse_error,
        }
        if self.row.backward:
            self._check_backward(samples, seed, result)
        return result

    def _keys(self, token):
        ranges = self.row.mask.visible(token)
        return torch.cat([torch.arange(a, b, device=self.device) for a, b in ranges]) if ranges else None

    def _reference(self, token):
        """out [heads, dim] in f64, lse [heads] or None where nothing is seen, and the textbook's out."""
        row, keys = self.row, self._keys(token)
        if keys is None:
            nothing = torch.zeros(row.heads_q, row.head_dim_v, device=self.device, dtype=torch.float64)
            return nothing, None, nothing

        def attend(real, p_dtype):
            q = self.q[token].to(real).view(row.heads_kv, -1, row.head_dim)
            s = torch.einsum("hgd,nhd->hgn", q, self.k[keys].to(real)) * row.scale
            lse = torch.logsumexp(s, -1, keepdim=True)
            p = torch.exp(s - lse).to(p_dtype).to(real)
            out = torch.einsum("hgn,nhv->hgv", p, self.v[keys].to(real))
            return out.reshape(row.heads_q, row.head_dim_v), lse.reshape(row.heads_q)

        out, lse = attend(torch.float64, torch.float64)
        textbook, _ = attend(torch.float32, self.out.dtype)
        return out, lse, textbook.to(self.out.dtype).double()

    def _check_backward(self, samples, seed, result):
        """Sampled rows of dq, dk and dv by their relative error; what forward returned enters as it is."""
        row, group = self.row, self.row.heads_q // self.row.heads_kv
        delta = (self.dout.double() * self.out.double()).sum(-1)
        pairs = {"dq": [], "dk": [], "dv": []}

        def cells(queries, keys):
            """p and the logits' gradients [heads_kv, group, queries, keys], with q and dout of the queries."""
            q, dout = (x[queries].double().unflatten(1, (row.heads_kv, group)) for x in (self.q, self.dout))
            lse, d = (x[queries].double().unflatten(1, (row.heads_kv, group)).permute(1, 2, 0)[..., None] for x in (self.lse, delta))
            p = torch.exp(torch.einsum("qhgd,khd->hgqk", q, self.k[keys].double()) * row.scale - lse)
            ds = p * (torch.einsum("qhgv,khv->hgqk", dout, self.v[keys].double()) - d) * row.scale
            return p, ds, q, dout

        for token in row.sample("q", samples, seed):
            keys = self._keys(token)
            want = torch.zeros(row.heads_q, row.head_dim, device=self.device, dtype=torch.float64)
            if keys is not None:
                _, ds, _, _ = cells(torch.tensor([token], device=self.device), keys)
                want = torch.einsum("hgqk,khd->qhgd", ds, self.k[keys].double()).reshape(row.heads_q, row.head_dim)
            pairs["dq"].append((self.dq[token].double(), want))
        for key in row.sample("k", samples, seed):
            ranges = row.mask.viewers(key)
            dk, dv = (torch.zeros(row.heads_kv, n, device=self.device, dtype=torch.float64) for n in (row.head_dim, row.head_dim_v))
            for a, b in ranges:
                queries = torch.arange(a, b, device=self.device)
                p, ds, q, dout = cells(queries, torch.tensor([key], device=self.device))
                dk += torch.einsum("hgqk,qhgd->hd", ds, q)
                dv += torch.einsum("hgqk,qhgv->hv", p, dout)
            pairs["dk"].append((self.dk[key].double(), dk))
            pairs["dv"].append((self.dv[key].double(), dv))
        # Twice what P and dS, rounded to the dtype, leave.
        bound = 4 * torch.finfo(self.out.dtype).eps / 3
        for name, found in pairs.items():
            got, want = (torch.stack(x) for x in zip(*found))
            error = ((got - want).norm() / want.norm().clamp_min(1e-30)).item()
            result[f"{name}_relative"] = error
            result["good"] &= error <= bound and bool(torch.isfinite(getattr(self, name)).all())
