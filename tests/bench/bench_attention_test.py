"""bench_attention at sizes that take milliseconds: every part runs, its figures fit together, and
what cannot be is refused with exit code 2 and a way out.

    bench_attention_test.py BENCH_ATTENTION
"""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = sys.argv.pop(1)


def call(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120)


def rows(*arguments):
    result = call(*arguments, "--json")
    if result.returncode != 0:
        raise AssertionError(f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}")
    return [json.loads(line) for line in result.stdout.splitlines()]


class Masks(unittest.TestCase):
    def test_all_masks_with_their_pairs(self):
        n = 1024
        found = {r["mask"]: r for r in rows("--tokens", n, "--repeat", 1, "--window", 32, "--sinks", 4,
                                            "--doc-lengths", "equal:64", "--q-heads", 4,
                                            "--kv-heads", 2, "--head-dim", 16)}
        causal = n * (n + 1) // 2
        window = 32 * 33 // 2 + (n - 32) * 32
        sinks = sum(min(4, i - 31) for i in range(32, n))
        expected = {"full": n * n, "causal": causal, "window": window, "sinks": window + sinks,
                    "packed": 16 * 64 * 65 // 2, "alibi": causal, "xpos": causal}
        for mask, pairs in expected.items():
            self.assertEqual(found[mask]["visible_pairs"], pairs, mask)
        for mask in ("dilated", "bigbird", "s2"):
            self.assertLess(found[mask]["visible_pairs"], causal, mask)
            self.assertGreater(found[mask]["visible_pairs"], n, mask)
        for row in found.values():
            for key in ("forward_seconds", "backward_gflops", "matmul_gflops"):
                self.assertGreater(row[key], 0, row["mask"])

    def test_lengths_make_rows(self):
        found = rows("--mask", "causal", "--tokens", "32,64", "--repeat", 1)
        self.assertEqual([r["tokens"] for r in found], [32, 64])


class Emulated(unittest.TestCase):
    ARGUMENTS = ("--ranks", 8, "--tokens", 1024, "--repeat", 1, "--head-dim", 16)

    def test_every_layout_computes_every_pair(self):
        found = rows(*self.ARGUMENTS, "--layout", "zigzag,contiguous,striped,balanced",
                     "--doc-lengths", "uniform:10:200")
        self.assertEqual([r["documents"] for r in found], ["causal"] * 4 + ["uniform:10:200"] * 4)
        for row in found:
            self.assertTrue(row["emulated"])
            self.assertGreaterEqual(row["area_max_over_mean"], 1)
            # One rank cannot be slower than the mean of all.
            self.assertLessEqual(row["efficiency"], row["work_efficiency"] * (1 + 1e-9))
        self.assertEqual(len({r["visible_pairs"] for r in found[:4]}), 1)
        self.assertEqual(found[0]["lost_against_causal"], 0)
        self.assertGreater(found[1]["area_max_over_mean"], 1.8)  # causal, contiguous

    def test_whole_strategies(self):
        for strategy in ("ring", "allgather"):
            found = rows(*self.ARGUMENTS, "--layout", "zigzag", "--doc-lengths", "one", "--whole",
                         "--strategy", strategy)
            self.assertGreater(found[0]["efficiency"], 0, strategy)

    def test_lengths_from_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lengths.txt"
            path.write_text("# lengths\n100\n\n28\n")
            found = rows(*self.ARGUMENTS, "--layout", "zigzag", "--doc-lengths", path)
            self.assertEqual(found[-1]["visible_pairs"], 8 * (100 * 101 + 28 * 29) / 2)
            path.write_text("100\nmany\n")
            result = call("--ranks", 2, "--doc-lengths", path)
            self.assertEqual(result.returncode, 2)
            self.assertIn("lengths.txt:2", result.stderr)


class Overlap(unittest.TestCase):
    def test_strategies_on_threads(self):
        for strategy, more in (("ring", ()), ("allgather", ()), ("ulysses", ("--ulysses", 2))):
            found = rows("--overlap", "--tokens", 64, "--repeat", 1, "--strategy", strategy, *more)
            self.assertEqual(found[0]["transport"], "thread")
            self.assertGreater(found[0]["bytes_sent"], 0, strategy)
            self.assertGreater(found[0]["compute_seconds"], 0, strategy)


class Errors(unittest.TestCase):
    def test_refused_with_a_way_out(self):
        for arguments, word in ((["--mask", "waves"], "causal"),
                                (["--ranks", "0"], "range"),
                                (["--ranks", "4", "--doc-lengths", "/no/such"], "lognormal"),
                                (["--ranks", "4", "--doc-lengths", "normal:3"], "lognormal"),
                                (["--ranks", "4", "--threads", "2"], "--overlap"),
                                (["--q-heads", "3", "--kv-heads", "2"], "divides"),
                                (["--overlap", "--strategy", "ulysses"], "--ulysses 2"),
                                (["--mpi"], "--overlap"),
                                (["--nonsense"], "help")):
            result = call(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn(word, result.stdout + result.stderr, arguments)

    def test_help(self):
        result = call("--help")
        self.assertEqual(result.returncode, 0)
        self.assertIn("--doc-lengths", result.stdout)


if __name__ == "__main__":
    unittest.main()
