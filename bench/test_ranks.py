"""Tests of the tools for several ranks, on local ranks; test_bench.py runs them."""
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
from contextlib import redirect_stderr, redirect_stdout

import calibrate
import distributed
import host_dist
import magi
import masks
import ranks
import rates
import results
from row import Row
from test_library import library

sys.path.insert(0, os.path.join(results.ROOT, "tests", "gpu", "ranks"))
import killed_rank  # noqa: E402
import nccl_log  # noqa: E402
import sites  # noqa: E402
import soak  # noqa: E402


class Sites(unittest.TestCase):
    """Where the GPU programs of several ranks have their tensors, on torch's "cpu" device."""

    def test_a_whole_problem_is_computed_alone_and_compared(self):
        try:
            import torch
        except ImportError:
            self.skipTest("no torch")
        site = sites.CudaSite.__new__(sites.CudaSite)
        site.torch, site.library, site.device, site.stream = torch, library(), torch.device("cpu"), None
        whole = site.whole(Row(masks.grid_mask("causal", 64, 0), 4, 2, 16, 16, "bf16", True), 3)
        for name in sites.OUTPUTS:
            tensor = getattr(whole, name)
            self.assertTrue(bool(torch.isfinite(tensor).all()), name)
            own = site.like(tensor, 8)
            self.assertEqual(site.difference(own, tensor, range(8)), float("inf"))
            own.copy_(tensor[8:16])
            self.assertEqual(site.difference(own, tensor, range(8, 16)), 0.0)
            self.assertEqual(site.digest([own]), site.digest([tensor[8:16]]))
            self.assertNotEqual(site.digest([own]), site.digest([tensor[:8]]))


