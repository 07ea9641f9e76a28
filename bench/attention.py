#!/usr/bin/env python3
"""Times attention beside a matmul and other libraries, on a CUDA device; checks it there or, with --device cpu, anywhere.

bench/README.md says what the figures mean.
"""
import argparse
import importlib.util
import os
import sys
import time

import magi
import masks
import results
from row import Row

SIZES = [1024, 2048, 4096, 8192, 16384, 32768, 65536]
HEADS = ["64:8", "16:16"]
DIMS = ["64", "128", "192/128", "256"]
GRIDS = {
    # masks, tokens, heads, head_dims
    "quick": (["full", "causal", *masks.TARGETS], [8192, 32768], ["64:8"], ["128"]),
    "targets": (["full", "causal", *masks.TARGETS], [4096, 8192, 16384, 32768], HEADS, ["128"]),
    "published": (masks.PUBLISHED, SIZES, HEADS, ["64", "128"]),
    "all": (masks.GRID, SIZES, HEADS, DIMS),
    "cpu": (masks.GRID, [256], ["4:2"], ["64"]),
}
# A peer whose result differs by more computes something else.
PEER_DIFFERENCE = 0.02


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--grid", choices=GRIDS, help="rows: quick on a device, cpu on the host; the next four replace an axis of it")
    add("--masks", help=f"comma list of {', '.join(masks.GRID)}, names of tests/cases/masks.json, or cases for all of those")
    add("--tokens", help="comma list; cases of masks.json have their own")
    add("--heads", help="comma list of query:key heads")
    add("--head-dims", help="comma list of head_dim or head_dim/head_dim_v")
    add("--pass", dest="passes", choices=["forward", "backward", "both"], default="forward")
    add("--dtype", help="bf16 (a device's default), f16; on the host also f32 (its default) and f64")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--check", action="store_true", help="only check, do not time; always so on the host")
    add("--peers", default="cudnn", help="comma list of cudnn, fa2, flex, or none")
    add("--peers-only", action="store_true", help="without the library")
    add("--sm-margin", type=int, default=0)
    add("--deterministic", action="store_true", help="backward with the same bits on every run; of the library, not of peers")
    add("--warmup", type=int, default=5)
    add("--rounds", type=int, default=15)
    add("--samples", type=int, default=24, help="tokens that are checked (8 on the host)")
    add("--seed", type=int, default=2026)
    add("--seconds", type=float, help="begin no row later than this")
    add("--library", help="path of libmagi_attn.so")
    add("--out", help="result file; bench/results/attention-<commit>-<date>.json by default, none with --check")
    options = parser.parse_args(argv)
    if options.peers_only and options.device == "cpu":
        parser.error("--peers-only needs --device cuda")
    return options


def rows_of(options):
    """Rows in the order they run."""
    axes = GRIDS[options.grid or ("cpu" if options.device == "cpu" else "quick")]
    given = (options.masks, options.tokens, options.heads, options.head_dims)
    names, tokens, heads, dims = (g.split(",") if g else a for g, a in zip(given, axes))
    cases = masks.case_masks()
    if names == ["cases"]:
        names = list(cases)
    dtype = options.dtype or ("f32" if options.device == "cpu" else "bf16")
    passes = {"forward": [False], "backward": [True], "both": [False, True]}[options.passes]
    rows = []
    for backward in passes:
        for dim in dims:
            d, _, dv = dim.partition("/")
            for pair in heads:
                hq, hk = map(int, pair.split(":"))
                for name in names:
                    own = [cases[name]] if name in cases else [masks.grid_mask(name, int(n), options.seed) for n in tokens]
                    rows += [Row(mask, hq, hk, int(d), int(dv or d), dtype, backward) for mask in own if mask]
    return rows


def say(*words):
    """A progress line, at once."""
    print(*words, flush=True)


