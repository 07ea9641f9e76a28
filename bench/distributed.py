#!/usr/bin/env python3
"""Times attention over several GPUs beside one GPU of them and beside other ways to spread it; checks it there or, with --device cpu, on
local ranks of this process.

  torchrun --nproc-per-node 4 bench/distributed.py

bench/README.md says what the figures mean.
"""
import argparse
import datetime
import json
import os
import socket
import sys
import time

import magi
import masks
import results
from row import Row

DEFAULTS = {
    # device: masks, tokens, heads, head_dim, dtype
    "cuda": ("full,causal,block_causal_4096,varlen_causal", "65536,131072,262144", "64:8", 128, "bf16"),
    "check": ("full,causal,block_causal_128,varlen_causal,documents_skewed", "1024", "64:8", 128, "bf16"),
    "gloo": ("full,causal,block_causal_32,varlen_causal", "128", "16:8", 16, "f32"),
    "cpu": ("full,causal,block_causal_64,varlen_causal", "256", "4:2", 16, "f32"),
}
PEERS = "ulysses_cudnn,allgather_cudnn,ulysses_fa2"
# One whose rows differ by more from those of the first contestant computes something else.
DIFFERENCE = 0.02
# Errors allowed in a check, as parts of the norm: twice what P and dS, rounded to the dtype, leave.
BOUNDS = {"bf16": 4 * 2**-7 / 3, "f16": 4 * 2**-10 / 3, "f32": 1e-5, "f64": 1e-10}


