#!/usr/bin/env python3
"""Checks attention of several ranks against f64, on a machine with torch: every listed mask with every degree, and random masks, forward
and backward, in turn with what a config can ask for. Each rank judges the whole, by the bounds of tests/gpu/forward.py and backward.py,
and that its own rows are those of the whole; what was moved must be what the plan says, and with --nccl-log what NCCL says in its log.
One rank a process, as torchrun starts them; with --device cpu threads of this process.

  torchrun --nproc-per-node 4 tests/gpu/ranks/masks_on_ranks.py [--random 200] [--only NAME] [--out masks_on_ranks.json]
"""
import argparse
import copy
import ctypes as C
import json
import math
import os
import random
import sys
import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in (HERE, os.path.join(HERE, ".."), os.path.join(HERE, "..", "..", "..", "bench")):
    sys.path.insert(0, folder)
import backward  # noqa: E402
import forward  # noqa: E402
import backward_calls  # noqa: E402 (the two above lead to its folder)
import forward_calls  # noqa: E402
import magi  # noqa: E402
import ranks  # noqa: E402
import results  # noqa: E402
from device import describe  # noqa: E402
from nccl_log import NcclLog  # noqa: E402
from sites import Processes, Threads  # noqa: E402

DEGREES = (0, 1, 2, 4, -1)
BACKENDS = {"ffa": magi.FFA, "sdpa": magi.SDPA, "default": magi.DEFAULT}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
# What a config asks for, in turn. Host stages of backward: first, last, half at either end.
VARIANTS = {
    "plain": {},
    "deterministic": {"deterministic": 1},
    "queries travel": {"qo_comm": 1, "balance_slack": 1000},
    "host stage first": {"bwd_hide_tail_reduce": 0, "backward_high_precision_reduce": 1},
    "host stage last": {"bwd_hide_tail_reduce": 1},
    "host stage split": {"bwd_hide_tail_reduce": 2},
    "mesh": {"hierarchical_comm": 1},
    "second mask": {},
}
# Cells of a reference that are computed at once.
CELLS = 1 << 27
OUTPUTS = {"out": ranks.SIDE_Q, "lse": ranks.SIDE_Q, "dq": ranks.SIDE_Q, "dk": ranks.SIDE_K, "dv": ranks.SIDE_K}


