#!/usr/bin/env python3
"""Tests of the benchmark tools, without a GPU: struct layouts, masks, checks on the CPU backend, result files, drawings.

  python3 bench/test_bench.py [--library libmagi_attn.so] [unittest's arguments]
"""
import copy
import importlib.util
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout

import attention
import distributed
import group
import host
import magi
import masks
import plot
import ranks
import results
import test_library
from row import Row
from test_library import library
from test_ranks import Faults, LocalRanks, MasksOnRanks, Rates, Sites  # noqa: F401 (unittest finds them here)

SAMPLE = os.path.join(results.ROOT, "tests", "cases", "bench_sample.json")
SVG = "{http://www.w3.org/2000/svg}"


class Layout(unittest.TestCase):
    """magi.py says the same as the header."""

    @unittest.skipUnless(shutil.which("cc"), "no C compiler")
    def test_structs_and_constants(self):
        lines = ["#include <magi_attn.h>"]
        for name, struct in {**magi.STRUCTS, **ranks.STRUCTS, **group.STRUCTS}.items():
            lines.append(f'_Static_assert(sizeof({name}) == {magi.C.sizeof(struct)}, "{name}");')
            for field, _ in struct._fields_:
                offset = getattr(struct, field).offset
                lines.append(f'_Static_assert(offsetof({name}, {field}) == {offset}, "{name}.{field}");')
        for prefix, names in {
            "MAGI_DTYPE": ("F64", "F32", "BF16", "F16", "I32"),
            "MAGI_DEVICE_TYPE": ("CPU", "CUDA"),
            "MAGI_MASK_TYPE": ("FULL", "CAUSAL", "INV_CAUSAL", "BI_CAUSAL"),
        }.items():
            for name in names:
                lines.append(f'_Static_assert({prefix}_{name} == {getattr(magi, name)}, "{name}");')
        for name in ("MAGI_SIDE_Q", "MAGI_SIDE_K", "MAGI_PASS_FORWARD", "MAGI_PASS_BACKWARD"):
            lines.append(f'_Static_assert({name} == {getattr(ranks, name[5:].replace("PASS_", ""))}, "{name}");')
        include = os.path.join(results.ROOT, "include")
        compile_ = ["cc", "-std=c11", f"-I{include}", "-fsyntax-only", "-x", "c", "-"]
        done = subprocess.run(compile_, input="\n".join(lines), text=True, capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        wrong = lines + ['_Static_assert(offsetof(magi_tensor, shape) == 0, "");']
        done = subprocess.run(compile_, input="\n".join(wrong), text=True, capture_output=True, check=False)
        self.assertNotEqual(done.returncode, 0)

    def test_errors_have_the_librarys_message(self):
        with self.assertRaisesRegex(magi.Error, "overlap|both cover") as caught:
            magi.Mask(library(), [(0, 8, 0, 8, magi.FULL), (0, 8, 4, 8, magi.FULL)], 8, 8)
        self.assertEqual(caught.exception.status, 104)


class Masks(unittest.TestCase):
    """Slices, areas, and which cells are seen."""

    def every_mask(self):
        for tokens in (256, 5000, 8192):
            for name in masks.GRID:
                mask = masks.grid_mask(name, tokens, 1)
                if mask:
                    yield mask
        yield from masks.case_masks().values()

    def test_areas_are_the_librarys(self):
        for mask in self.every_mask():
            with self.subTest(mask.name, tokens=mask.total_q):
                self.assertEqual(mask.area(), magi.Mask(library(), mask.slices, mask.total_q, mask.total_k).area())

    def test_rows_and_columns_show_the_same_cells(self):
        for mask in self.every_mask():
            if mask.total_q > 1600:
                continue
            with self.subTest(mask.name):
                by_row = {(q, k) for q in range(mask.total_q) for a, b in mask.visible(q) for k in range(a, b)}
                by_column = {(q, k) for k in range(mask.total_k) for a, b in mask.viewers(k) for q in range(a, b)}
                self.assertEqual(by_row, by_column)
                self.assertEqual(len(by_row), mask.area())

    def test_documents_windows_and_blocks_say_what_slices_say(self):
        for name in masks.GRID:
            mask = masks.grid_mask(name, 6000, 3)
            ends = mask.documents
            for q in range(0, 6000, 97):
                begin, end = next((a, b) for a, b in zip(ends, ends[1:]) if a <= q < b)
                first = begin if mask.window_left is None else max(begin, q - mask.window_left)
                stop = q + 1 if mask.causal else end
                if mask.block is not None:
                    stop = min(end, begin + ((q - begin) // mask.block + 1) * mask.block)
                self.assertEqual(mask.visible(q), [(first, stop)], (name, q))

    def test_windows_have_their_published_widths(self):
        self.assertEqual(masks.grid_mask("sliding_window_causal", 4096, 0).visible(4000), [(2976, 4001)])
        self.assertEqual(masks.grid_mask("window_1024", 4096, 0).visible(4000), [(2977, 4001)])

    def test_blocks_of_any_size(self):
        self.assertEqual(masks.grid_mask("block_causal_64", 256, 0).visible(100), [(0, 128)])
        self.assertIsNone(masks.grid_mask("block_causal_64", 64, 0))
        with self.assertRaisesRegex(KeyError, "no mask"):
            masks.grid_mask("block_causal_0", 256, 0)

    def test_queries_alone_see_what_they_see_among_all(self):
        for mask in self.every_mask():
            if mask.total_q > 1600:
                continue
            positions = [q for q in range(mask.total_q) if q // 7 % 3 != 1]
            part = mask.of_queries(positions)
            with self.subTest(mask.name):
                self.assertEqual((part.total_q, part.total_k), (len(positions), mask.total_k))
                self.assertEqual([part.visible(i) for i in range(len(positions))], [mask.visible(q) for q in positions])
                self.assertEqual(part.area(), magi.Mask(library(), part.slices, part.total_q, part.total_k).area())
                packed, keys = part.of_seen_keys()
                self.assertEqual(packed.total_k, len(keys))
                for i in range(len(positions)):
                    seen = [keys[k] for a, b in packed.visible(i) for k in range(a, b)]
                    self.assertEqual(seen, [k for a, b in part.visible(i) for k in range(a, b)])

    def test_lengths_are_drawn_alike_and_fill_the_tokens(self):
        for tokens in (1024, 4096, 65536):
            lengths = masks.draw_lengths(tokens, 7)
            self.assertEqual(lengths, masks.draw_lengths(tokens, 7))
            self.assertEqual(sum(lengths), tokens)
            self.assertTrue(all(0 < n <= tokens // 4 for n in lengths))
        self.assertNotEqual(masks.draw_lengths(65536, 7), masks.draw_lengths(65536, 8))

    def test_skewed_documents(self):
        self.assertEqual(masks.grid_mask("documents_skewed", 1024, 0).documents[:3], [0, 512, 768])


class Host(unittest.TestCase):
    """Checks on the CPU backend find what is wrong."""

    def data(self, **changes):
        row = Row(masks.grid_mask("documents_skewed", 64, 0), 4, 2, 16, 8, "f32", True)
        for name, value in changes.items():
            setattr(row, name, value)
        data = host.HostRow(library(), row, 5)
        data.run()
        return data

    def test_right_results_pass(self):
        for dtype in ("f64", "f32", "bf16"):
            check = self.data(dtype=dtype).check(8, 5)
            self.assertTrue(check["good"], check)
            self.assertEqual(set(check["error"]), {"out", "lse", "dq", "dk", "dv"})

    def test_wrong_results_fail(self):
        for name in ("out", "lse", "dq", "dk", "dv"):
            for value in (math.nan, 1e-3):
                data = self.data()
                tensor = getattr(data, name)
                tensor.values[0] = value + (0 if math.isnan(value) else tensor.values[0])
                self.assertFalse(data.check(8, 5)["good"], (name, value))

    def test_another_mask_fails(self):
        data = self.data()
        data.row.mask = masks.grid_mask("documents_8", 64, 0)
        self.assertFalse(data.check(8, 5)["good"])

    def test_bf16(self):
        for value, bits in ((1.0, 0x3F80), (1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (-2.5, 0xC020)):
            self.assertEqual(host.bf16_bits(value), bits)
        self.assertEqual(host.bf16_value(0xC020), -2.5)

    def test_the_command(self):
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed:
            path = os.path.join(folder, "check.json")
            code = attention.main(["--device", "cpu", "--check", "--tokens", "96", "--head-dims", "16", "--library", library().path, "--out", path])
            found = results.load(path)
        self.assertEqual(code, 0, printed.getvalue())
        self.assertEqual({r["outcome"] for r in found["rows"]}, {"checked"})
        lengths = next(r["lengths"] for r in found["rows"] if r["mask"] == "varlen_full")
        self.assertEqual(sum(lengths), 96)


@unittest.skipUnless(importlib.util.find_spec("torch"), "no torch")
class Peers(unittest.TestCase):
    """Peers on several ranks: processes of this host that compute by matrix products, checked against f64."""

    def run_ranks(self, world, *words):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.json")
            program = [os.path.join(results.ROOT, "bench", "distributed.py"), "--device", "gloo", "--out", path, *words]
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
            kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
            environment = {**kept, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([sys.executable, *launcher, *program], env=environment, text=True, capture_output=True, check=False, timeout=200)
            self.assertEqual(done.returncode, 0, done.stderr)
            return results.load(path)["rows"]

    def test_peers_compute_the_same(self):
        # Four ranks for two key heads: each goes to two ranks.
        for row in self.run_ranks(4, "--check", "--dtype", "f64", "--heads", "8:2,8:4"):
            self.assertEqual(row["outcome"], "checked")
            checked = [name for name, note in row["contestants"].items() if "left_out" not in note]
            want = ["ulysses_cudnn", "allgather_cudnn"] if row["mask"] in ("full", "causal") else ["ulysses_cudnn"]
            self.assertEqual(checked, want)

    def test_one_rank_beside_the_library(self):
        rows = self.run_ranks(1, "--library", library().path, "--rounds", "3", "--masks", "causal,varlen_causal")
        self.assertEqual([(r["pass"], r["outcome"]) for r in rows], [("forward", "timed"), ("backward", "timed")] * 2)
        for row in rows:
            self.assertEqual(list(row["measured"])[:3], ["magi", "alone", "ulysses_cudnn"])
            self.assertEqual(row["measured"]["alone"]["fraction"], 1)
            self.assertEqual(row["measured"]["magi"]["fraction_of_slowest"], row["measured"]["magi"]["fraction"], "one rank")
            self.assertLess(row["contestants"]["ulysses_cudnn"]["dk_difference"], 1e-5)
            self.assertIn("predicted_stages", row["plan"])

    def test_wrong_results_are_left_out(self):
        with unittest.mock.patch.dict(os.environ):
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                os.environ.pop(name, None)
            options = distributed.arguments(["--device", "gloo", "--samples", "4"])
            bench = distributed.Bench(options, library())
            try:
                row = Row(masks.grid_mask("causal", 128, 0), 4, 2, 16, 16, "f32", True)
                for name, what, token in (("magi", "out", 77), ("magi", "dq", 77), ("magi", "dv", 0), ("allgather_cudnn", "dk", 0)):
                    notes = {}
                    made, inputs = bench.contestants(row, notes)
                    self.assertTrue(bench.check(row, made, inputs, {}))
                    for value in (0.5, math.nan):
                        kept = getattr(made[name], what)
                        setattr(made[name], what, kept.clone())
                        getattr(made[name], what)[token] += value
                        self.assertFalse(bench.check(row, made, inputs, {}))
                        self.assertEqual(bench.compare(row, made, {}), [name], (what, value))
                        setattr(made[name], what, kept)
                    for one in made.values():
                        bench._close(one)
            finally:
                bench.comm.close()
                bench.dist.destroy_process_group()

    def test_operators_take_what_they_are_given(self):
        import peers_dist
        import torch

        def tensor(*shape):
            return torch.empty(*shape, device="meta", dtype=torch.bfloat16)

        # Views of one buffer, as they are received; results are dense in tokens, so that they can be sent as they are.
        q, k, v = tensor(1, 512, 20, 128).split((16, 2, 2), 2)
        packed = peers_dist.Varlen(None, masks.grid_mask("documents_8", 512, 0), 0.1, "meta")
        alone = peers_dist.Calls(peers_dist.Cudnn, masks.grid_mask("causal", 512, 0), 0.1, "meta")
        for attend in (packed, alone):
            out = attend.forward(q, k, v)
            gradients = attend.backward(tensor(1, 512, 16, 128), q, k, v, out)
            self.assertEqual([x.shape for x in (out, *gradients)], [x.shape for x in (q, q, k, v)])
            self.assertTrue(all(x.is_contiguous() for x in (out, *gradients)))


@unittest.skipUnless(importlib.util.find_spec("torch"), "no torch")
class Device(unittest.TestCase):
    """The checks of device.py, on torch's own CPU device."""

    def data(self, mask="documents_skewed", **changes):
        import device

        mask = masks.grid_mask(mask, 320, 0) if isinstance(mask, str) else mask
        row = Row(mask, 4, 2, 64, 32, "bf16", True)
        for name, value in changes.items():
            setattr(row, name, value)
        data = device.DeviceRow(library(), row, 5, device="cpu")
        data.run(None)
        return data

    def test_right_results_pass(self):
        for dtype in ("bf16", "f16"):
            for mask in ("full", "varlen_causal", "documents_skewed"):
                check = self.data(mask, dtype=dtype).check(16, 5)
                self.assertTrue(check["good"], check)
                self.assertLess(check["out_relative"], 0.01)
        data = self.data(mask="full", backward=False)
        check = data.check(16, 5)
        self.assertTrue(check["good"], check)
        self.assertGreater(data.prepare_ms(None), 0)

    def test_rows_that_see_nothing(self):
        cases = masks.case_masks()
        for name in ("cross_empty", "causal_longer_queries"):
            check = self.data(cases[name]).check(16, 5)
            self.assertTrue(check["good"], check)

    def test_wrong_results_fail(self):
        for name in ("out", "lse", "dq", "dk", "dv"):
            for value in (math.nan, 0.3):
                data = self.data()
                tensor = getattr(data, name)
                tensor[0] = value + (0 if math.isnan(value) else tensor[0])
                self.assertFalse(data.check(16, 5)["good"], (name, value))

    def test_peers_of_torch_compute_the_same(self):
        import peers

        for name, mask in (("full", "full"), ("causal", "causal")):
            data = self.data(mask, head_dim_v=64, heads_kv=4)
            out = peers.F.scaled_dot_product_attention(*peers._leaves(data, "bhsd"), is_causal=name == "causal")
            self.assertLess(peers.difference(out[0].transpose(0, 1).detach(), data.out), 0.01)
        with self.assertRaisesRegex(peers.Unable, "only full and causal"):
            peers.prepare("cudnn", self.data("documents_8"))

    def test_the_command_on_a_device(self):
        import torch

        if not torch.cuda.is_available():
            self.skipTest("no CUDA device")
        words = ["--masks", "full,window_1024", "--tokens", "1536", "--peers", "cudnn,fa2", "--rounds", "3", "--warmup", "1"]
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed:
            path = os.path.join(folder, "result.json")
            code = attention.main([*words, "--library", library().path, "--out", path])
            found = results.load(path)
        self.assertEqual(code, 0, printed.getvalue())
        self.assertEqual([r["outcome"] for r in found["rows"]], ["timed", "timed"], printed.getvalue())
        for name in ("magi", "fa2"):
            self.assertTrue(all(r["times"][name]["kernel"]["ms"] > 0 for r in found["rows"]), printed.getvalue())
        self.assertLess(found["rows"][0]["peers"]["fa2"]["difference"], 0.01)

    def test_mask_functions_of_flex_attention(self):
        import peers
        import torch

        for name, tokens in [(n, 1500) for n in masks.GRID if n != "block_causal_4096"] + [("block_causal_4096", 4500)]:
            mask = masks.grid_mask(name, tokens, 4)
            mod = peers._mask_mod(mask, torch.device("cpu"))
            keys = torch.arange(tokens)
            for q in range(0, tokens, 131):
                seen = mod(0, 0, torch.tensor(q), keys) if mod else torch.ones(tokens, dtype=torch.bool)
                want = torch.zeros(tokens, dtype=torch.bool)
                for a, b in mask.visible(q):
                    want[a:b] = True
                self.assertTrue(bool((seen == want).all()), (name, q))


class Rows(unittest.TestCase):
    """Counts of a row and of the grid."""

    def test_flops(self):
        mask = masks.grid_mask("full", 128, 0)
        self.assertEqual(Row(mask, 4, 2, 64, 64, "bf16", False).flops(), 4 * 128 * 128 * 4 * 64)
        self.assertEqual(Row(mask, 4, 2, 64, 64, "bf16", True).flops(), 10 * 128 * 128 * 4 * 64)
        self.assertEqual(Row(mask, 1, 1, 192, 128, "bf16", False).flops(), 2 * 128 * 128 * (192 + 128))

    def test_grids(self):
        options = attention.arguments(["--grid", "published"])
        rows = attention.rows_of(options)
        # Six masks, seven sizes (the window needs more than 1,024 tokens), two heads, two dimensions.
        self.assertEqual(len(rows), (6 * 7 - 1) * 4)
        options = attention.arguments(["--masks", "causal", "--tokens", "1024", "--head-dims", "192/128", "--pass", "both"])
        rows = attention.rows_of(options)
        self.assertEqual([(r.dims, r.heads, r.backward) for r in rows], [("192/128", "64:8", False), ("192/128", "64:8", True)])

    def test_samples_hold_the_ends(self):
        row = Row(masks.grid_mask("documents_8", 4096, 0), 1, 1, 64, 64, "bf16", False)
        sample = row.sample("q", 24, 1)
        self.assertEqual(len(set(sample)), 24)
        self.assertTrue({0, 4095} <= set(sample))
        self.assertTrue(all(0 <= n < 4096 for n in sample))


class Drawings(unittest.TestCase):
    """The sample's figures are invented; its structure is a result file's."""

    def draw(self, *arguments):
        with redirect_stdout(io.StringIO()) as printed:
            self.assertEqual(plot.main([*arguments, "--out", "-"]), 0)
        return ET.fromstring(printed.getvalue())

    @staticmethod
    def series(root, shape, name):
        return [e for e in root.iter(SVG + shape) if e.get("class") == name]

    def test_bars(self):
        root = self.draw("bars", SAMPLE)
        rows = [r for r in results.load(SAMPLE)["rows"] if r["tokens"] == 32768 and r.get("times")]
        bars = [b for b in self.series(root, "rect", "f-magi") if b.find(SVG + "title") is not None]
        self.assertEqual(len(bars), len(rows))
        cudnn = [b for b in self.series(root, "rect", "f-cudnn") if b.find(SVG + "title") is not None]
        self.assertEqual(len(cudnn), 2)
        # Heights are in proportion to the fractions, masks in the order of the grid.
        fractions = [r["times"]["magi"]["call"]["fraction"] for r in rows]
        heights = [float(b.get("height")) for b in bars]
        for fraction, height in zip(fractions, heights):
            self.assertAlmostEqual(height / fraction, heights[0] / fractions[0], delta=0.3)
        self.inside(root)

    def test_lines(self):
        root = self.draw("lines", SAMPLE, "--time", "kernel")
        rows = [r for r in results.load(SAMPLE)["rows"] if r.get("times")]
        self.assertEqual(len(self.series(root, "circle", "f-magi")), len(rows))
        self.assertEqual(len(self.series(root, "polyline", "l-magi")), len({r["mask"] for r in rows}))
        self.inside(root)

    def inside(self, root):
        """Nothing lies outside the drawing."""
        width, height = float(root.get("width")), float(root.get("height"))
        for element in root.iter():
            for name, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width), ("y", height), ("y1", height), ("cy", height)):
                if element.get(name) is not None:
                    self.assertTrue(0 <= float(element.get(name)) <= limit, ET.tostring(element))

    def test_the_last_file_counts(self):
        later = copy.deepcopy(results.load(SAMPLE))
        later["rows"] = [r for r in later["rows"] if r["mask"] == "full" and r["tokens"] == 32768]
        later["rows"][0]["times"]["magi"]["call"]["fraction"] = 0.5
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "later.json")
            results.save(path, later)
            tips = [t.text for t in self.draw("bars", SAMPLE, path).iter(SVG + "title")]
        self.assertEqual(sum("libmagi_attn, full" in t and "0.500 of the matmul" in t for t in tips), 1)

    def test_other_files_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "other.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"schema": 99}, file)
            with self.assertRaisesRegex(ValueError, "schema"):
                results.load(path)
        with self.assertRaisesRegex(SystemExit, "no timed rows"):
            self.draw("bars", SAMPLE, "--heads", "3:1")

    def test_the_command_names_no_place(self):
        words = ["--tokens", "1024", "--out", "/a/b.json", "--library=/c.so", "--check"]
        soak = os.path.join(results.ROOT, "tests", "gpu", "ranks", "soak.py")
        launched = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4"}
        for program, variables, want in (
            (os.path.join(results.ROOT, "bench", "attention.py"), {}, "python3 bench/attention.py"),
            (soak, launched, "torchrun --nproc-per-node 4 tests/gpu/ranks/soak.py"),
            ("/somewhere/attention.py", {}, "python3 attention.py"),
        ):
            with unittest.mock.patch.object(sys, "argv", [program, *words]), unittest.mock.patch.dict(os.environ, variables):
                self.assertEqual(results.command(), f"{want} --tokens 1024 --check")

    def test_the_table(self):
        lines = results.table(results.load(SAMPLE))
        timed = [r for r in results.load(SAMPLE)["rows"] if r.get("times")]
        self.assertEqual(len(lines), 1 + len(results.load(SAMPLE)["rows"]))
        self.assertIn(f"{timed[0]['times']['magi']['call']['fraction']:.3f}", lines[1])
        self.assertIn("refused", lines[-1])
        self.assertEqual({len(line) for line in lines[: 1 + len(timed)]}, {len(lines[0])})


if __name__ == "__main__":
    if "--library" in sys.argv:
        at = sys.argv.index("--library")
        test_library.PATH = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    unittest.main()