def run_host(options, library):
    """Checks every row on the CPU backend; the number of rows that are wrong."""
    from host import HostRow

    result = results.header("check", library.version, {"seed": options.seed}, {"device": "cpu"})
    wrong = 0
    for row in rows_of(options):
        data = HostRow(library, row, options.seed)
        data.run()
        check = data.check(min(options.samples, 8), options.seed)
        wrong += not check["good"]
        result["rows"].append({**row.describe(), "outcome": "checked" if check["good"] else "wrong", "check": check})
        errors = " ".join(f"{name} {error:.1e}" for name, error in check["error"].items())
        say("ok   " if check["good"] else "WRONG", row.title(), row.dtype, errors)
    if options.out:
        results.save(options.out, result)
    say(f"{len(result['rows'])} rows, {wrong} wrong")
    return wrong


class Bench:
    """A run on a device."""

    def __init__(self, options, library):
        import peers
        import torch
        from timing import Turns

        self.options, self.library, self.peers, self.torch = options, library, peers, torch
        self.device = torch.device("cuda:0")
        torch.cuda.set_device(self.device)
        # The library and torch use the same stream; the default one is left alone, so that captures do not wait for it.
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.matmul = peers.matmul(self.device, options.seed)
        self.new_turns = lambda: Turns(self.device, options.warmup, options.rounds)
        self.names = [n for n in options.peers.split(",") if n and n != "none"]
        unknown = [n for n in self.names if n not in peers.PEERS]
        if unknown:
            raise SystemExit(f"no peers {unknown}; there are {', '.join(peers.PEERS)}")

    def header(self):
        """The result file without rows."""
        torch, options = self.torch, self.options
        properties = torch.cuda.get_device_properties(self.device)
        machine = {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
            "card": results.card(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
        protocol = {
            "warmup": options.warmup,
            "rounds": options.rounds,
            "flush_bytes": 256 << 20,
            "seed": options.seed,
            "deterministic": options.deterministic,
            "statistic": "median",
            "yardstick": "bf16 matmul 8192^3, the faster of its first and last turn in a round",
        }
        return results.header("attention", self.library.version if self.library else None, protocol, machine)

    def matmul_alone(self):
        """TFLOP/s of the matmul with nothing beside it."""
        turns = self.new_turns()
        turns.add("matmul", self.matmul)
        return self.peers.matmul_flops() / turns.run()[0]["matmul"] / 1e9

    def row(self, row):
        """A row's part of the result file."""
        from device import DeviceRow

        found = row.describe()
        options = self.options
        data = DeviceRow(self.library, row, options.seed, options.sm_margin, self.device, options.deterministic)
        calls = {}
        if self.library:
            try:
                data.run(self.stream.cuda_stream)
            except magi.Error as error:
                return {**found, "outcome": f"refused: {error}"}
            found["check"] = data.check(self.options.samples, self.options.seed)
            if not found["check"]["good"]:
                return {**found, "outcome": "wrong"}
            if self.options.check:
                return {**found, "outcome": "checked"}
            found["workspace_bytes"] = data.call.workspace_bytes
            found["prepare_ms"] = data.prepare_ms(self.stream.cuda_stream)
            calls["magi"] = data.call
        found["peers"] = {}
        for name in self.names:
            self._peer(name, data, calls, found["peers"])
        if not calls:
            return {**found, "outcome": "nothing to time"}
        self._time(row, calls, found)
        return {**found, "outcome": "timed"}

    def _peer(self, name, data, calls, notes):
        try:
            call, result = self.peers.prepare(name, data)
        except self.peers.Unable as why:
            notes[name] = {"left_out": str(why)}
            return
        notes[name] = {}
        if self.library:
            notes[name]["difference"] = difference = self.peers.difference(result(), data.out)
            if not difference <= PEER_DIFFERENCE:
                notes[name]["left_out"] = "its result is another"
                return
        calls[name] = lambda _stream, call=call: call

    def _time(self, row, calls, found):
        """Matmul, each call and its graph, matmul again: one round."""
        from timing import BACK_TO_BACK, captured, enqueue_microseconds

        turns, how = self.new_turns(), {}
        turns.add("matmul first", self.matmul)
        for name, make in calls.items():
            call = make(self.stream.cuda_stream)
            turns.add((name, "call"), call)
            if row.backward and name != "magi":
                # Autograd runs backward on streams of its own, which a capture would have to own.
                how[name] = "back to back"
            else:
                try:
                    turns.add((name, "kernel"), captured(make))
                    how[name] = "graph"
                except (RuntimeError, magi.Error) as error:
                    say(f"     {name}: not captured: {str(error).splitlines()[0]}")
                    self.torch.cuda.synchronize()
                    how[name] = "back to back"
            if how[name] == "back to back":
                turns.add((name, "kernel"), call, BACK_TO_BACK)
        turns.add("matmul last", self.matmul)
        medians, found["clocks"] = turns.run(results.clocks)
        rate = {n: self.peers.matmul_flops() / medians[f"matmul {n}"] / 1e9 for n in ("first", "last")}
        found["yardstick"] = {"tflops": max(rate.values()), **{f"{n}_tflops": r for n, r in rate.items()}}
        found["times"] = {}
        for name, make in calls.items():
            entry = found["times"][name] = {"kernel_by": how[name]}
            for what in ("call", "kernel"):
                ms = medians[(name, what)]
                tflops = row.flops() / ms / 1e9
                entry[what] = {"ms": ms, "tflops": tflops, "fraction": tflops / found["yardstick"]["tflops"]}
            host = enqueue_microseconds(make(self.stream.cuda_stream), entry["call"]["ms"])
            entry["host_us"], entry["host_us_least"] = host


def progress(number, count, row, found, seconds):
    """One line of a finished row."""
    text = f"[{number}/{count}] {row.title()} {found['outcome']}"
    for name, times in found.get("times", {}).items():
        call, kernel = times["call"], times["kernel"]
        text += f" | {name} {call['tflops']:.0f} ({call['fraction']:.3f}) kernel {kernel['tflops']:.0f} ({kernel['fraction']:.3f})"
        text += f" host {times['host_us']:.1f} us"
    for name, note in found.get("peers", {}).items():
        if "left_out" in note:
            text += f" | {name}: {note['left_out']}"
    say(f"{text} [{seconds:.1f} s]")


def run_device(options, library):
    """Every row on the device; the number of rows that are wrong."""
    bench = Bench(options, library)
    result = bench.header()
    stamp = result["date"][:19].replace(":", "").replace("-", "")
    path = options.out or os.path.join(results.ROOT, "bench", "results", f"attention-{result['commit'][:12]}-{stamp}.json")
    result["matmul_alone_tflops"] = [bench.matmul_alone()]
    say(f"{result['machine']['gpu']}, commit {result['commit']}, matmul alone {result['matmul_alone_tflops'][0]:.0f} TFLOP/s")
    rows, begin, wrong = rows_of(options), time.monotonic(), 0
    for number, row in enumerate(rows, 1):
        started = time.monotonic()
        if options.seconds is not None and started - begin > options.seconds:
            result["not_run"].append(row.title())
            continue
        try:
            found = bench.row(row)
        except bench.torch.OutOfMemoryError as error:
            found = {**row.describe(), "outcome": f"out of memory: {str(error).splitlines()[0]}"}
        bench.torch.cuda.empty_cache()
        wrong += found["outcome"] == "wrong"
        result["rows"].append(found)
        progress(number, len(rows), row, found, time.monotonic() - started)
        if found["outcome"] == "wrong":
            say("      ", found["check"])
        if options.out or not options.check:
            results.save(path, result)
    result["matmul_alone_tflops"].append(bench.matmul_alone())
    if options.out or not options.check:
        results.save(path, result)
        say(path)
    say("\n".join(results.table(result)))
    say(f"{len(result['rows'])} rows, {wrong} wrong, {len(result['not_run'])} not run")
    return wrong


def main(argv=None):
    """Exit code: 0 when no row was wrong."""
    options = arguments(argv)
    if options.device == "cuda":
        if importlib.util.find_spec("torch") is None:
            raise SystemExit("times need PyTorch; --device cpu --check needs nothing")
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("PyTorch finds no CUDA device; --device cpu --check needs none")
    library = None if options.peers_only else magi.Library(options.library)
    return 1 if (run_host if options.device == "cpu" else run_device)(options, library) else 0


if __name__ == "__main__":
    sys.exit(main())
