#!/usr/bin/env python3
"""Checks group collectives of several ranks on random lists, on a machine with torch: casts bit for bit, sums, means and merges against f64,
every row straight to its ranks and over a mesh of two hosts. What is moved must be what the lists say: over the mesh a row crosses once.
Then times rows of all ranks to all ranks, both ways in turn. One rank a process, as torchrun starts them; with --device cpu threads of
this process.

  torchrun --nproc-per-node 4 tests/gpu/ranks/groups_on_ranks.py [--lists 60] [--rows 16384] [--out groups_on_ranks.json]
"""
import argparse
import json
import math
import os
import random
import statistics
import sys
import time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "bench"))
import group  # noqa: E402
import magi  # noqa: E402
import ranks  # noqa: E402
import results  # noqa: E402
from device import CODES, describe  # noqa: E402
from sites import Processes, Threads  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
OPS = {"sum": group.SUM, "avg": group.AVG, "lse": group.LSE}
# Shapes of a row of the two tensors that travel together; for lse out and lse.
ROWS = {"sum": ((6, 8), (5,)), "avg": ((6, 8), (5,)), "lse": ((3, 16), (3,))}
# What the elements of a row of k and v come to, in the rows that are timed.
TIMED = (1024, 1024)


class Lists:
    """The lists of all ranks: pieces (peer, first row, end), the same on every rank."""

    def __init__(self, rng, world, hosts):
        self.world, self.intra = world, world // hosts
        self.local = [rng.randrange(40) for _ in range(world)]
        self.sends, self.receives, self.received = [[] for _ in range(world)], [[] for _ in range(world)], [0] * world
        # Now and then so many between two ranks that they travel packed.
        most = rng.choice((3, 8, 20)) * world
        for rank, rows in enumerate(self.local):
            for _ in range(rng.randrange(most)):
                start = rng.randrange(rows + 1)
                end = min(rows, start + 1 + rng.randrange(9))
                if end > start:
                    self.sends[rank].append((rng.randrange(world), start, end))
        # (owner, first row, rank, first row there, rows) of every piece.
        self.copies = []
        for rank in range(world):
            pieces = [(owner, a, b) for owner in range(world) for peer, a, b in self.sends[owner] if peer == rank]
            places, at = list(range(len(pieces))), rng.randrange(3)
            rng.shuffle(places)
            starts = [0] * len(pieces)
            for i in places:
                starts[i] = at
                at += pieces[i][2] - pieces[i][1] + rng.randrange(2)
            for (owner, a, b), start in zip(pieces, starts):
                self.receives[rank].append((owner, start, start + b - a))
                self.copies.append((owner, a, rank, start, b - a))
            self.received[rank] = at

    def host(self, rank):
        """Of the mesh."""
        return rank // self.intra

    def traffic(self, rank, mesh):
        """Rows that a cast sends and takes on one rank: [inside hosts and straight, sums] of each. A reduction moves them back."""
        straight, crossed = [0, 0], [0, 0]
        met = set()
        for owner, start, to, _, rows in self.copies:
            if not mesh or self.host(owner) == self.host(to):
                if owner != to:
                    straight[0] += rows * (owner == rank)
                    straight[1] += rows * (to == rank)
                continue
            gateway = self.host(to) * self.intra + owner % self.intra
            if gateway != to:
                straight[0] += rows * (gateway == rank)
                straight[1] += rows * (to == rank)
            for row in range(start, start + rows):
                if (owner, row, gateway) not in met:
                    met.add((owner, row, gateway))
                    crossed[0] += owner == rank
                    crossed[1] += gateway == rank
        return straight, crossed