class LocalRanks(unittest.TestCase):
    """The library on local ranks, and what distributed.py says of it."""

    def local(self, world, mask="causal", **settings):
        local = host_dist.LocalRow(library(), Row(masks.grid_mask(mask, 64, 0), 4, 2, 16, 16, "f32", True), 5, world, settings)
        local.run()
        return local

    def test_any_number_of_ranks(self):
        for world in (1, 3):
            local = self.local(world)
            check = local.data.check(8, 5)
            self.assertTrue(check["good"], check)
            self.assertEqual(local.plan["bytes_moved"] > 0, world > 1)

    def test_tokens_of_another_mask_are_found(self):
        local = self.local(2)
        local.data.row.mask = masks.grid_mask("full", 64, 0)
        self.assertFalse(local.data.check(8, 5)["good"])

    def test_settings_reach_the_plan(self):
        plan = self.local(2, mask="full", chunk_size=8, degree_backward=2, bwd_hide_tail_reduce=0).plan
        self.assertEqual((plan["chunk_size"], len(plan["predicted_stages"])), (8, 3))
        # What stages receive is what the rank receives; k and v of 2 heads and 16 f32 each, and their gradients back.
        received = sum(stage["tokens_received"] for stage in plan["predicted_stages"])
        self.assertEqual((received, plan["tokens_moved"]), (32, 64))
        self.assertEqual(plan["bytes_moved"], 64 * 2 * 2 * 2 * 16 * 4)
        for name in ("alloc", "nothing"):
            with self.assertRaisesRegex(KeyError, name):
                ranks.config_of(library(), {name: 1})

    def test_a_measured_key_tells_of_its_stages(self):
        local = self.local(2, profile=1, degree_forward=2)
        self.assertEqual(set(local.measured), {0, 1})
        for times, trace, drawing in local.measured.values():
            self.assertEqual(len(times), 3)
            self.assertTrue(all(0 <= t["compute_start_ns"] <= t["compute_end_ns"] <= t["pass_ns"] for t in times), times)
            self.assertTrue(0 <= ranks.exposed(times) < 1)
            self.assertTrue(json.loads(trace)["traceEvents"])
            self.assertTrue(drawing.startswith("<svg"))

    def test_a_rank_that_fails_ends_the_others(self):
        with self.assertRaisesRegex(magi.Error, "chunk_size"):
            self.local(3, chunk_size=-1)

    def test_the_command(self):
        words = ["--device", "cpu", "--world", "2", "--masks", "causal,block_causal_32,varlen_causal", "--tokens", "64", "--config", "degree_backward=1,bwd_hide_tail_reduce=0"]
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as said:
            path = os.path.join(folder, "check.json")
            code = distributed.main([*words, "--library", library().path, "--out", path])
            found = results.load(path)
        self.assertEqual(code, 0, said.getvalue())
        self.assertEqual([(r["mask"], r["pass"], r["outcome"]) for r in found["rows"]], [(n, "backward", "checked") for n in words[5].split(",")])
        self.assertIn("64     2 backward", printed.getvalue().splitlines()[1])
        self.assertIn("in 2 stages", printed.getvalue())

    def test_rows(self):
        options = distributed.arguments([])
        rows = distributed.rows_of(options)
        self.assertEqual([(r.mask.name, r.mask.total_q) for r in rows[:4]], [("full", 65536), ("full", 131072), ("full", 262144), ("causal", 65536)])
        self.assertEqual({(r.heads, r.dims, r.dtype) for r in rows}, {("64:8", "128", "bf16")})
        documents = next(r for r in rows if r.mask.name == "varlen_causal" and r.mask.total_q == 131072)
        self.assertLessEqual(max(documents.mask.lengths), 131072 // 4)
        self.assertEqual([r.mask.name for r in distributed.rows_of(distributed.arguments(["--check"]))][2], "block_causal_128")
        self.assertEqual(distributed.arguments(["--config", "degree_forward=2,chunk_size=512"]).config, {"degree_forward": 2, "chunk_size": 512})

    def test_the_table(self):
        measured = {"tflops_per_gpu": 612.4, "fraction": 0.954, "bytes_moved": 1.5e9}
        row = {"mask": "full", "tokens": 65536, "world": 4, "pass": "forward", "outcome": "timed"}
        peer = {"tflops_per_gpu": 585.0, "bytes_moved": 2e9}
        lines = distributed.table({"rows": [{**row, "measured": {"magi": measured, "peer": peer}}, {**row, "outcome": "wrong"}]})
        self.assertIn("612 (0.954)   1.50", lines[1])
        self.assertIn("585   2.00 | timed", lines[1])
        self.assertTrue(lines[2].endswith("wrong"))
        self.assertEqual({line.rindex("|") for line in lines}, {lines[0].rindex("|")})


class Rates(unittest.TestCase):
    """What calibrate.py makes of times, and that the library takes what it prints."""

    RATES = {
        "forward_gflops": [1, 2, 3],
        "backward_gflops": [4, 5, 6],
        "link_mb_per_s": 7,
        "link_latency_ns": 8,
        "kernel_latency_ns": 9,
    }

    def test_lines(self):
        points = [(10.0**i, 30.0 + 0.5 * 10**i) for i in range(5)]
        start, slope = rates.line(points)
        self.assertAlmostEqual(start, 30)
        self.assertAlmostEqual(slope, 0.5)
        self.assertEqual(rates.line([(4.0, 8.0)]), (0.0, 2.0))
        # No latency is below nothing, and no link gets quicker with what it carries.
        for points in ([(1.0, 0.5), (2.0, 2.0)], [(1.0, 4.0), (2.0, 2.0)]):
            start, slope = rates.line(points)
            self.assertEqual(start, 0)
            self.assertGreater(slope, 0)

    def test_rates(self):
        def row(what, kind, dim, ms, flops):
            return {"what": what, "pass": kind, "head_dim": dim, "ms": ms, "flops": flops}

        # 600 TFLOP/s forward and 300 backward beyond 0.01 and 0.03 ms; 100 GB/s beyond 20 us.
        rows = [row("tiny", "forward", 128, 0.01, 1), row("tiny", "backward", 128, 0.03, 1)]
        rows += [row("kernel", "forward", 128, 0.01 + ms, ms * 6e11) for ms in (2.0, 1.0)]
        rows += [row("kernel", "backward", 128, 0.03 + ms, ms * 3e11) for ms in (4.0, 2.0)]
        rows += [{"what": "link", "bytes_received": n * 10**6, "ms": 0.02 + n * 0.01} for n in (1, 10, 100)]
        found = rates.rates_of(rows, self.RATES)
        want = {"forward_gflops": [1, 600_000, 3], "backward_gflops": [4, 300_000, 6], "link_mb_per_s": 100_000}
        self.assertEqual(found, {**want, "link_latency_ns": 20_000, "kernel_latency_ns": 20_000})
        self.assertEqual(rates.rates_of([], self.RATES), self.RATES)

    def test_exchanges_of_every_size(self):
        self.assertEqual(calibrate.rows_of_size(4096 * 30, 4, 2), (10, 4096 * 30))
        self.assertEqual(calibrate.rows_of_size(1, 3, 2), (1, 8192))

    def test_the_command(self):
        words = ["--device", "cpu", "--world", "2", "--head-dims", "64", "--tokens", "32", "--rounds", "3", "--warmup", "1"]
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()):
            path = os.path.join(folder, "rates.json")
            self.assertEqual(calibrate.main([*words, "--library", library().path, "--out", path]), 0)
            found = results.load(path)
        self.assertEqual([row["what"] for row in found["rows"]], ["kernel"] * 4 + ["tiny"] * 2 + ["link"] * 2)
        self.assertEqual([row["bytes_received"] for row in found["rows"][-2:]], [8192, 65536])
        self.assertTrue(all(row["ms"] > 0 for row in found["rows"]))
        self.assertEqual(found["rates"]["forward_gflops"][1:], rates.defaults_of(ranks.config_of(library(), {}))["forward_gflops"][1:])
        self.assertIn(f"MAGI_ATTENTION_RATES='{found['text']}'", printed.getvalue())
        self.assertIn(f"config.link_mb_per_s = {found['rates']['link_mb_per_s']};", printed.getvalue())

    def test_exchanges_of_many_runs(self):
        words = ["--packing", "--device", "cpu", "--world", "2", "--rounds", "3", "--warmup", "1"]
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()):
            path = os.path.join(folder, "packing.json")
            self.assertEqual(calibrate.main([*words, "--library", library().path, "--out", path]), 0)
            found = results.load(path)
        self.assertEqual([(row["runs"], row["rows"]) for row in found["rows"]], calibrate.PACKING["cpu"])
        self.assertEqual(found["rows"][-1]["bytes_received"], 9 * 1024 * 2048 * 4)
        self.assertTrue(all(row["ms"] > 0 for row in found["rows"]))
        self.assertEqual(len(printed.getvalue().splitlines()), 4)

    def test_the_library_takes_the_text(self):
        program = "import magi, ranks, rates, sys; print(rates.defaults_of(ranks.config_of(magi.Library(sys.argv[1]), {})))"
        environment = {**os.environ, "MAGI_ATTENTION_RATES": rates.text(self.RATES), "PYTHONPATH": os.path.dirname(calibrate.__file__)}
        command = [sys.executable, "-c", program, os.path.abspath(library().path)]
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
        self.assertEqual(done.stdout.strip(), str(self.RATES), done.stderr)