def arguments(argv):
    """Parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--masks", help=f"comma list of {', '.join(masks.GRID)}, block_causal_N")
    add("--tokens", help="comma list, of all ranks together")
    add("--heads", help="comma list of query:key heads")
    add("--head-dim", type=int)
    add("--pass", dest="passes", choices=["forward", "backward", "both"], default="both")
    add("--dtype", choices=list(BOUNDS), help="bf16, or f16; where nothing is timed f32 and f64 too")
    add("--device", choices=["cuda", "cpu", "gloo"], default="cuda", help="cpu: local ranks, without torch; gloo: peers on processes of a host")
    add("--world", type=int, help="ranks; the launcher's without it, 4 with --device cpu, 1 without a launcher")
    add("--check", action="store_true", help="compare with f64 at small sizes and stop there; always so with --device cpu")
    add("--peers", default=PEERS, help="comma list of those, or none")
    add("--peers-only", action="store_true", help="without the library")
    add("--config", default="", help="comma list of name=integer: fields of magi_config")
    add("--comm", choices=["store", "env"], default="store", help="how the library's ranks meet: through torch's store, or by themselves")
    add("--warmup", type=int, default=2)
    add("--rounds", type=int, default=15, help="at most; at least 3")
    add("--row-seconds", type=float, default=12.0, help="seconds for the rounds of a row that count")
    add("--samples", type=int, default=16, help="tokens whose rows are compared before a row is timed (8 with --device cpu)")
    add("--seed", type=int, default=2026)
    add("--seconds", type=float, help="begin no mask later than this")
    add("--trace", help="folder for a trace of all ranks and a drawing of rank 0 of each row, measured by the library beside the times")
    add("--library", help="path of libmagi_attn.so")
    add("--out", help="result file; bench/results/distributed-<commit>-<date>.json by default, none where nothing is timed")
    options = parser.parse_args(argv)
    options.config = dict((name, int(value)) for name, _, value in (pair.partition("=") for pair in options.config.split(",") if pair))
    # Processes that are ranks of the library need CUDA devices; one process does not.
    options.peers_only |= options.device == "gloo" and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if options.warmup < 1 or options.rounds < 3:
        parser.error("--warmup must be 1 or more, --rounds 3 or more")
    if options.trace and (options.device != "cuda" or options.check):
        parser.error("--trace needs CUDA devices and times")
    return options


def rows_of(options):
    """Pairs (forward row, backward row); passes that are not asked for are None, but a row for the tensors is always there."""
    kind = "check" if options.device == "cuda" and options.check else options.device
    names, tokens, heads, dim, dtype = DEFAULTS[kind]
    dtype, dim = options.dtype or dtype, options.head_dim or dim
    rows = []
    for pair in (options.heads or heads).split(","):
        hq, hk = map(int, pair.split(":"))
        for name in (options.masks or names).split(","):
            for count in (options.tokens or tokens).split(","):
                mask = masks.grid_mask(name, int(count), options.seed)
                if mask:
                    rows.append(Row(mask, hq, hk, dim, dim, dtype, options.passes != "forward"))
    return rows


def passes_of(options):
    """Whether each pass that is asked for is backward."""
    return {"forward": [False], "backward": [True], "both": [False, True]}[options.passes]


def of_pass(row, backward):
    """The row of one of its passes."""
    return Row(row.mask, row.heads_q, row.heads_kv, row.head_dim, row.head_dim_v, row.dtype, backward)


def say(*words):
    """A progress line, at once."""
    print(*words, file=sys.stderr, flush=True)


def run_local(options, library):
    """Checks every row on local ranks; the number of rows that are wrong."""
    from host_dist import LocalRow

    world = options.world or 4
    result = results.header("distributed check", library.version, {"seed": options.seed, "world": world}, {"device": "cpu"})
    wrong = 0
    for row in rows_of(options):
        local = LocalRow(library, row, options.seed, world, options.config)
        local.run()
        check = local.data.check(min(options.samples, 8), options.seed)
        wrong += not check["good"]
        outcome = "checked" if check["good"] else "wrong"
        result["rows"].append({**row.describe(), "world": world, "outcome": outcome, "check": check, "plan": local.plan})
        errors = " ".join(f"{name} {error:.1e}" for name, error in check["error"].items())
        say("ok   " if check["good"] else "WRONG", row.title(), f"{world} ranks {errors}")
    if options.out:
        results.save(options.out, result)
    print("\n".join(table(result)))
    say(f"{len(result['rows'])} rows, {wrong} wrong")
    return wrong


class Bench:
    """A run of this rank among others."""

    def __init__(self, options, library):
        import peers
        import peers_dist
        import spread
        import torch
        import torch.distributed as dist

        self.options, self.library, self.torch, self.dist = options, library, torch, dist
        self.spread, self.peers = spread, peers_dist
        self.cuda, self.stream, self.matmul = options.device == "cuda", None, None
        alone_here()
        if self.cuda:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
            # The library and torch use the same stream, and not the default one, which would wait for all others.
            stream = torch.cuda.Stream()
            torch.cuda.set_stream(stream)
            self.stream, self.matmul = stream.cuda_stream, peers.matmul(self.device, options.seed)
            self.matmul_flops = peers.matmul_flops()
        else:
            self.device = torch.device("cpu")
            torch.set_num_threads(1)
        patience = datetime.timedelta(seconds=120)
        kind = {"backend": "nccl", "device_id": self.device} if self.cuda else {"backend": "gloo"}
        dist.init_process_group(timeout=patience, **kind)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if options.world not in (None, self.world):
            raise SystemExit(f"--world {options.world}, but the launcher started {self.world}")
        self.comm = self._comm() if library else None
        self.names = [n for n in options.peers.split(",") if n and n != "none"]
        unknown = [n for n in self.names if n not in peers_dist.PEERS]
        if unknown:
            raise SystemExit(f"no peers {unknown}; there are {', '.join(peers_dist.PEERS)}")
        self.turns = spread.Turns(self.device, options.warmup, options.rounds, options.row_seconds)

    def _comm(self):
        import ranks

        if not self.cuda:
            return ranks.Comm.local(self.library, 1)[0]
        if self.options.comm == "env":
            return ranks.Comm.from_env(self.library, 120_000)

        def share(mine):
            box = [mine]
            self.dist.broadcast_object_list(box, src=0, device=self.device)
            return box[0]

        return ranks.Comm.nccl(self.library, self.rank, self.world, self.device.index, share, 120_000)

    def header(self):
        """The result file without rows."""
        torch, options = self.torch, self.options
        machine = {"device": "cpu", "torch": torch.__version__}
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            machine = {
                "gpu": properties.name,
                "gpus": self.world,
                "multiprocessors": properties.multi_processor_count,
                "card": results.card(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            }
        protocol = {
            "warmup": options.warmup,
            "rounds": options.rounds,
            "row_seconds": options.row_seconds,
            "flush_bytes": 256 << 20,
            "seed": options.seed,
            "config": options.config,
            "statistic": "median over rounds of the slowest rank",
            "yardstick": "alone: one GPU, its rank's queries against all keys they see, in one kernel; mean of the ranks' rates",
            "variables": {n: v for n, v in os.environ.items() if n.startswith(("MAGI_ATTENTION_", "NCCL_")) or n == "CUDA_DEVICE_MAX_CONNECTIONS"},
        }
        version = self.library.version if self.library else None
        return results.header("distributed", version, protocol, machine)

    def contestants(self, row, notes):
        """Those that can compute the row, with inputs; `notes` tells why the others cannot. Collective."""
        makers = {}
        if self.library:
            import magi_dist

            makers["magi"] = lambda: magi_dist.Keyed(self.comm, row, self.options.config, self.stream, self.device)
        makers.update({name: lambda name=name: self._peer(name, row) for name in self.names})
        inputs = self.spread.Inputs(row, getattr(self.torch, DTYPE_NAMES[row.dtype]), self.options.seed, self.device)
        made = {}
        for name, make in makers.items():
            self._add(made, notes, inputs, name, make)
            # Where the library has no plan yet, its reference takes contiguous shares.
            if name == "magi":
                shares = self.torch.arange(row.mask.total_q).tensor_split(self.world)[self.rank]
                at = made["magi"].positions if "magi" in made else shares
                alone = lambda at=at: magi_dist.Alone(self.library, row, at, self.stream, self.device)  # noqa: E731
                self._add(made, notes, inputs, "alone", alone)
        return made, inputs

    def _peer(self, name, row):
        kernel = {} if self.cuda else {"kernel": self.peers.Plain}
        peer = self.peers.PEERS[name](self.device, **kernel)
        peer.prepare(row)
        return peer

    def _add(self, made, notes, inputs, name, make):
        """Makes, loads and runs a contestant once. Every rank does or none."""
        torch, why, one = self.torch, None, None
        try:
            one = make()
            inputs.load(one)
            one.forward()
            if self.options.passes != "forward":
                one.backward()
            if self.cuda:
                torch.cuda.synchronize(self.device)
        # A refusal, memory or whatever else: the others are still to be timed.
        except (magi.Error, self.peers.Unable, RuntimeError, NotImplementedError) as error:
            why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if self.spread.agree(why is None, self.device):
            made[name] = one
        else:
            notes[name] = {"left_out": why or "another rank could not"}
            if one is not None and hasattr(one, "close"):
                one.close()

    def compare(self, row, made, notes):
        """Names of those whose sampled rows differ from the first's. Collective."""
        names = ["out"] + (["dq", "dk", "dv"] if row.backward else [])
        order = sorted(made, key=lambda name: name != "alone")
        first = None
        for name in order:
            rows = self._rows(made[name], names, row)
            first = first or (name, rows)
            notes[name] = {"compared_with": first[0]}
            for what in names:
                notes[name][f"{what}_difference"] = found = self.spread.relative(rows[what], first[1][what])
                if not found <= DIFFERENCE:
                    notes[name]["left_out"] = f"its {what} is another"
            if name == "magi":
                self._compare_whole(made, names, notes[name])
        return [name for name in made if "left_out" in notes[name]]

    def _compare_whole(self, made, names, note):
        """The library's results are finite, and what its queries get is what they get alone, token for token."""
        one, alone = made["magi"], made.get("alone")
        good = all(bool(self.torch.isfinite(getattr(one, what)).all()) for what in names)
        for what in [what for what in ("out", "dq") if what in names and alone]:
            note[f"{what}_difference_whole"] = found = self.spread.relative(getattr(one, what), getattr(alone, what))
            good &= found <= DIFFERENCE
        if not self.spread.agree(good, self.device):
            note["left_out"] = "its results are not finite, or others than alone"

    def _rows(self, one, names, row):
        found = {}
        for what in names:
            side = "k" if what in ("dk", "dv") else "q"
            wanted = self.torch.tensor(row.sample(side, self.options.samples, self.options.seed))
            positions = one.positions_k if side == "k" else one.positions
            found[what] = self.spread.rows_at(getattr(one, what), positions, wanted, self.device)
        return found

    def check(self, row, made, inputs, notes):
        """Compares everything with f64; whether all contestants are right. Collective."""
        want, good = self.spread.exact(row, inputs, self.device), True
        everything, bound = self.torch.arange(row.mask.total_q), BOUNDS[row.dtype]
        for name, one in made.items():
            notes[name] = {}
            for what in ["out"] + (["dq", "dk", "dv"] if row.backward else []):
                positions = one.positions_k if what in ("dk", "dv") else one.positions
                got = self.spread.rows_at(getattr(one, what), positions, everything, self.device)
                notes[name][what] = error = self.spread.relative(got, want[what])
                good &= error <= bound
        return good

    def trace(self, row, inputs, found):
        """Measures each pass of a row stage by stage and adds that to its rows in `found`. Collective."""
        import magi_dist
        import ranks

        torch, spare = self.torch, {**self.options.config, "profile": 1}
        one = magi_dist.Keyed(self.comm, row, spare, self.stream, self.device)
        try:
            inputs.load(one)
            for backward in passes_of(self.options):
                for _ in range(self.options.warmup + 1):
                    (one.backward if backward else one.forward)()
            torch.cuda.synchronize(self.device)
            for part in found:
                pass_ = ranks.BACKWARD if part["pass"] == "backward" else ranks.FORWARD
                part["measured_stages"] = self._everyone(one.key.stage_times(pass_))
                # The rank that waits least is the one that others wait for: what it waits for are transfers.
                shares = [ranks.exposed(stages) for stages in part["measured_stages"]]
                part["exposed"], part["exposed_most"] = min(shares), max(shares)
            traces = self._everyone(one.key.trace())
            if self.rank == 0:
                name = os.path.join(self.options.trace, f"{row.mask.name}-{row.mask.total_q}-{self.world}")
                os.makedirs(self.options.trace, exist_ok=True)
                with open(f"{name}.json", "w") as file:
                    json.dump({"traceEvents": [event for text in traces for event in json.loads(text)["traceEvents"]]}, file)
                with open(f"{name}.svg", "w") as file:
                    file.write(one.key.draw_profile())
        finally:
            one.close()

    def _everyone(self, mine):
        """What each rank has, by rank."""
        all_ = [None] * self.world
        self.dist.all_gather_object(all_, mine)
        return all_

    @staticmethod
    def _close(one):
        if hasattr(one, "close"):
            one.close()

    def case(self, row):
        """The parts of a result file that a row's passes make. Collective."""
        notes = {}
        made, inputs = self.contestants(row, notes)
        try:
            if self.options.check:
                good = self.check(row, made, inputs, notes)
                outcome = ("checked" if good else "wrong") if made else "nothing to check"
                return [{**row.describe(), "world": self.world, "contestants": notes, "outcome": outcome}]
            wrong = self.compare(row, made, notes)
            for name in wrong:
                self._close(made.pop(name))
            found = [self.timed(of_pass(row, backward), made, notes, "magi" in wrong) for backward in passes_of(self.options)]
            if self.options.trace and "magi" in made:
                self.trace(row, inputs, found)
            return found
        finally:
            for one in made.values():
                self._close(one)

    def timed(self, row, made, notes, wrong):
        """A row with times. Collective."""
        kind = "backward" if row.backward else "forward"
        found = {**row.describe(), "world": self.world, "contestants": notes}
        if not made:
            return {**found, "outcome": "wrong" if wrong else "nothing to time"}
        calls = {"matmul": self.matmul} if self.matmul else {}
        times, found["rounds"] = self.turns.run({**calls, **{name: getattr(one, kind) for name, one in made.items()}})
        if self.matmul:
            found["clocks"] = results.clocks() if self.rank == 0 else {}
            found["matmul_tflops"] = self.matmul_flops / times.pop("matmul").ms / 1e9
        found["measured"] = {}
        for name, time_ in times.items():
            entry = {"ms": time_.ms, "ms_least": time_.ms_least, "ms_by_rank": time_.ms_by_rank}
            entry["tflops_per_gpu"] = row.flops() / self.world / time_.ms / 1e9
            entry["bytes_moved"] = made[name].bytes_moved()[kind]
            found["measured"][name] = entry
        if "alone" in made:
            self._fractions(row, made["alone"], found["measured"])
        if "magi" in made:
            found["plan"] = {**made["magi"].host_ms, **made["magi"].key.describe(self.world, row.backward)}
        return {**found, "outcome": "wrong" if wrong else "timed"}

    def _fractions(self, row, alone, measured):
        """Rates over that of one GPU: the mean of what each reaches on its own part; and over that of the slowest."""
        cells = self.torch.tensor([alone.cells], dtype=self.torch.int64, device=self.device)
        every = [self.torch.empty_like(cells) for _ in range(self.world)]
        self.dist.all_gather(every, cells)
        flops = row.flops() / row.mask.area()
        rates = [flops * c.item() / ms / 1e9 for c, ms in zip(every, measured["alone"]["ms_by_rank"])]
        measured["alone"]["tflops_per_gpu"] = mean = sum(rates) / self.world
        measured["alone"]["tflops_by_rank"] = rates
        for entry in measured.values():
            entry["fraction"] = entry["tflops_per_gpu"] / mean
            entry["fraction_of_slowest"] = entry["tflops_per_gpu"] / min(rates)
        if "magi" in measured:
            measured["magi"]["beyond_alone_ms"] = measured["magi"]["ms"] - measured["alone"]["ms"]