class Case:
    """Tensors of lists, as every rank has them, and what becomes of them in f64."""

    def __init__(self, seed, lists, op, dtype):
        self.lists, self.op, self.seed = lists, op, seed
        self.dtypes = (dtype, torch.float32 if op == "lse" else dtype)
        self.local = [self._random("local", rank, lists.local[rank]) for rank in range(lists.world)]
        self.partial = [self._random("partial", rank, lists.received[rank]) for rank in range(lists.world)]
        if op == "lse":
            for out, lse in self.partial:
                hidden = torch.rand(lse.shape, generator=torch.Generator().manual_seed(len(lse))) < 0.2
                lse[hidden], out[hidden] = -math.inf, math.nan

    def _random(self, kind, rank, rows):
        draw = torch.Generator().manual_seed(random.Random(f"{self.seed} {kind} {rank}").getrandbits(60))
        return [torch.randn(rows, *shape, generator=draw).to(dtype) for shape, dtype in zip(ROWS[self.op], self.dtypes)]

    def expected(self, rank, i):
        """What a cast into NaN leaves on one rank."""
        found = torch.full((self.lists.received[rank], *ROWS[self.op][i]), math.nan, dtype=self.dtypes[i])
        for owner, start, to, at, rows in self.lists.copies:
            if to == rank:
                found[at : at + rows] = self.local[owner][i][start : start + rows]
        return found

    def sums(self, rank, i, held):
        """A reduction's result in f64 and how far another may be from it, `held` being what was there, or None."""
        start = torch.zeros_like(self.local[rank][i], dtype=torch.float64) if held is None else held.double()
        total, size = start.clone(), start.abs()
        count = torch.full((len(total), *(1,) * (total.dim() - 1)), float(held is not None), dtype=torch.float64)
        for owner, first, to, at, rows in self.lists.copies:
            if owner == rank:
                part = self.partial[to][i][at : at + rows].double()
                total[first : first + rows] += part
                size[first : first + rows] += part.abs()
                count[first : first + rows] += 1
        by = count.clamp(min=1) if self.op == "avg" else 1
        return total / by, size / by * (count + 2) * 2.0**-23

    def merged(self, rank, held):
        """As `sums`, of a pair."""
        parts = [(0, *held)] if held else []
        parts += [(first, *(t[at : at + rows] for t in self.partial[to])) for owner, first, to, at, rows in self.lists.copies if owner == rank]
        shape = self.local[rank][0].shape
        lse = torch.full(shape[:2], -math.inf, dtype=torch.float64)
        for first, _, new in parts:
            lse[first : first + len(new)] = torch.logaddexp(lse[first : first + len(new)], new.double())
        out = torch.zeros(shape, dtype=torch.float64)
        for first, value, new in parts:
            weight = (new.double() - lse[first : first + len(new)]).exp()[:, :, None]
            out[first : first + len(new)] += torch.where(weight > 0, weight * value.double(), 0.0)
        return [(t, 2e-5 * (1 + torch.where(t.isfinite(), t.abs(), 0.0))) for t in (out, lse)]


def bits(tensor):
    """As integers, in which NaN is what it is."""
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