@unittest.skipUnless(importlib.util.find_spec("torch"), "no torch")
class MasksOnRanks(unittest.TestCase):
    """The program that checks every mask on ranks, on local ranks."""

    def run_main(self, *words):
        """Exit code, what it says of itself, and of what is bad."""
        import masks_on_ranks

        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as said:
            code = masks_on_ranks.main(["--device", "cpu", "--library", library().path, *words])
        bad = [line for line in said.getvalue().splitlines() if line.startswith("BAD")]
        return code, json.loads(printed.getvalue().splitlines()[-1]), bad

    def test_every_mask_and_degree(self):
        for world in ("2", "4"):
            code, last, bad = self.run_main("--world", world)
            self.assertEqual((code, bad, last["checked"]), (0, [], 141))
            self.assertEqual(sum(n > 0 for n in last["variants"].values()), 8)
            self.assertTrue(0 < last["worst"]["forward"] <= 1 and 0 < last["worst"]["backward"] <= 1)

    def test_what_is_wrong_is_found(self):
        import masks_on_ranks
        import torch

        words = ("--world", "2", "--random", "2", "--only", "causal_8k")
        run = masks_on_ranks.OnRank.run

        def spoil(name):
            def spoiled(on):
                moved = run(on)
                on.at[name][-1] += 0.5
                return moved

            return unittest.mock.patch.object(masks_on_ranks.OnRank, "run", spoiled)

        for name in ("out", "lse", "dq", "dk", "dv"):
            with spoil(name):
                code, last, bad = self.run_main(*words)
            self.assertEqual(code, 1)
            self.assertGreater(last["bad"], 5, (name, bad))
        traffic = ranks.Comm.traffic
        with unittest.mock.patch.object(ranks.Comm, "traffic", lambda comm: tuple(2 * n for n in traffic(comm))):
            _, _, bad = self.run_main(*words)
        self.assertTrue(any("forward moved" in line for line in bad) and any("by the plan" in line and "backward" in line for line in bad), bad)
        whole = masks_on_ranks.OnRank.whole
        with unittest.mock.patch.object(masks_on_ranks.OnRank, "whole", lambda on, wrong: {n: torch.roll(t, 1, 0) for n, t in whole(on, wrong).items()}):
            self.assertEqual(self.run_main(*words)[0], 1)


