#!/usr/bin/env python3
"""Measures the rates by which the planner predicts: kernels on visible cells, and links while every rank receives.

  torchrun --standalone --nproc-per-node 4 bench/calibrate.py

Prints what was measured, the rates as a value of MAGI_ATTENTION_RATES, and the same as C. bench/README.md says how they are measured.
With --packing exchanges of many runs of rows instead, on either side of where the library begins to pack them.
"""
import argparse
import ctypes as C
import os
import statistics
import sys
import threading
import time

import distributed
import group
import magi
import masks
import rates
import ranks
import results
from row import Row

DEFAULTS = {
    # device: tokens of a kernel's row, heads, dtype, bytes that a rank receives
    "cuda": (16384, "64:8", "bf16", "1000000,4000000,16000000,64000000,256000000"),
    "cpu": (64, "2:1", "f32", "4096,65536"),
}
# Runs to each rank and rows of a run: more than 8 runs of less than 1,024 rows are packed.
PACKING = {
    "cuda": [(runs, rows) for rows in (128, 1, 64, 256, 1023, 1024, 2048) for runs in (1, 4, 8, 9, 16, 64)],
    "cpu": [(runs, rows) for rows in (1, 1023, 1024) for runs in (1, 8, 9)],
}
# Every rank sends rows of k and v of so many elements, as keys travel.
ROW_ELEMENTS = (1024, 1024)


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--head-dims", default="64,128,256", help="comma list of those; rates of others keep their defaults")
    add("--tokens", type=int, help="of the rows by which kernels are measured")
    add("--heads", help="query:key heads")
    add("--bytes", help="comma list: what a rank receives in an exchange")
    add("--packing", action="store_true", help="measure exchanges of many runs, and no rates")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: local ranks, without torch; for tests")
    add("--world", type=int, help="ranks; the launcher's without it, 2 with --device cpu")
    add("--warmup", type=int, default=3)
    add("--rounds", type=int, default=15, help="at most; at least 3")
    add("--row-seconds", type=float, default=4.0, help="seconds for the rounds that count, of a head_dim or of all exchanges")
    add("--seed", type=int, default=2026)
    add("--library", help="path of libmagi_attn.so")
    add("--out", help="result file; bench/results/rates-<commit>-<date>.json by default on GPUs")
    options = parser.parse_args(argv)
    tokens, heads, options.dtype, sizes = DEFAULTS[options.device]
    options.tokens, options.heads = options.tokens or tokens, options.heads or heads
    options.head_dims = [int(x) for x in options.head_dims.split(",")]
    options.bytes = [int(x) for x in (options.bytes or sizes).split(",")]
    if options.warmup < 1 or options.rounds < 3 or min(options.bytes) < 1 or options.tokens < 1:
        parser.error("--warmup, --tokens and --bytes must be 1 or more, --rounds 3 or more")
    if not set(options.head_dims) <= set(rates.CLASSES):
        parser.error(f"--head-dims must be of {', '.join(map(str, rates.CLASSES))}")
    # What distributed.Bench asks of its options.
    options.peers, options.comm, options.config = "none", "store", {}
    return options