class Rank:
    """Runs everything on one rank."""

    def __init__(self, library, comm, rank, ring, options):
        self.library, self.comm, self.rank, self.ring, self.options = library, comm, rank, ring, options
        self.on_host = options.device == "cpu"
        self.device = torch.device("cpu") if self.on_host else torch.device("cuda", torch.cuda.current_device())
        self.stream = None if self.on_host else torch.cuda.current_stream().cuda_stream
        self.hosts = 2 if ring.world % 2 == 0 else 1
        self.wrong, self.checked, self.times, self.worst, self.fewer = [], 0, {}, 0.0, 0
        comm.set_mesh(self.hosts, ring.world // self.hosts)

    def synchronize(self):
        """Waits for the stream."""
        if not self.on_host:
            torch.cuda.current_stream().synchronize()

    def plan(self, lists, tensors, mesh):
        """A prepared plan of this rank."""
        config, rank = group.over_hosts(self.library) if mesh else None, self.rank
        made = group.Plan(self.comm, lists.local[rank], lists.sends[rank], lists.received[rank], lists.receives[rank], tensors, group.REDUCE, config)
        made.prepare(self.stream)
        return made

    def moved(self, call):
        """Bytes (sent, received) of a call."""
        before = self.comm.traffic()
        call()
        self.synchronize()
        return tuple(b - a for a, b in zip(before, self.comm.traffic()))

    def judge(self, what, good):
        """Keeps what is wrong."""
        self.checked += 1
        if not good:
            self.wrong.append(what)

    def check(self, what, case, mesh, accumulate, wide):
        """A cast and two reductions of one case, and the bytes that they move."""
        lists, rank, on = case.lists, self.rank, lambda tensors: [t.to(self.device) for t in tensors]
        # One rank to a host, or one host: rows go straight.
        relayed = mesh and self.hosts > 1 and lists.intra > 1
        plan = self.plan(lists, [(math.prod(shape), CODES[d]) for shape, d in zip(ROWS[case.op], case.dtypes)], mesh)
        wire = sum(math.prod(shape) * d.itemsize for shape, d in zip(ROWS[case.op], case.dtypes))
        sums = sum(4 * math.prod(shape) for shape in ROWS[case.op])
        straight, crossed = lists.traffic(rank, relayed)
        self.fewer += relayed and sum(straight) + sum(crossed) != sum(lists.traffic(rank, False)[0])

        local = on(case.local[rank])
        received = on([torch.full_like(t, math.nan) for t in case.partial[rank]])
        moved = self.moved(plan.enqueue([describe(t) for t in local], [describe(t) for t in received], self.stream))
        for i, tensor in enumerate(received):
            self.judge(f"{what}: cast, tensor {i}", torch.equal(bits(tensor.cpu()), bits(case.expected(rank, i))))
        self.judge(f"{what}: cast moved {moved}", moved == tuple(wire * (straight[i] + crossed[i]) for i in (0, 1)))

        held = [t.float() if wide else t for t in case.local[rank]]
        if case.op == "lse":
            wanted = case.merged(rank, held if accumulate else None)
        else:
            wanted = [case.sums(rank, i, t if accumulate else None) for i, t in enumerate(held)]
        partial, before = on(case.partial[rank]), None
        for run in range(2):
            target = on([t.clone() for t in held])
            tensors = [[describe(t) for t in side] for side in (partial, target)]
            moved = self.moved(plan.enqueue_reduce(OPS[case.op], *tensors, accumulate, self.stream))
            self.judge(f"{what}: reduction moved {moved}", moved == tuple(wire * straight[1 - i] + sums * crossed[1 - i] for i in (0, 1)))
            for i, (tensor, (want, bound)) in enumerate(zip(target, wanted)):
                self.judge(f"{what}: reduction {run}, tensor {i}", self.close(tensor.cpu(), want, bound))
            if before:
                self.judge(f"{what}: another run gave other bits", all(torch.equal(bits(a), bits(b)) for a, b in zip(before, target)))
            before = target
        plan.close()

    def close(self, have, want, bound):
        """Whether every element is near enough, rounded to its type."""
        eps = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}.get(have.dtype, 0.0)
        bound = bound + eps * torch.where(want.isfinite(), want.abs(), 0.0) + 1e-7
        off = torch.where(have.double() == want, 0.0, (have.double() - want).abs() / bound)
        worst = off.max().item() if off.numel() else 0.0
        self.worst = max(self.worst, worst)
        return worst <= 1

    def lists(self):
        """Random lists, each straight and over the mesh."""
        rng = random.Random(self.options.seed)
        for number in range(self.options.lists):
            lists = Lists(rng, self.ring.world, self.hosts)
            op, dtype = list(OPS)[number % 3], list(DTYPES)[number // 3 % 3]
            case = Case(f"{self.options.seed} {number}", lists, op, DTYPES[dtype])
            for mesh in (False, True):
                what = f"list {number}, {op} of {dtype}, {'over the mesh' if mesh else 'straight'}"
                self.check(what, case, mesh, accumulate=number % 2 == 1, wide=number % 4 < 2)

    def timed(self):
        """Milliseconds of rows of every rank to all others and of their sums back, bf16: medians of calls in turn."""
        rows, world, rank = self.options.rows, self.ring.world, self.rank
        others = [r for r in range(world) if r != rank]
        sends = [(r, 0, rows) for r in others]
        receives = [(r, i * rows, (i + 1) * rows) for i, r in enumerate(others)]
        make = lambda n: [torch.zeros(n, e, dtype=torch.bfloat16, device=self.device) for e in TIMED]  # noqa: E731
        local, received = make(rows), make(rows * len(others))
        at = [describe(t) for t in local], [describe(t) for t in received]
        calls, plans = {}, []
        for name, config in (("straight", None), ("mesh", group.over_hosts(self.library))):
            tensors = [(e, magi.BF16) for e in TIMED]
            plan = group.Plan(self.comm, rows, sends, rows * len(others), receives, tensors, group.REDUCE, config)
            plan.prepare(self.stream)
            plans.append(plan)
            calls[f"cast {name}"] = plan.enqueue(*at, self.stream)
            calls[f"reduce {name}"] = plan.enqueue_reduce(group.SUM, at[1], at[0], False, self.stream)
        found = {name: [] for name in calls}
        for turn in range(4 + self.options.turns):
            for name, call in calls.items():
                self.ring.gather(rank, None)
                self.synchronize()
                begin = time.perf_counter()
                call()
                self.synchronize()
                if turn >= 4:
                    found[name].append((time.perf_counter() - begin) * 1e3)
        self.times = {name: statistics.median(times) for name, times in found.items()}
        for plan in plans:
            plan.close()

    def run(self):
        """Everything; what every rank says."""
        error = None
        try:
            self.lists()
            self.timed()
        # The others wait for this rank: they are to hear of it, whatever it is.
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
            print(f"rank {self.rank}: {error}", file=sys.stderr, flush=True)
            self.comm.abort(error)
        mine = {"error": error, "wrong": self.wrong, "checked": self.checked, "worst": self.worst, "fewer": self.fewer, "ms": self.times}
        return self.ring.gather(self.rank, mine)


def judge(all_, hosts):
    """What is bad about a run: a list of words."""
    bad = [f"rank {rank}: {one['error']}" for rank, one in enumerate(all_) if one["error"]]
    bad += [f"rank {rank}: {text}" for rank, one in enumerate(all_) for text in one["wrong"]]
    if not bad and 1 < hosts < len(all_) and not any(one["fewer"] for one in all_):
        bad.append("the mesh made no difference to what moves")
    return bad


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--world", type=int, default=4, help="ranks with --device cpu")
    add("--lists", type=int, default=60)
    add("--rows", type=int, help="rows of each rank that are timed: 16384; 64 with --device cpu")
    add("--turns", type=int, default=15)
    add("--seed", type=int, default=2026)
    add("--library", help="path of libmagi_attn.so")
    add("--out", help="result file, of rank 0")
    options = parser.parse_args(argv)
    if options.rows is None:
        options.rows = 64 if options.device == "cpu" else 16384
    return options


def on_threads(options, library):
    """Rank 0, and what every rank says."""
    comms, ring, made, found = ranks.Comm.local(library, options.world), Threads(options.world), [None] * options.world, []

    def work(rank):
        made[rank] = Rank(library, comms[rank], rank, ring, options)
        all_ = made[rank].run()
        if rank == 0:
            found.extend(all_)

    ranks.on_threads(comms, work)
    return made[0], found


def on_device(options, library):
    """This rank, and what every rank says."""
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_stream(torch.cuda.Stream())
    ring, comm = Processes(), ranks.Comm.from_env(library, 60_000)
    rank = Rank(library, comm, int(os.environ["RANK"]), ring, options)
    found = rank.run()
    comm.close()
    ring.dist.destroy_process_group()
    return rank, found


def main(argv=None):
    """Exit code: 0 when all went well."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    library = magi.Library(options.library)
    rank, all_ = (on_threads if options.device == "cpu" else on_device)(options, library)
    bad = judge(all_, rank.hosts)
    if rank.rank == 0:
        slowest = {name: round(max(one["ms"].get(name, 0.0) for one in all_), 4) for name in rank.times}
        said = {"checked": sum(one["checked"] for one in all_), "bad": len(bad), "worst": round(max(one["worst"] for one in all_), 3), "ms": slowest}
        protocol = {**{n: getattr(options, n) for n in ("lists", "rows", "turns", "seed")}, "world": len(all_), "hosts": rank.hosts}
        result = results.header("groups on ranks", library.version, protocol, {"device": options.device, "card": results.card()})
        if options.out:
            results.save(options.out, {**result, "rows": [said], "bad": bad})
        for text in bad:
            print(f"BAD {text}", file=sys.stderr)
        print(json.dumps(said))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