@unittest.skipUnless(importlib.util.find_spec("torch"), "no torch")
class GroupsOnRanks(unittest.TestCase):
    """The program that checks group collectives on ranks, on local ranks."""

    def run_main(self, *words):
        """As of MasksOnRanks."""
        import groups_on_ranks

        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as said:
            code = groups_on_ranks.main(["--device", "cpu", "--turns", "1", "--library", library().path, *words])
        bad = [line for line in said.getvalue().splitlines() if line.startswith("BAD")]
        return code, json.loads(printed.getvalue().splitlines()[-1]), bad

    def test_any_number_of_ranks(self):
        for world in ("1", "2", "4", "6"):
            code, last, bad = self.run_main("--world", world, "--lists", "18")
            self.assertEqual((code, bad, last["checked"]), (0, [], 20 * 18 * int(world)))
            self.assertTrue(0 < last["worst"] <= 1 and all(last["ms"].values()))

    def test_what_is_wrong_is_found(self):
        import groups_on_ranks
        import torch

        case, lists = groups_on_ranks.Case, groups_on_ranks.Lists
        expected, sums, merged, traffic = case.expected, case.sums, case.merged, lists.traffic
        for of, name, wrong, word in (
            (case, "expected", lambda c, rank, i: torch.roll(expected(c, rank, i), 1, 0), "cast, tensor"),
            (case, "sums", lambda c, rank, i, held: (sums(c, rank, i, held)[0] + 0.1, sums(c, rank, i, held)[1]), "of bf16, over the mesh: reduction 0"),
            (case, "merged", lambda c, rank, held: [(t + 0.1, bound) for t, bound in merged(c, rank, held)], "lse of bf16, straight: reduction 1"),
            (lists, "traffic", lambda each, rank, mesh: traffic(each, rank, False), "over the mesh: cast moved"),
        ):
            with unittest.mock.patch.object(of, name, wrong):
                code, _, bad = self.run_main("--lists", "3")
            self.assertEqual(code, 1)
            self.assertTrue(any(word in line for line in bad), (name, bad))


