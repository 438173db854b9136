#!/usr/bin/env python3
"""Tests of bench/hopper without a GPU and without PyTorch: problems, ratios, the run itself on invented figures, plots.

python3 harness_test.py SOURCE_FOLDER
"""

import contextlib
import io
import itertools
import json
import math
import pathlib
import sys
import tempfile
import unittest
import unittest.mock
import xml.etree.ElementTree

TOP = pathlib.Path(sys.argv.pop()).resolve()
sys.path.insert(0, str(TOP / "bench/hopper"))
sys.dont_write_bytecode = True

import plot  # noqa: E402
import problem  # noqa: E402
import report  # noqa: E402
import rivals  # noqa: E402
import sections  # noqa: E402


class Problems(unittest.TestCase):
    def visible(self, p):
        """Counted one by one."""
        return sum(
            (j <= i or not p.causal) and (p.window is None or i - p.window < j <= i)
            for length in p.seqlens
            for i, j in itertools.product(range(length), repeat=2)
        )

    def test_visible_pairs_are_those_of_the_mask(self):
        for lengths in ((1,), (7,), (5, 9, 2)):
            for causal, window in ((False, None), (True, None), (True, 1), (True, 3), (True, 20)):
                p = problem.Problem("bf16", 64, causal, lengths, 2, 1, window)
                self.assertEqual(p.visible_pairs, self.visible(p), p)

    def test_flops_are_those_of_the_papers(self):
        full, causal = (problem.Problem("bf16", 128, c, (1024,) * 16, 16, 16) for c in (False, True))
        self.assertEqual(full.flops, 4 * 1024**2 * 128 * 16 * 16)
        self.assertEqual(causal.flops, full.flops / 2)

    def test_every_cell_has_16k_tokens_and_hidden_size_2048(self):
        cells = list(problem.grid(("bf16", "fp16"), (64, 128, 256)))
        self.assertEqual(len(cells), 72)
        for cell in cells:
            self.assertEqual((cell.tokens, cell.heads * cell.head_dim, cell.heads_kv), (16384, 2048, cell.heads))
        for cell in problem.grid(("bf16",), (64, 128, 256), group=8):
            self.assertEqual(cell.heads, 8 * cell.heads_kv)

    def test_zipf_lengths_add_up_and_fall_as_one_over_rank(self):
        for count, total in ((1, 16384), (4, 16384), (32, 16384), (4, 256)):
            lengths = sorted(problem.zipf_lengths(count, total), reverse=True)
            self.assertEqual((len(lengths), sum(lengths)), (count, total))
            for rank, length in enumerate(lengths[1:], 2):
                self.assertAlmostEqual(length * rank / lengths[0], 1, delta=0.1)


def cell(rates, seqlen=512, causal=False):
    return {"dtype": "bf16", "head_dim": 64, "causal": causal, "seqlen": seqlen, "flushed": rates}


class Report(unittest.TestCase):
    def test_the_ratio_is_to_the_best_rival(self):
        self.assertEqual(report.ratio({"flash3": 600, "flash3:old": 900, "fa3": 500, "cudnn": 400}), 1.2)
        self.assertIsNone(report.ratio({"flash3": 600, "flash3:old": 900}))
        self.assertIsNone(report.ratio({"fa3": 600}))

    def test_the_summary_names_what_falls_short(self):
        cells = [cell({"flash3": 200, "fa3": 100}), cell({"flash3": 50, "fa3": 100}, 1024), cell({"flash3": 1}, 2048)]
        found = report.summary(cells)
        self.assertEqual(found["cells"], 2)
        self.assertAlmostEqual(found["geometric_mean"], 1)
        self.assertEqual(found["least_cell"], "bf16 d64 full 1k")
        self.assertEqual(found["below_1"], {"bf16 d64 full 1k": 0.5})
        self.assertIsNone(report.summary([cell({"flash3": 1})]))

    def test_the_table_shows_every_rate_or_a_dash(self):
        rows = report.table([cell({"fa3": 100, "flash3": 200}), cell({"flash3": 50}, 1024)]).splitlines()
        self.assertEqual(rows[0], "| TFLOP/s, flash3 / fa3 | 512 | 1k |")
        self.assertEqual(rows[2], "| bf16, head_dim 64, full | 200 / 100 | 50 / – |")

    def test_cublas_is_compared_with_the_longest_full_cells(self):
        cells = [cell({"flash3": 300}), cell({"flash3": 600}, 1024), cell({"flash3": 900}, 2048, causal=True)]
        self.assertEqual(report.against_cublas(cells, {"flushed": 800}), {"bf16 d64": 0.75})

    def test_results_from_before_sections_can_be_read(self):
        result = report.load(TOP / "bench/results/2026-11-24-h200-forward.json")
        self.assertAlmostEqual(report.summary(result["sections"]["grid"])["geometric_mean"], 1.16, places=2)


