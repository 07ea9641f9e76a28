"""What distributed.py needs of torch: inputs that every rank draws alike, rows gathered from ranks, an exact reference, and times in
turns. On CUDA devices through NCCL, and for tests on the host through gloo.
"""
import math
import statistics
import time

import torch
import torch.distributed as dist

# Tokens that are drawn together, so that a rank draws only near its own.
DRAWN = 4096
FLUSH_BYTES = 256 << 20


class Inputs:
    """Random normal tensors of a row: token i is the same whoever asks for it."""

    def __init__(self, row, dtype, seed, device):
        self.dtype, self.seed, self.device = dtype, seed, device
        self.total = row.mask.total_q
        self.shapes = {
            "q": (row.heads_q, row.head_dim),
            "k": (row.heads_kv, row.head_dim),
            "v": (row.heads_kv, row.head_dim_v),
            "dout": (row.heads_q, row.head_dim_v),
        }

    def rows(self, name, positions):
        """[positions, heads, dim] of the tokens at `positions`, ascending, on the host."""
        shape = self.shapes[name]
        found = torch.empty(len(positions), *shape, dtype=self.dtype, device=self.device)
        draw = torch.Generator(device=self.device)
        for begin in range(0, self.total, DRAWN):
            end = min(begin + DRAWN, self.total)
            first, last = torch.searchsorted(positions, torch.tensor([begin, end])).tolist()
            if first == last:
                continue
            draw.manual_seed(self.seed * 4096 + "qkvd".index(name[0]) * 1024 + begin // DRAWN)
            block = torch.randn(end - begin, *shape, device=self.device, generator=draw).to(self.dtype)
            found[first:last] = block[(positions[first:last] - begin).to(self.device)]
        return found

    def load(self, one):
        """Gives a contestant what its rank holds."""
        sides = {"q": one.positions, "k": one.positions_k, "v": one.positions_k, "dout": one.positions}
        one.load(*(self.rows(name, positions) for name, positions in sides.items()))


def rows_at(tensor, positions, wanted, device):
    """[wanted, heads, dim] in f64: the sum over ranks of rows of tokens `wanted`, each rank having those at `positions`."""
    at = torch.searchsorted(positions, wanted).clamp_max(max(len(positions) - 1, 0))
    found = torch.zeros(len(wanted), *tensor.shape[1:], dtype=torch.float64, device=device)
    if len(positions):
        have = positions[at] == wanted
        found[have.to(device)] = tensor[at[have].to(device)].double()
    dist.all_reduce(found)
    return found


def agree(good, device):
    """Whether it is so on every rank."""
    flag = torch.tensor([int(good)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def exact(row, inputs, device):
    """out, dq, dk and dv in f64, for a few thousand tokens at most."""
    everything = torch.arange(row.mask.total_q)
    q, k, v, dout = (inputs.rows(name, everything).double() for name in ("q", "k", "v", "dout"))
    seen = torch.zeros(row.mask.total_q, row.mask.total_k, dtype=torch.bool)
    for token in range(row.mask.total_q):
        for a, b in row.mask.visible(token):
            seen[token, a:b] = True
    seen, group = seen.to(device), row.heads_q // row.heads_kv
    out, dq, dk, dv = (torch.zeros_like(x) for x in (dout, q, k, v))
    for head in range(row.heads_kv):
        mine = slice(head * group, (head + 1) * group)
        s = torch.einsum("qgd,kd->gqk", q[:, mine], k[:, head]) * row.scale
        p = torch.softmax(s.masked_fill(~seen, -math.inf), -1).nan_to_num(0.0)
        out[:, mine] = torch.einsum("gqk,kv->qgv", p, v[:, head])
        delta = (out[:, mine] * dout[:, mine]).sum(-1).T[..., None]
        ds = p * (torch.einsum("qgv,kv->gqk", dout[:, mine], v[:, head]) - delta) * row.scale
        dq[:, mine] = torch.einsum("gqk,kd->qgd", ds, k[:, head])
        dk[:, head] = torch.einsum("gqk,qgd->kd", ds, q[:, mine])
        dv[:, head] = torch.einsum("gqk,qgv->kv", p, dout[:, mine])
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def relative(got, want):
    """|got - want| / |want|; NaN where either holds NaN."""
    error = norm = 0.0
    # Piece by piece, so that f64 copies stay small.
    for a, b in zip(got.split(DRAWN), want.split(DRAWN)):
        a, b = a.double(), b.double()
        error += (a - b).square().sum().item()
        norm += b.square().sum().item()
    return (error / norm) ** 0.5 if norm else math.sqrt(error)


class Turns:
    """Functions that all ranks call together, by name. Each round calls every one once, in order; each begins when all ranks have
    come to it, with an L2 cache that holds nothing of use."""

    def __init__(self, device, warmup, rounds, seconds):
        self.device, self.warmup, self.rounds, self.seconds = device, warmup, rounds, seconds
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES if self.cuda else 1, dtype=torch.uint8, device=device)
        self.meet = torch.zeros(1, device=device)

    def _once(self, call):
        """Milliseconds of a call, as a function to be asked after the round."""
        self.flush.zero_()
        dist.all_reduce(self.meet)
        if not self.cuda:
            begin = time.perf_counter()
            call()
            took = (time.perf_counter() - begin) * 1e3
            return lambda: took
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        return lambda: begin.elapsed_time(end)

    def _round(self, calls):
        """Milliseconds by name, of this rank."""
        asked = {name: self._once(call) for name, call in calls.items()}
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return {name: ask() for name, ask in asked.items()}

    def run(self, calls):
        """({name: Times}, rounds that counted). At least 3 rounds count; more while all take fewer than the given seconds."""
        for _ in range(self.warmup):
            begin = time.perf_counter()
            self._round(calls)
            slowest = torch.tensor([time.perf_counter() - begin], dtype=torch.float64, device=self.device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        rounds = max(3, min(self.rounds, int(self.seconds / max(slowest.item(), 1e-6))))
        mine = [self._round(calls) for _ in range(rounds)]
        table = torch.tensor([[found[name] for found in mine] for name in calls], dtype=torch.float64, device=self.device)
        every = [torch.empty_like(table) for _ in range(dist.get_world_size())]
        dist.all_gather(every, table)
        # [ranks, names, rounds]
        every = torch.stack(every).cpu()
        return {name: Times(every[:, i]) for i, name in enumerate(calls)}, rounds


class Times:
    """Of one function, [ranks, rounds] in milliseconds."""

    def __init__(self, table):
        # A round is over when the slowest rank is.
        self.ms = statistics.median(table.amax(0).tolist())
        self.ms_by_rank = [statistics.median(row) for row in table.tolist()]
        self.ms_least = table.amax(0).min().item()