class NcclLog(unittest.TestCase):
    def test_calls_since_the_last_look_are_added_up_by_their_types(self):
        line = "host:17:18 [0] NCCL INFO {}: opCount 3 sendbuff 0x7f10 recvbuff (nil) count {} datatype {} op 0 root 1 comm 0x55aa [nranks=4] stream 0x1\n"
        with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.dict(os.environ):
            log = nccl_log.NcclLog(folder)
            self.assertEqual(os.environ["NCCL_DEBUG_FILE"], log.path)
            self.assertEqual(log.read(), (0, 0))
            with open(log.path, "w", encoding="utf-8") as file:
                file.write("host:17:18 [0] NCCL INFO ncclCommInitRank comm 0x55aa rank 0 count 9\n")
                file.write(line.format("Send", 1000, 1) + line.format("Send", 10, 7) + line.format("Recv", 5, 9) + line.format("AllGather", 77, 1))
                file.flush()
                self.assertEqual(log.read(), (1040, 10))
                self.assertEqual(log.read(), (0, 0))
                file.write(line.format("Recv", 1 << 33, 0))
            self.assertEqual((log.read(), log.calls), ((0, 1 << 33), 4))


class Faults(unittest.TestCase):
    """The programs that kill ranks and that run for long, on local ranks: a thread that leaves stands for a process that is killed."""

    def run_main(self, program, words):
        """Exit code, and the JSON of the last line."""
        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()):
            code = program.main(["--device", "cpu", "--library", library().path, *words])
        return code, json.loads(printed.getvalue().splitlines()[-1])

    def test_ranks_that_are_left_recover(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "killed.json")
            words = ["--world", "3", "--rounds", "2", "--silent", "1", "--timeout", "0.5", "--out", path]
            code, last = self.run_main(killed_rank, words)
            rows = results.load(path)["rows"]
        self.assertEqual((code, last["bad"]), (0, 0), rows)
        self.assertEqual([r["what"] for r in rows], ["other mask", "wrong shape", "wrong device", "killed", "killed", "silent"])
        self.assertIn(killed_rank.TIMEOUT, rows[-1]["statuses"])
        self.assertTrue(all(r["recovered"] for r in rows))

    def test_wrong_results_after_a_fault_are_found(self):
        rank_check = killed_rank.Rank.check

        def check(rank):
            rank.whole.out.values[0] += 1
            return rank_check(rank)

        with unittest.mock.patch.object(killed_rank.Rank, "check", check):
            code, last = self.run_main(killed_rank, ["--world", "2", "--rounds", "1", "--silent", "0", "--timeout", "0.5"])
        self.assertEqual((code, last["bad"]), (1, 4))

    def test_a_process_takes_orders_and_dies(self):
        words = ["--device", "cpu", "--library", library().path, "--world", "1"]
        process = killed_rank.Process(killed_rank.arguments(words))
        process.begin(0)
        self.assertTrue(process.answer(60).get("ready"))
        process.ask(do="invite")
        answer = process.answer(60)
        self.assertTrue(len(answer.get("id", "")) == 512 or answer["status"] == magi.NOT_SUPPORTED, answer)
        process.hurt("killed")
        self.assertEqual(process.answer(60)["message"], "the process ended")
        process.end()

    def test_a_soak(self):
        words = ["--world", "3", "--calls", "60", "--masks", "12", "--cache", "3", "--compare", "5"]
        code, last = self.run_main(soak, words)
        self.assertEqual((code, last["outcome"]), (0, "good"))
        self.assertGreaterEqual(last["compared"], 8)

    def test_other_bits_and_lost_memory_are_found(self):
        digests = iter(range(1000))
        with unittest.mock.patch.object(soak.Part, "digest", lambda part: next(digests)):
            code, last = self.run_main(soak, ["--world", "1", "--calls", "6", "--masks", "2", "--compare", "3"])
        self.assertEqual(code, 1)
        self.assertIn("other bits in step", last["outcome"])
        good = {"wrong": [], "free_begin": 1 << 30, "free_end": 1 << 30, "host_begin": 0, "host_end": 0, "looked_at": 1000, "kept_waiting": 30}
        self.assertEqual(soak.judge(good), [])
        for changed, text in (
            ({"free_end": 0}, "1073741824 bytes of the device's memory lost"),
            ({"host_end": 1 << 28}, "268435456 bytes of the host's memory taken"),
            ({"kept_waiting": 31}, "planning kept the stream waiting in 31 of 1000 steps"),
        ):
            self.assertEqual(soak.judge({**good, **changed}), [text])