class Run(unittest.TestCase):
    """The harness from its arguments to its files, on invented figures."""

    def run_rivals(self, *arguments):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as out:
            path = pathlib.Path(folder) / "result.json"
            status = rivals.main(["--dry-run", "--json", str(path), "--commit", "abc", *arguments])
            result = json.loads(path.read_text(encoding="utf-8"))
        self.assertEqual(status, 0)
        self.assertTrue(result["invented"])
        return result, out.getvalue()

    def test_all_sections_end_in_one_file(self):
        names = ",".join(sections.SECTIONS)
        result, _ = self.run_rivals("--sections", names, "--dtypes", "bf16,fp16")
        self.assertEqual(list(result["sections"]), list(sections.SECTIONS))
        self.assertEqual(result["commit"], "abc")
        self.assertEqual([len(result["sections"][n]) for n in ("grid", "gqa", "varlen", "window")], [72, 72, 48, 6])
        self.assertEqual(len(result["sections"]["accuracy"]), 36)
        self.assertIn("1M_over_16k", result["sections"]["long"])
        for part in result["sections"]["window"]:
            self.assertTrue(math.isclose(part["time_over_pairs_at_full_rate"]["flash3"], 1.1, rel_tol=0.1))
        for part in result["sections"]["accuracy"]:
            self.assertEqual(part["ratio_to_fa3"]["fa3"], 1)

    def test_builds_stand_beside_each_other(self):
        result, _ = self.run_rivals("--library", "a.so", "--library", "old=b.so", "--dims", "64", "--seqlens", "512")
        self.assertEqual(list(result["sections"]["grid"][0]["flushed"])[:2], ["flash3", "flash3:old"])

    def test_a_budget_ends_the_run_and_keeps_what_there_is(self):
        result, out = self.run_rivals("--budget", "0")
        self.assertEqual(result["cut_short"], ["grid"])
        self.assertEqual(result["sections"], {"grid": []})
        self.assertIn("cut short", out)

    def test_a_failed_section_is_told_and_the_others_go_on(self):
        def fail(*_):
            raise ValueError("no")

        with unittest.mock.patch.dict(sections.SECTIONS, {"host": (fail, dict)}):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                path = pathlib.Path(folder) / "result.json"
                with contextlib.redirect_stderr(io.StringIO()):
                    status = rivals.main(["--dry-run", "--sections", "host,window", "--json", str(path)])
                result = json.loads(path.read_text(encoding="utf-8"))
        self.assertEqual((status, result["failed"]), (1, {"host": "ValueError: no"}))
        self.assertEqual(len(result["sections"]["window"]), 3)

    def test_arguments_are_checked(self):
        for wrong in (["--sections", "grids"], ["--dims", "96"], ["--rivals", "fa5"], ["--dtypes", "fp32"], []):
            given = ["--dry-run", *wrong] if wrong else []
            with self.assertRaises(SystemExit) as caught, contextlib.redirect_stderr(io.StringIO()):
                rivals.main(given)
            self.assertEqual(caught.exception.code, 2)


class Plot(unittest.TestCase):
    def test_a_bar_for_each_rate_as_high_as_it_says(self):
        cells = [cell({"fa3": 100, "flash3": 200}, n, c) for n in (512, 1024) for c in (False, True)]
        svg = plot.to_svg(cells, "flushed", "A < B", "subtitle")
        root = xml.etree.ElementTree.fromstring(svg)
        space = "{http://www.w3.org/2000/svg}"
        bars = [bar for bar in root.iter(f"{space}rect") if bar.find(f"{space}title") is not None]
        self.assertEqual(len(bars), 8)
        heights = {float(bar.get("height")) for bar in bars}
        self.assertEqual(len(heights), 2)
        self.assertAlmostEqual(max(heights) / min(heights), 2, places=1)
        self.assertEqual(root.find(f"{space}title").text, "A < B")

    def test_a_file_for_each_data_type(self):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            plot.main([str(TOP / "bench/results/2026-11-24-h200-forward.json"), "--prefix", f"{folder}/forward"])
            self.assertEqual(
                sorted(p.name for p in pathlib.Path(folder).iterdir()), ["forward-bf16.svg", "forward-fp16.svg"]
            )

    def test_gridlines_are_round_and_few(self):
        for largest in (3, 47, 640, 821, 1300):
            self.assertIn(round(largest / plot.nice_step(largest)), range(4, 11))


if __name__ == "__main__":
    unittest.main()