def kernel_rows(options, dim):
    """(what, Row) of the passes of one head_dim: two masks, and one tile that takes no time to compute."""
    heads = tuple(map(int, options.heads.split(":")))
    tiny = min(64, max(1, options.tokens // 4))
    for what, name, tokens in (("kernel", "full", options.tokens), ("kernel", "causal", options.tokens), ("tiny", "full", tiny)):
        mask = masks.grid_mask(name, tokens, options.seed)
        yield what, Row(mask, *heads, dim, dim, options.dtype, True)


def rows_of_size(wanted, world, element_bytes):
    """Rows to each of the other ranks for so many received bytes, at least one, and the bytes that those come to."""
    row = sum(ROW_ELEMENTS) * element_bytes
    rows = max(1, round(wanted / row / (world - 1)))
    return rows, rows * row * (world - 1)


class Device:
    """The GPUs of a launcher's processes, all of them at once; a time is that of the slowest."""

    element_bytes = 2

    def __init__(self, options, library):
        self.bench = distributed.Bench(options, library)
        self.options, self.library = options, library
        self.rank, self.world = self.bench.rank, self.bench.world

    def header(self):
        """The result file without rows."""
        return self.bench.header()

    def kernels(self, pairs):
        """Milliseconds of forward and backward of rows, all in turns: {(index, pass): ms}."""
        from device import DeviceRow

        made = [DeviceRow(self.library, row, self.options.seed, device=str(self.bench.device)) for _, row in pairs]
        calls = {}
        for i, one in enumerate(made):
            one.run(self.bench.stream)
            calls[i, "forward"], calls[i, "backward"] = one.forward(self.bench.stream), one.call(self.bench.stream)
        found = self.bench.turns.run(calls)[0]
        del made, calls
        self.bench.torch.cuda.empty_cache()
        return {name: times.ms for name, times in found.items()}

    def exchanges(self, shapes):
        """Milliseconds of exchanges in which every rank gets so many runs of so many rows from every other."""
        from device import describe

        torch, plans, calls = self.bench.torch, [], {}
        for i, (runs, rows) in enumerate(shapes):
            plan = group.AllToAll(self.bench.comm, self.rank, self.world, rows, ROW_ELEMENTS, magi.BF16, runs)
            plan.prepare(self.bench.stream)
            local, received = (
                [torch.zeros(plan.rows, n, dtype=torch.bfloat16, device=self.bench.device) for n in ROW_ELEMENTS] for _ in range(2)
            )
            plan.kept = local, received
            calls[i] = plan.enqueue(*([describe(t) for t in side] for side in plan.kept), self.bench.stream)
            plans.append(plan)
        found = self.bench.turns.run(calls)[0]
        for plan in plans:
            plan.close()
        return [found[i].ms for i in range(len(shapes))]

    def close(self):
        """Leaves the other ranks."""
        self.bench.comm.close()
        self.bench.dist.destroy_process_group()


class Local:
    """Ranks that are threads of this process, in host memory."""

    element_bytes = 4

    def __init__(self, options, library):
        self.options, self.library = options, library
        self.rank, self.world = 0, options.world or 2

    def header(self):
        """As of Device."""
        return results.header("rates", self.library.version, {}, {"device": "cpu"})

    def _median(self, call):
        """Milliseconds."""
        times = []
        for turn in range(self.options.warmup + self.options.rounds):
            begin = time.perf_counter()
            call()
            if turn >= self.options.warmup:
                times.append((time.perf_counter() - begin) * 1e3)
        return statistics.median(times)

    def kernels(self, pairs):
        """As of Device."""
        from host import HostRow

        found = {}
        for i, (_, row) in enumerate(pairs):
            forward = Row(row.mask, row.heads_q, row.heads_kv, row.head_dim, row.head_dim_v, row.dtype, False)
            one, both = HostRow(self.library, forward, self.options.seed), HostRow(self.library, row, self.options.seed)
            found[i, "forward"] = self._median(one.run)
            # A row with gradients runs both passes.
            found[i, "backward"] = max(self._median(both.run) - found[i, "forward"], 1e-6)
        return found

    def exchanges(self, shapes):
        """As of Device."""
        comms = ranks.Comm.local(self.library, self.world)
        meet, failed, slowest = threading.Barrier(self.world), [], {}

        def work(rank):
            try:
                for shape in shapes:
                    slowest[rank, shape] = self._exchange(comms[rank], rank, shape, meet)
            # Whatever it is, ranks that wait for this one must be woken.
            except Exception as error:
                failed.append(error)
                meet.abort()
                comms[rank].abort(str(error))

        ranks.on_threads(comms, work)
        if failed:
            raise failed[0]
        return [max(slowest[rank, shape] for rank in range(self.world)) for shape in shapes]

    def _exchange(self, comm, rank, shape, meet):
        runs, rows = shape
        plan = group.AllToAll(comm, rank, self.world, rows, ROW_ELEMENTS, magi.F32, runs)
        plan.prepare()
        memory = [[(C.c_float * (plan.rows * n))() for n in ROW_ELEMENTS] for _ in range(2)]
        sides = ([magi.tensor(C.addressof(m), magi.F32, (plan.rows, n)) for m, n in zip(side, ROW_ELEMENTS)] for side in memory)
        cast = plan.enqueue(*sides)

        def call():
            meet.wait()
            cast()

        found = self._median(call)
        plan.close()
        return found

    def close(self):
        """Nothing is left."""


def measure(options, where):
    """The rows of the result file. Collective."""
    rows = []
    if options.packing:
        row = sum(ROW_ELEMENTS) * where.element_bytes * (where.world - 1)
        shapes = PACKING[options.device]
        times = where.exchanges(shapes)
        return [{"what": "runs", "runs": a, "rows": b, "bytes_received": a * b * row, "ms": ms} for (a, b), ms in zip(shapes, times)]
    for dim in options.head_dims:
        pairs = list(kernel_rows(options, dim))
        for (i, kind), ms in where.kernels(pairs).items():
            what, row = pairs[i]
            row = distributed.of_pass(row, kind == "backward")
            rows.append({"what": what, **row.describe(), "head_dim": dim, "tokens": row.mask.total_q, "ms": ms})
    if where.world > 1:
        sizes = [rows_of_size(wanted, where.world, where.element_bytes) for wanted in options.bytes]
        times = where.exchanges([(1, count) for count, _ in sizes])
        rows += [{"what": "link", "bytes_received": bytes_, "ms": ms} for (_, bytes_), ms in zip(sizes, times)]
    return rows


def packing_table(rows):
    """Lines: microseconds by runs and rows of a run."""
    most = sorted({r["runs"] for r in rows})
    lines = [f"{'us of runs':>12}" + "".join(f" {n:>8}" for n in most)]
    for count in sorted({r["rows"] for r in rows}):
        each = {r["runs"]: r["ms"] * 1e3 for r in rows if r["rows"] == count}
        lines.append(f"{count:>7} rows" + "".join(f" {each[n]:8.1f}" for n in most))
    return lines


def main(argv=None):
    """Exit code."""
    options = arguments(argv)
    library = magi.Library(options.library)
    where = (Device if options.device == "cuda" else Local)(options, library)
    result = where.header()
    result["kind"], result["world"] = "rates", where.world
    result["protocol"] = {
        "warmup": options.warmup,
        "rounds": options.rounds,
        "row_seconds": options.row_seconds,
        "seed": options.seed,
        "statistic": "median over rounds of the slowest rank",
    }
    result["rows"] = measure(options, where)
    if options.packing:
        result["kind"] = "packing"
    else:
        result["rates"] = rates.rates_of(result["rows"], rates.defaults_of(ranks.config_of(library, {})))
        result["text"] = rates.text(result["rates"])
    where.close()
    if where.rank == 0:
        stamp = result["date"][:19].replace(":", "").replace("-", "")
        path = options.out
        if options.device == "cuda":
            path = path or os.path.join(results.ROOT, "bench", "results", f"{result['kind']}-{result['commit'][:12]}-{stamp}.json")
        if path:
            results.save(path, result)
            distributed.say(path)
        print("\n".join(packing_table(result["rows"]) if options.packing else rates.table(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
