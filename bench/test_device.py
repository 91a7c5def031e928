#!/usr/bin/env python3
"""Checks device.py without a GPU, by a program that stands in for bench_layer: python3 bench/test_device.py"""

import argparse
import json
import pathlib
import stat
import tempfile
import unittest

import device
import device_table
from peers import shapes

LAYER = """#!/usr/bin/env python3
import json, sys
tokens = sys.argv[sys.argv.index("--tokens") + 1].split(",")
for count in map(int, tokens):
    if count == 2048:
        sys.exit("out of memory")
    print(json.dumps({"impl": "moe", "T": count, "med_s": 2e-3, "flops": 1e12, "bytes": 3e9,
                      "stages": {"route": 0.1, "dispatch": 0.05, "combine": 0.05, "experts": 0.8}}), flush=True)
"""
LIMITS = """#!/usr/bin/env python3
print('{"device": "none", "bf16_tflops": 1000.0, "copy_gbs": 3000.0}')
"""


def row(**more):
    return {"impl": "moe", "T": 8, "med_s": 2e-3, "flops": 1e12, "bytes": 3e9, "stages": {"route": 0.1}} | more


class Table(unittest.TestCase):
    case = device.Case("mixtral-8x7b/decode", shapes.WHOLE["mixtral-8x7b"], "decode", (8, 64))
    limits = {"bf16_tflops": 1000.0, "copy_gbs": 3000.0}

    def test_shares_and_ratio(self):
        peers = [row(impl="slow", med_s=5e-3), row(impl="fast", med_s=3e-3), {"impl": "none", "T": 8, "failed": "x"}]
        rows = [row(), *peers]
        found = device_table.summary(rows, self.limits)
        self.assertAlmostEqual(found["of_peak"], 0.5)  # 1e12 operations in 2 ms are 500 TFLOP/s
        self.assertAlmostEqual(found["of_copy"], 0.5)  # 3e9 bytes are 1500 GB/s
        self.assertEqual(found["peer"], "fast")
        self.assertAlmostEqual(found["ratio"], 1.5)

    def test_many_tokens_have_no_share_of_copies(self):
        self.assertIsNone(device_table.summary([row(T=64)], self.limits)["of_copy"])

    def test_unknown_peak(self):
        self.assertIsNone(device_table.summary([row()], {})["of_peak"])

    def test_page_keeps_what_is_written_by_hand(self):
        with tempfile.TemporaryDirectory() as folder:
            page = pathlib.Path(folder) / "devices.md"
            block = "<!-- generated: device layers -->\nold\n<!-- end: device layers -->"
            page.write_text(f"# Devices\n\nBy hand.\n\n{block}\n\nEnd.\n")
            data = {"machine": {"device": "X"}, "limits": self.limits, "rows": {self.case.name: [row()]}}
            device_table.write(page, [self.case], data)
            text = page.read_text()
        self.assertIn("By hand.", text)
        self.assertIn("End.", text)
        self.assertNotIn("old", text)
        line = "| mixtral-8x7b | decode | 8 | 2.000 | 500.0 | 50.0% | 1500 | 50.0% | – | – | – | 10.0% |"
        self.assertIn(line, text)
        self.assertEqual(text.count("<!-- generated:"), 3)


class Run(unittest.TestCase):
    def test_goes_on_behind_failures_and_resumes(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for program, text in (("bench_layer", LAYER), ("bench_device_limits", LIMITS)):
                (folder / program).write_text(text)
                (folder / program).chmod(stat.S_IRWXU)
            options = argparse.Namespace(programs=folder, python=None, repeats=1)
            case = device.Case("mixtral-8x7b/forward", shapes.WHOLE["mixtral-8x7b"], "forward", (512, 2048, 8192))
            store = device.Store(folder / "d.json", {"device": "none"}, False)
            device.measure(device.plan([case], options, store), options, store)
            data = json.loads((folder / "d.json").read_text())
            self.assertEqual([each["T"] for each in data["rows"][case.name]], [512, 2048, 8192])
            self.assertEqual(data["rows"][case.name][1]["failed"], "out of memory")
            self.assertEqual(data["limits"], {"bf16_tflops": 1000.0, "copy_gbs": 3000.0})
            again = device.Store(folder / "d.json", {"device": "none"}, False)
            self.assertEqual(device.plan([case], options, again), [])
            other = device.Store(folder / "d.json", {"device": "another"}, False)
            self.assertEqual(len(device.plan([case], options, other)), 1)


if __name__ == "__main__":
    unittest.main()