class Problem:
    """A mask, tensors, and what comes of them in f64 and by a textbook, each a few rows at a time."""

    def __init__(self, name, slices, tq, tk, chunk, call):
        self.name, self.slices, self.tq, self.tk, self.chunk, self.call = name, slices, tq, tk, chunk, call
        call.sees = torch.cat([see.any(1) for _, _, see in self.pieces()])
        call.seen = torch.zeros(tk, dtype=torch.bool, device=call.k.device)
        for _, _, see in self.pieces():
            call.seen |= see.any(0)
        call.k[~call.seen], call.v[~call.seen] = math.nan, math.nan
        # Backward gets NaN where a query sees nothing, too.
        self.hidden = {"q": call.q.clone(), "dout": call.dout.clone()}
        for tensor in self.hidden.values():
            tensor[~call.sees] = math.nan
        self._compute()

    def pieces(self):
        """(first row, last, which cells they see)."""
        rows = max(1, CELLS // max(1, self.tk))
        for a in range(0, self.tq, rows):
            b = min(self.tq, a + rows)
            # The rows' own coordinates: a diagonal runs through corners.
            inside = [(q0 - a, q1 - a, k0, k1, kind) for q0, q1, k0, k1, kind in self.slices if q0 < b and q1 > a]
            yield a, b, visible(inside, b - a, self.tk, self.call.q.device)

    def _compute(self):
        call, real = self.call, (torch.float64, torch.float32)
        out, lse, plain_out, most = [], [], [], 0
        maxima = torch.full((call.q.shape[1],), -math.inf, dtype=torch.float64, device=call.q.device)
        exact, plain = {}, {}
        for a, b, see in self.pieces():
            part = copy.copy(call)
            part.q, part.dout, part.sees = call.q[a:b], self.hidden["dout"][a:b], call.sees[a:b]
            if call.sink is not None and call.sink.dim() == 3:
                part.sink = call.sink[a:b]
            one = forward.softmax(part, call.k, call.v, see, real[0])
            out.append(one[0])
            lse.append(one[1])
            maxima = torch.maximum(maxima, one[2])
            plain_out.append(forward.softmax(part, call.k, call.v, see, real[1], rounded=True)[0])
            for found, dtype in ((exact, real[0]), (plain, real[1])):
                gradients = backward.gradients(part, see, dtype, rounded=found is plain)[2]
                for name, value in gradients.items():
                    found.setdefault(name, []).append(value)
            most = part.most if a == 0 else torch.maximum(most, part.most)
        self.forward, self.plain_out = (torch.cat(out), torch.cat(lse), maxima), torch.cat(plain_out)
        self.gradients, self.plain = self._whole(exact), self._whole(plain)
        call.most = most

    def _whole(self, parts):
        rows = {"dq"} | ({"dsink"} if self.call.sink is not None and self.call.sink.dim() == 3 else set())
        return {name: torch.cat(each) if name in rows else sum(each[1:], each[0]) for name, each in parts.items()}


def visible(slices, rows, tk, device):
    """As forward.visible, of the rows and keys of each slice alone."""
    see = torch.zeros(rows, tk, dtype=torch.bool, device=device)
    for a, b, c, d, kind in slices:
        first, last = max(a, 0), min(b, rows)
        q = torch.arange(first, last, dtype=torch.int32, device=device)[:, None]
        k = torch.arange(c, d, dtype=torch.int32, device=device)[None]
        inside = torch.ones(last - first, d - c, dtype=torch.bool, device=device)
        if kind in (magi.CAUSAL, magi.BI_CAUSAL):
            inside &= k - q <= d - b
        if kind in (magi.INV_CAUSAL, magi.BI_CAUSAL):
            inside &= k - q >= c - a
        see[first:last, c:d] |= inside
    return see


class Judge(backward.Suite):
    """Collects what is wrong."""

    def __init__(self):
        super().__init__(None)
        self.wrong, self.worst_of = [], {"forward": 0.0, "backward": 0.0}

    def fail(self, what, why):
        self.wrong.append(f"{what}: {why}")

    def run(self, what, problem, whole, maxima):
        """Compares whole tensors by name."""
        call, self.worst = problem.call, 0.0
        forward.Suite.compare(self, what, call, whole["out"], whole["lse"], maxima, problem.forward, problem.plain_out)
        worst, self.worst = [self.worst], 0.0
        self.compare(what, call, {n: t for n, t in whole.items() if n in call.start}, problem.gradients, problem.plain)
        worst.append(self.worst)
        for kind, one in zip(self.worst_of, worst):
            self.worst_of[kind] = max(self.worst_of[kind], one)
        return worst


def bits(tensor):
    """As integers, in which NaN is what it is."""
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


class OnRank:
    """Tensors of a problem on one rank, and calls on a key."""

    def __init__(self, rank, key, problem):
        self.rank, self.key, self.problem, call = rank, key, problem, problem.call
        key.prepare(rank.stream)
        self.positions = {side: torch.tensor(key.positions(side), dtype=torch.int64, device=rank.device) for side in (ranks.SIDE_Q, ranks.SIDE_K)}
        inputs = {"q": (ranks.SIDE_Q, call.q), "k": (ranks.SIDE_K, call.k), "v": (ranks.SIDE_K, call.v)}
        inputs.update({"hidden": (ranks.SIDE_Q, problem.hidden["q"]), "dout": (ranks.SIDE_Q, problem.hidden["dout"])})
        self.sides, like = dict(OUTPUTS), {"out": call.dout, "lse": torch.empty(0, call.q.shape[1], device=rank.device), **call.start}
        self.at = {}
        if call.sink is not None and call.sink.dim() == 3:
            inputs["sink"], self.sides["dsink"] = (ranks.SIDE_Q, call.sink), ranks.SIDE_Q
        elif call.sink is not None:
            self.at["sink"], self.at["dsink"] = call.sink, torch.empty_like(call.sink)
        for name, (side, whole) in inputs.items():
            self.at[name] = self._like(whole, len(self.positions[side]))
            key.dispatch(side, describe(whole), describe(self.at[name]), rank.stream)
        self.at.update({name: self._like(like[name], len(self.positions[side])) for name, side in self.sides.items()})
        self.maxima = torch.empty(call.q.shape[1], device=rank.device)

    def _like(self, whole, rows):
        return torch.full((rows, *whole.shape[1:]), math.nan, dtype=whole.dtype, device=self.rank.device)

    def outputs(self):
        """By name."""
        names = [*self.sides] + (["dsink"] if "dsink" in self.at and "dsink" not in self.sides else [])
        found = {name: self.at[name] for name in names}
        return {**found, "max_logits": self.maxima} if self.problem.call.maxima else found

    def run(self):
        """Forward and backward into poisoned tensors; bytes (sent, received) of each."""
        for tensor in self.outputs().values():
            tensor.fill_(math.nan)
        at = {name: C.pointer(describe(tensor)) for name, tensor in self.at.items()}
        maxima = C.pointer(describe(self.maxima)) if self.problem.call.maxima else None
        of_forward = {name: at[name] for name in ("q", "k", "v", "sink", "out", "lse") if name in at}
        of_backward = {name: at[name] for name in at if name not in ("q", "hidden")}
        args = (magi.ForwardArgs(max_logits=maxima, **of_forward), magi.BackwardArgs(q=at["hidden"], **of_backward))
        counts, log, self.told = [self.rank.comm.traffic()], self.rank.log, []
        for each in args:
            if log:
                log.read()
            self.key.enqueue(each, self.rank.stream)()
            counts.append(self.rank.comm.traffic())
            if log:
                self.told.append(log.read())
        self.rank.synchronize()
        self.rank.comm.check()
        return [tuple(b - a for a, b in zip(before, after)) for before, after in zip(counts, counts[1:])]

    def whole(self, wrong):
        """The outputs of all ranks, of which this one's rows are where its positions say."""
        found = {"dsink": self.at["dsink"]} if "dsink" in self.at else {}
        for name, side in self.sides.items():
            mine = self.at[name]
            found[name] = self._like(mine, self.problem.tq if side == ranks.SIDE_Q else self.problem.tk)
            self.key.undispatch(side, describe(mine), describe(found[name]), self.rank.stream)
            self.rank.synchronize()
            if not torch.equal(bits(found[name][self.positions[side]]), bits(mine)):
                wrong.append(f"{name} undispatched has other rows than dispatch gave")
        return found


class Rank:
    """Runs everything on one rank."""

    def __init__(self, library, comm, rank, ring, options):
        self.library, self.comm, self.rank, self.ring, self.options = library, comm, rank, ring, options
        self.on_host = options.device == "cpu"
        self.device = torch.device("cpu") if self.on_host else torch.device("cuda", torch.cuda.current_device())
        self.stream = None if self.on_host else torch.cuda.current_stream().cuda_stream
        self.judge, self.rows, self.moved, self.log = Judge(), [], [], None
        self.begun = time.monotonic()
        comm.set_mesh(2 if ring.world % 2 == 0 else 1, ring.world // 2 if ring.world % 2 == 0 else ring.world)

    def synchronize(self):
        """Waits for the stream."""
        if not self.on_host:
            torch.cuda.current_stream().synchronize()

    def problem(self, rng, name, slices, tq, tk, chunk, sink, std=1.0, maxima=False):
        """With random tensors, the same on every rank."""
        heads, dims = tuple(map(int, self.options.heads.split(":"))), (self.options.dim,) * 2
        call = backward.Call(rng, tq, tk, heads, dims, DTYPES[self.options.dtype], sink=sink, std=std, maxima=maxima)
        return Problem(name, slices, tq, tk, chunk, call)

    def key(self, problem, variant, degree, settings):
        """And, where it is the second mask on a placement, the key of the first."""
        shape = (*map(int, self.options.heads.split(":")), self.options.dim, self.options.dim)
        shape = ranks.AttnShape(**dict(zip(("heads_q", "heads_kv", "head_dim", "head_dim_v"), shape)), dtype={"bf16": magi.BF16, "f16": magi.F16}[self.options.dtype])
        fields = {"chunk_size": problem.chunk, "degree_forward": degree, "degree_backward": degree, "dsink_reduce": 1, "cache_size": 0}
        # In host memory there is one backend only; on devices none may stand in for the one that is asked for.
        fields["backend"] = magi.DEFAULT if self.on_host else BACKENDS[self.options.backend]
        config = ranks.config_of(self.library, {**fields, **VARIANTS[variant], **settings})
        mask = magi.Mask(self.library, problem.slices, problem.tq, problem.tk)
        if variant != "second mask":
            return ranks.Key(self.comm, mask, shape, config), None
        full = magi.Mask(self.library, [(0, problem.tq, 0, problem.tk, magi.CAUSAL)], problem.tq, problem.tk)
        first = ranks.Key(self.comm, full, shape, config)
        return first.for_new_mask(mask), first

    def check(self, problem, variant, degree, settings=None):
        """One key's calls; a row of the result."""
        what = f"{problem.name}, degree {degree}, {variant}"
        call, before = problem.call, len(self.judge.wrong)
        key, first = self.key(problem, variant, degree, settings or {})
        on = OnRank(self, key, problem)
        moved = [on.run()]
        if variant == "deterministic":
            kept = {name: bits(tensor).clone() for name, tensor in on.outputs().items()}
            moved.append(on.run())
            other = [name for name, tensor in on.outputs().items() if not torch.equal(kept[name], bits(tensor))]
            if other:
                self.judge.fail(what, f"another run gave other bits of {other}")
        worst = self.judge.run(what, problem, on.whole(self.judge.wrong), on.maxima if call.maxima else None)
        stats, own = key.stats(), key.rank_stats(self.rank)
        # What is exchanged beside the plan, where it is not the host that exchanges.
        beside = 0 if self.on_host else 4 * call.q.shape[1] * (self.ring.world - 1)
        want = tuple(own[name] + beside * call.maxima for name in ("bytes_sent", "bytes_received"))
        if on.told and on.told != moved[-1]:
            self.judge.fail(what, f"NCCL was told to move {on.told} bytes, counted are {moved[-1]}")
        for forward_bytes, backward_bytes in moved:
            if forward_bytes != want:
                self.judge.fail(what, f"forward moved {forward_bytes}, by the plan {want}")
            shared = call.sink is not None and call.sink.dim() == 2
            self.moved.append((what, backward_bytes, stats["bytes_backward"] + beside * self.ring.world * (call.sink.shape[0] if shared else 0)))
        row = {"mask": problem.name, "tokens_q": problem.tq, "tokens_k": problem.tk, "degree": degree, "variant": variant}
        row.update({"sinks": list(call.sink.shape[:-1]) if call.sink is not None else [], "max_logits": call.maxima})
        row.update({name: stats[name] for name in ("stages_forward", "stages_backward", "bytes_forward", "bytes_backward", "queries_moved", "tokens_moved")})
        row.update({"forward_of_bound": worst[0], "backward_of_bound": worst[1], "outcome": "; ".join(self.judge.wrong[before:]) or "good"})
        self.rows.append(row)
        for one in (key, first):
            if one:
                one.close()

    def listed(self):
        """Every mask of the list with every degree."""
        cases = listed(self.options, self.library)
        for number, (name, slices, tq, tk, chunk, sinks) in enumerate(cases):
            rng = random.Random(f"{self.options.seed} {name}")
            sink = ("shared" if number % 2 else "tokens", sinks, 1.0) if sinks else None
            problem = self.problem(rng, name, slices, tq, tk, chunk, sink, maxima=number % 3 == 0)
            for d, degree in enumerate(DEGREES):
                variant = list(VARIANTS)[(5 * number + d) % len(VARIANTS)]
                self.check(problem, variant, degree)
            self.say(f"[{number + 1}/{len(cases)}] {name}")

    def random(self):
        """Random masks, each with one degree."""
        rng = random.Random(self.options.seed)
        for number in range(self.options.random):
            slices, tq, tk = scaled(self.library, *forward.random_mask(rng), self.options.tokens)
            sink = rng.choice((None, None, ("shared", rng.randrange(1, 9), 1.0), ("tokens", rng.randrange(1, 9), 1.0)))
            large = rng.random() < 0.12
            chunk, maxima, degree = rng.choice((5, 16, 64, 128)), rng.random() < 0.5, rng.choice(DEGREES)
            problem = self.problem(rng, f"random {number}", slices, tq, tk, chunk, sink, 20.0 if large else 1.0, maxima)
            # Large logits cancel: what travels is not to be rounded then.
            self.check(problem, rng.choice(list(VARIANTS)), degree, {"backward_high_precision_reduce": 1} if large else {})
            if (number + 1) % 20 == 0:
                self.say(f"[{number + 1}/{self.options.random}] random masks")

    def say(self, text):
        """Progress, of rank 0."""
        if self.rank == 0:
            worst = ", ".join(f"{kind} at {w:.2f}" for kind, w in self.judge.worst_of.items())
            print(f"{text}: {len(self.rows)} checked, {len(self.judge.wrong)} wrong, {worst} of bounds [{time.monotonic() - self.begun:.1f} s]", file=sys.stderr, flush=True)

    def run(self):
        """Everything; what every rank says."""
        error = None
        try:
            self.listed()
            self.random()
        # The others wait for this rank: they are to hear of it, whatever it is.
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
            print(f"rank {self.rank}: {error}", file=sys.stderr, flush=True)
            self.comm.abort(error)
        mine = {"rank": self.rank, "error": error, "wrong": self.judge.wrong, "worst": self.judge.worst_of, "moved": self.moved}
        return self.ring.gather(self.rank, mine)


def scaled(library, slices, tq, tk, tokens):
    """With so many tokens on the longer side, 0: as they are. Slices that then overlap are left out."""
    by = max(1, max(tq, tk) // tokens) if tokens else 1
    if by == 1:
        return slices, tq, tk
    tq, tk, kept = max(1, tq // by), max(1, tk // by), []
    for *ends, kind in slices:
        one = (*(e // by for e in ends), kind)
        try:
            magi.Mask(library, [*kept, one], tq, tk)
        except magi.Error:
            continue
        if one[0] < one[1] and one[2] < one[3]:
            kept.append(one)
    return kept, tq, tk


def listed(options, library):
    """(name, slices, queries, keys, chunk, sinks) of the masks that were asked for."""
    with open(options.masks, encoding="utf-8") as file:
        cases = json.load(file)
    found = []
    for case, (name, slices, tq, tk) in zip(cases, forward.listed(options.masks)):
        if options.only in name:
            by = max(1, max(tq, tk) // options.tokens) if options.tokens else 1
            found.append((name, *scaled(library, slices, tq, tk, options.tokens), max(1, case["chunk_size"] // by), case["sink_tokens"]))
    return found


def judge(all_, rows, options):
    """What is bad about a run: a list of words."""
    bad = [f"rank {one['rank']}: {one['error']}" for one in all_ if one["error"]]
    bad += [f"rank {one['rank']}: {text}" for one in all_ for text in one["wrong"]]
    if any(one["error"] for one in all_):
        return bad
    for of_ranks in zip(*(one["moved"] for one in all_)):
        sent, received = (sum(count[i] for _, count, _ in of_ranks) for i in (0, 1))
        what, _, want = of_ranks[0]
        if (sent, received) != (want, want):
            bad.append(f"{what}: backward of all ranks sent {sent} and received {received}, by the plan {want}")
    # A run over everything must have met everything.
    if not options.only and len(all_) > 1:
        met = {"queries that travel": "queries_moved", "bytes that move": "bytes_forward"}
        bad += [f"no mask had {what}" for what, name in met.items() if not any(row[name] for row in rows)]
    return bad


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--world", type=int, default=4, help="ranks with --device cpu")
    add("--random", type=int, help="random masks: 200; 16 with --device cpu")
    add("--only", default="", help="listed masks whose name holds this")
    add("--tokens", type=int, help="masks are scaled down to so many, 0: not; 0; 96 with --device cpu")
    add("--heads", default="4:2")
    add("--dim", type=int, help="128; 16 with --device cpu")
    add("--dtype", choices=list(DTYPES), default="bf16")
    add("--backend", choices=list(BACKENDS), default="ffa", help="of CUDA devices")
    add("--seed", type=int, default=2026)
    add("--masks", default=os.path.join(HERE, "..", "..", "cases", "masks.json"))
    add("--library", help="path of libmagi_attn.so")
    add("--nccl-log", help="folder for NCCL's logs: bytes are compared with those; of CUDA devices")
    add("--out", help="result file, of rank 0")
    options = parser.parse_args(argv)
    small = options.device == "cpu"
    for name, on_host, on_device in (("random", 16, 200), ("tokens", 96, 0), ("dim", 16, 128)):
        if getattr(options, name) is None:
            setattr(options, name, on_host if small else on_device)
    return options


def on_threads(options, library):
    """Rank 0, and what every rank says."""
    comms, ring, made = ranks.Comm.local(library, options.world), Threads(options.world), [None] * options.world
    for module in (forward, backward, forward_calls, backward_calls):
        module.DEVICE = "cpu"
    found = []

    def work(rank):
        made[rank] = Rank(library, comms[rank], rank, ring, options)
        all_ = made[rank].run()
        if rank == 0:
            found.extend(all_)

    ranks.on_threads(comms, work)
    return made[0], found


def on_device(options, library):
    """This rank, and what every rank says."""
    log = NcclLog(options.nccl_log) if options.nccl_log else None
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_stream(torch.cuda.Stream())
    ring = Processes()
    comm = ranks.Comm.from_env(library, 60_000)
    rank = Rank(library, comm, int(os.environ["RANK"]), ring, options)
    rank.log = log
    found = rank.run()
    comm.close()
    ring.dist.destroy_process_group()
    return rank, found


def main(argv=None):
    """Exit code: 0 when all went well."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    torch.backends.cuda.matmul.allow_tf32 = False
    library, begun = magi.Library(options.library), time.monotonic()
    rank, all_ = (on_threads if options.device == "cpu" else on_device)(options, library)
    bad = judge(all_, rank.rows, options)
    if rank.log and len(all_) > 1 and not rank.log.calls:
        bad.append("NCCL's log names no send and no receive")
    if rank.rank == 0:
        names = ("random", "only", "tokens", "heads", "dim", "dtype", "backend", "seed")
        connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
        protocol = {**{n: getattr(options, n) for n in names}, "world": len(all_), "CUDA_DEVICE_MAX_CONNECTIONS": connections}
        result = results.header("masks on ranks", library.version, protocol, {"device": options.device, "card": results.card()})
        result["rows"], result["bad"] = rank.rows, bad
        if rank.log:
            result["calls_in_nccl_log"] = rank.log.calls
        if options.out:
            results.save(options.out, result)
        for text in bad:
            print(f"BAD {text}", file=sys.stderr)
        variants = {name: sum(row["variant"] == name for row in rank.rows) for name in VARIANTS}
        worst = {kind: round(max(one["worst"][kind] for one in all_), 3) for kind in ("forward", "backward")}
        print(json.dumps({"checked": len(rank.rows), "bad": len(bad), "worst": worst, "variants": variants, "seconds": round(time.monotonic() - begun, 1)}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