DTYPE_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}


def alone_here():
    """Without a launcher this process is the only rank."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def table(result):
    """Lines: a row a row; TFLOP/s per GPU, in brackets over one GPU's, and gigabytes moved."""
    rows = result["rows"]
    names = []
    for row in rows:
        names += [n for n in row.get("measured", {}) if n not in names]
    lines = [f"{'mask':<18} {'tokens':>6} {'ranks':>5} {'pass':8}" + "".join(f" | {n:>15} {'GB':>6}" for n in names) + " | outcome"]
    for row in rows:
        text = f"{row['mask']:<18} {row['tokens']:>6} {row['world']:>5} {row['pass']:8}"
        for name in names:
            entry = row.get("measured", {}).get(name)
            text += f" | {_figure(entry):>15} {entry['bytes_moved'] / 1e9:6.2f}" if entry else f" | {'-':>15} {'-':>6}"
        plan = row.get("plan")
        if plan and not names:
            text += f" | {plan['bytes_moved']} bytes in {len(plan['predicted_stages'])} stages"
        lines.append(f"{text} | {row['outcome']}")
    return lines


def _figure(entry):
    fraction = f" ({entry['fraction']:.3f})" if "fraction" in entry else ""
    return f"{entry['tflops_per_gpu']:.0f}{fraction}"


