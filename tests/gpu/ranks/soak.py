#!/usr/bin/env python3
"""Thousands of forward and backward calls over many masks with a small cache of keys: memory of the device and of the host must stay
flat, results must keep their bits, and the stream must not wait while the next mask is planned (in at most 3% of the steps it may). One rank a process, as torchrun starts them; with --device cpu
threads of this process.

  torchrun --nproc-per-node 4 tests/gpu/ranks/soak.py [--calls 2000] [--masks 50] [--cache 10] [--out soak.json]
"""
import argparse
import json
import os
import random
import statistics
import sys
import time

from sites import CudaSite, HostSite, Part, host_bytes
import magi
import masks
import ranks
import results
from row import Row

# Bytes that the device may lose, and the process take of the host, from the first time that every mask was seen to the end: what a
# driver and an allocator round up to.
SLACK = 64 << 20
# A stream that waits longer between two steps, in milliseconds, was kept waiting by the host.
IDLE = 0.2
# Share of the steps that may find their stream kept waiting: a host that shares its processors is late at times.
KEPT = 0.03


def mask_of(number, tokens):
    """One of many masks of the same length: windows, documents, prefixes."""
    draw, at, slices = random.Random(number), 0, []
    least = max(1, tokens // (4 + number % 9))
    while at < tokens:
        end = min(tokens, at + draw.randrange(least, 2 * least + 1))
        kind = draw.choice([magi.CAUSAL, magi.CAUSAL, magi.FULL])
        slices.append((at, end, at, end, kind))
        # Some documents see the beginning of the one before.
        if at and draw.random() < 0.4:
            first = slices[-2][0]
            slices.append((at, end, first, draw.randrange(first + 1, at + 1), magi.FULL))
        at = end
    return masks.Mask(f"soak_{number}", tokens, tokens, slices)


def order(count, calls, seed):
    """Numbers of masks: each once, then any."""
    draw = random.Random(seed)
    return [*range(count), *(draw.randrange(count) for _ in range(calls - count))][:calls]


class Soak:
    """One rank's part."""

    def __init__(self, site, comm, options):
        self.site, self.comm, self.options = site, comm, options
        heads_q, heads_kv = map(int, options.heads.split(":"))
        make = lambda m: Row(m, heads_q, heads_kv, options.dim, options.dim, site.dtype, True)  # noqa: E731
        self.rows = [make(mask_of(n, options.tokens)) for n in range(options.masks)]
        self.masks = [magi.Mask(site.library, r.mask.slices, r.mask.total_q, r.mask.total_k) for r in self.rows]
        # The tensors of all masks are the same.
        self.whole = site.whole(self.rows[0], 7)
        self.settings = {"chunk_size": options.chunk, "cache_size": options.cache}
        self.first, self.host, self.marks = {}, [], []

    def part(self, number):
        """A key of a mask with tensors loaded, and the milliseconds that the host took for it."""
        begin = time.perf_counter()
        part = Part(self.site, self.comm, self.masks[number], self.rows[number], self.settings, self.whole)
        planned = time.perf_counter()
        part.load()
        self.host.append(((planned - begin) * 1e3, (time.perf_counter() - planned) * 1e3))
        return part

    def run(self):
        """All steps; a dictionary of what was seen."""
        numbers, options, site = order(self.options.masks, self.options.calls, self.options.seed), self.options, self.site
        found = {"wrong": [], "compared": 0}
        begun, part = time.perf_counter(), self.part(numbers[0])
        for step, number in enumerate(numbers):
            begin = site.mark()
            part.calls["forward"]()
            part.calls["backward"]()
            self.marks.append((begin, site.mark()))
            # While that runs.
            after = self.part(numbers[step + 1]) if step + 1 < len(numbers) else None
            if number not in self.first or (step + 1) % options.compare == 0:
                digest = part.digest()
                found["compared"] += number in self.first
                if self.first.setdefault(number, digest) != digest:
                    found["wrong"].append(step)
            part.close()
            part = after
            if step + 1 == options.masks:
                site.synchronize()
                found["free_begin"], found["host_begin"] = site.free_bytes(), host_bytes()
        site.synchronize()
        self.comm.check()
        found["free_end"], found["host_end"] = site.free_bytes(), host_bytes()
        found["seconds"] = time.perf_counter() - begun
        return {**found, **self.times(numbers)}

    def times(self, numbers):
        """Of the host, and of the stream where it was not asked to wait for a comparison."""
        key_ms, load_ms = (sorted(x) for x in zip(*self.host))
        found = {"key_ms": statistics.median(key_ms), "key_ms_most": key_ms[-1], "prepare_ms": statistics.median(load_ms)}
        found["prepare_ms_most"] = load_ms[-1]
        if self.marks[0][0] is None:
            return found
        waits = []
        for step in range(self.options.masks, len(numbers) - 1):
            if (step + 1) % self.options.compare:
                waits.append(self.site.milliseconds(self.marks[step][1], self.marks[step + 1][0]))
        busy = [self.site.milliseconds(*pair) for pair in self.marks[self.options.masks :]]
        found["step_ms"] = statistics.median(busy)
        # Dispatching the next step's tensors is part of it.
        found["between_ms"], found["between_ms_most"] = (statistics.median(waits), max(waits)) if waits else (0.0, 0.0)
        found["looked_at"], found["kept_waiting"] = len(waits), sum(w > found["between_ms"] + IDLE for w in waits)
        return found


def judge(found):
    """What is bad about a rank's part: a list of words."""
    bad = [f"other bits in step {step}" for step in found["wrong"]]
    lost, taken = found["free_begin"] - found["free_end"], found["host_end"] - found["host_begin"]
    if lost > SLACK:
        bad.append(f"{lost} bytes of the device's memory lost")
    if taken > SLACK:
        bad.append(f"{taken} bytes of the host's memory taken")
    kept, steps = found.get("kept_waiting", 0), found.get("looked_at", 0)
    if kept > KEPT * steps:
        bad.append(f"planning kept the stream waiting in {kept} of {steps} steps")
    return bad


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--world", type=int, default=4, help="ranks with --device cpu")
    add("--calls", type=int, default=2000)
    add("--masks", type=int, default=50)
    add("--cache", type=int, default=10)
    add("--compare", type=int, default=100, help="every so many steps the result is compared with the first of its mask")
    add("--tokens", type=int, help="65536; 64 with --device cpu")
    add("--heads", help="64:8; 2:1 with --device cpu")
    add("--dim", type=int, help="128; 16 with --device cpu")
    add("--chunk", type=int, help="512; 8 with --device cpu")
    add("--seed", type=int, default=2026)
    add("--library", help="path of libmagi_attn.so")
    add("--out", help="result file; ranks other than 0 put their number behind its name")
    options = parser.parse_args(argv)
    small = options.device == "cpu"
    for name, on_host, on_device in (("tokens", 64, 65536), ("heads", "2:1", "64:8"), ("dim", 16, 128), ("chunk", 8, 512)):
        if getattr(options, name) is None:
            setattr(options, name, on_host if small else on_device)
    if not 1 <= options.masks <= options.calls:
        parser.error("--masks must be 1 to --calls")
    return options


def on_threads(options, library):
    """What every rank saw."""
    comms, found = ranks.Comm.local(library, options.world), [None] * options.world

    def work(rank):
        try:
            found[rank] = Soak(HostSite(library), comms[rank], options).run()
        # Ranks that wait for this one must be woken.
        except Exception as error:
            found[rank] = {"error": str(error)}
            comms[rank].abort(str(error))

    ranks.on_threads(comms, work)
    return found


def on_device(options, library):
    """What this rank saw, in a list."""
    site = CudaSite(library, int(os.environ.get("LOCAL_RANK", "0")))
    comm = ranks.Comm.from_env(library, 60_000)
    try:
        found = Soak(site, comm, options).run()
    except magi.Error as error:
        found = {"error": str(error)}
    comm.close()
    return [found]


def main(argv=None):
    """Exit code: 0 when all went well."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    library, rank = magi.Library(options.library), int(os.environ.get("RANK", "0"))
    found = on_threads(options, library) if options.device == "cpu" else on_device(options, library)
    names = ("world", "calls", "masks", "cache", "compare", "tokens", "heads", "dim", "seed")
    protocol = {**{n: getattr(options, n) for n in names}, "world": int(os.environ.get("WORLD_SIZE", options.world))}
    result = results.header("soak", library.version, protocol, {"device": options.device, "card": results.card()})
    wrong = 0
    for i, one in enumerate(found):
        bad = [one["error"]] if "error" in one else judge(one)
        wrong += bool(bad)
        result["rows"].append({"rank": rank + i, "outcome": "; ".join(bad) or "good", **one})
        print(json.dumps(result["rows"][-1]), flush=True)
    if options.out:
        results.save(options.out if rank == 0 else f"{options.out}.{rank}", result)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