def progress(found, number, count, seconds):
    """Lines of a finished case."""
    for row in found:
        text = f"[{number}/{count}] {row['pass']:8} {row['mask']} {row['tokens']} {row['outcome']}"
        for name, entry in row.get("measured", {}).items():
            text += f" | {name} {_figure(entry)} {entry['ms']:.2f} ms"
        if "exposed" in row:
            text += f" | {row['exposed']:.1%} exposed, {row['exposed_most']:.1%} with waiting for other ranks"
        for name, note in row.get("contestants", {}).items():
            if "left_out" in note:
                text += f" | {name}: {note['left_out']}"
        say(f"{text} [{seconds:.1f} s]")
        if row["outcome"] in ("wrong", "checked"):
            say("      ", row["contestants"])


def run_ranks(options, library):
    """Every row on this rank and the others; the number of rows that are wrong."""
    bench = Bench(options, library)
    result, first = bench.header(), bench.rank == 0
    stamp = result["date"][:19].replace(":", "").replace("-", "")
    path = options.out or os.path.join(results.ROOT, "bench", "results", f"distributed-{result['commit'][:12]}-{stamp}.json")
    keep = first and (options.out or (bench.cuda and not options.check))
    rows, begin, wrong = rows_of(options), time.monotonic(), 0
    if first:
        say(f"{bench.world} ranks, {result['machine'].get('gpu', 'host')}, commit {result['commit']}")
    for number, row in enumerate(rows, 1):
        started = time.monotonic()
        late = options.seconds is not None and started - begin > options.seconds
        if not bench.spread.agree(not late, bench.device):
            result["not_run"].append(row.title())
            continue
        found = bench.case(row)
        if bench.cuda:
            bench.torch.cuda.empty_cache()
        wrong += sum(one["outcome"] == "wrong" for one in found)
        result["rows"] += found
        if first:
            progress(found, number, len(rows), time.monotonic() - started)
        if keep:
            results.save(path, result)
    if keep:
        say(path)
    if first:
        print("\n".join(table(result)), flush=True)
        say(f"{len(result['rows'])} rows, {wrong} wrong, {len(result['not_run'])} not run")
    if bench.comm:
        bench.comm.close()
    bench.dist.destroy_process_group()
    return wrong


def main(argv=None):
    """Exit code: 0 when no row was wrong."""
    options = arguments(argv)
    if options.device == "cuda":
        try:
            import torch
        except ImportError:
            raise SystemExit("times need PyTorch; --device cpu needs nothing") from None
        if not torch.cuda.is_available():
            raise SystemExit("PyTorch finds no CUDA device; --device cpu needs none")
    library = None if options.peers_only else magi.Library(options.library)
    return 1 if (run_local if options.device == "cpu" else run_ranks)(options, library) else 0


if __name__ == "__main__":
    sys.exit(main())
