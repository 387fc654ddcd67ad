"""scripts/gpu_check.sh on a machine that seems to have a GPU: stand-ins for nvidia-smi, mpirun, PyTorch and
Farspan's programs, some of which fail or hang. The report must say so, first, and hold what the others gave."""

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NVIDIA_SMI = """#!/bin/bash
case "$*" in
  *list-gpus*) echo "GPU 0: NVIDIA H200 (UUID: GPU-1)" ;;
  *memory.used*) [ -e "$STATE/training" ] && echo 20992 || echo 512 ;;
  *) echo "NVIDIA H200, 580.1, 143771 MiB, 1980 MHz, 3201 MHz, 700.00 W" ;;
esac
"""
MPIRUN = """#!/bin/bash
while [ "$1" != -np ]; do shift; done
ranks=$2; shift 2
OMPI_COMM_WORLD_SIZE=$ranks OMPI_COMM_WORLD_RANK=0 exec "$@"
"""
# GoogleTest's words.
TESTS = """#!/bin/bash
cat <<'TEXT'
[==========] Running 3 tests from 1 test suite.
[  PASSED  ] {passed} tests.
{more}
TEXT
exit {code}
"""
FARSPAN = """#!/usr/bin/env python3
import json, os, sys, time
from pathlib import Path
a = sys.argv[1:]
if a == ["--version"]:
    print("farspan 0.1.0 (git abc1234)"); sys.exit()
if a[:2] == ["data", "synth"]:
    Path(a[a.index("--out") + 1]).write_text("store"); sys.exit()
if "--dry-run" in a:
    print("rank 0: 20.00 GiB of memory for 1235.81M parameters, 8192 tokens per micro-batch"); sys.exit()
option = dict(x.split("=", 1) for x in a if "=" in x)
if "train.sequence_length" in option and option["train.sequence_length"] == os.environ.get("FAIL_AT"):
    print("error: arena 'scratch' cannot hold it", file=sys.stderr); sys.exit(4)
out = Path(option["output_dir"]); out.mkdir(parents=True)
(Path(os.environ["STATE"]) / "training").touch()
steps = int(option["train.steps"])
print("transport: " + ("NCCL 2.28.9: each rank has a GPU of its own" if "NCCL_HOSTID" in os.environ else "mpi"))
worse = 0.5 if option["device"] == "cuda" and os.environ.get("APART") else 0.0
with open(out / "metrics.jsonl", "w") as f:
    for i in range(steps):
        row = dict(kind="train", step=i + 1, loss=5.0 - 0.01 * i + worse, seconds=0.5, tokens_per_second=65536.0,
                   tflops_per_rank=480.0)
        f.write(json.dumps(row) + "\\n"); f.flush()
        if steps > 1000:
            time.sleep(0.15)
(Path(os.environ["STATE"]) / "training").unlink(missing_ok=True)
"""
BENCH_KERNELS = """#!/bin/bash
echo 'a note before'
echo '{"context": {"copy": "4290 GB/s"}, "benchmarks": [
 {"name": "copy/f32", "real_time": 12.5, "time_unit": "us", "GB/s": 3900.0},
 {"name": "matmul/bf16", "real_time": 100.0, "time_unit": "us", "GFLOP/s": 700000.0}]}'
"""
BENCH_ATTENTION = """#!/bin/bash
echo '{"mask": "causal", "tokens": 8192, "forward_tflops": 331.0}'
"""
TORCH = """
import sys, types
__version__ = "2.11.0"
class version: cuda = "13.0"
class backends:
    class cudnn:
        @staticmethod
        def version(): return 91900
"""


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.tree, self.bin = self.folder / "tree", self.folder / "bin"
        shutil.copytree(ROOT / "scripts" / "gpu_check", self.tree / "scripts" / "gpu_check")
        shutil.copy(ROOT / "scripts" / "gpu_check.sh", self.tree / "scripts")
        # Prints what torch_peaks.py would: PyTorch's own calls are its business.
        (self.tree / "scripts/gpu_check/torch_peaks.py").write_text(
            'print(\'{"copy_gbs": 4300.0, "gemm_tflops": 788.0, "n": 8192}\')\n')
        (self.folder / "torch").mkdir()
        (self.folder / "torch" / "__init__.py").write_text(TORCH)
        build = self.tree / "build" / "cuda"
        for path, text in {
                self.bin / "nvidia-smi": NVIDIA_SMI, self.bin / "mpirun": MPIRUN,
                build / "farspan": FARSPAN, build / "bench_kernels": BENCH_KERNELS,
                build / "bench_attention": BENCH_ATTENTION,
                build / "test_good": TESTS.format(passed=3, more="", code=0),
                build / "test_bad": TESTS.format(passed=2, code=1,
                                                 more="[  FAILED  ] 1 test, listed below:\n[  FAILED  ] A.B/3, where"),
                build / "test_skipped": TESTS.format(passed=0, code=0, more="no GPU on this machine: none"),
                build / "comm_nccl_test": TESTS.format(passed=5, more="", code=0)}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.tests = build / "gpu_tests.txt"
        self.tests.write_text("# comment\ntest_good :A.*:B.*\ncomm_nccl_test 1 2\n")

    def tearDown(self):
        self.temporary.cleanup()

    def check(self, *arguments, code=0, **environment):
        out = self.folder / "out"
        done = subprocess.run(
            [str(self.tree / "scripts/gpu_check.sh"), "--out", str(out), "--quick", *arguments], text=True,
            capture_output=True, timeout=100,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "STATE": str(self.folder),
                 "PYTHONPATH": str(self.folder), **environment})
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return (out / "report.md").read_text() if (out / "report.md").exists() else done.stderr

    def test_all_is_well(self):
        report = self.check()
        self.assertIn("# GPU check: NVIDIA H200", report)
        self.assertIn("* driver: 580.1", report)
        self.assertIn("* Farspan: farspan 0.1.0 (git abc1234)", report)
        self.assertIn("* PyTorch: 2.11.0 CUDA 13.0 cuDNN 91900", report)
        self.assertRegex(report, r"## What failed\n\nNothing\.")
        self.assertIn("| test_good | 3 | 0 | 0 |", report)
        self.assertIn("91% of the copy", report)
        self.assertIn("Farspan itself: copies at 4290 GB/s.", report)
        self.assertIn("89% of the product", report)
        # 480 of 989 and of 788 TFLOP/s; 20480 MiB in use against 20 GiB predicted.
        self.assertRegex(report, r"1\.2 B, 8k tokens.*\| 480\.0 \| 48\.5% \| 60\.9% \| 20\.00 GiB \| 20\.00 GiB \| \+0\.0%")
        self.assertIn("comm_nccl_test, 2 ranks", report)
        self.assertRegex(report, r"2 ranks, NCCL .*\| NCCL 2\.28\.9: each rank")
        self.assertIn("Largest difference of any step: 0.0000 nats", report)
        self.assertIn("Largest relative difference of the losses from one rank's: 0.0e+00", report)
        self.assertIn("| 2 ranks, through host memory |", report)
        self.assertFalse((self.folder / "out" / "work").exists(), "stores and run folders are removed")

    def test_failures_come_first_and_stop_nothing(self):
        self.tests.write_text("test_bad\ntest_skipped\ntest_absent\ntest_good\n")
        (self.tree / "build/cuda/bench_kernels").write_text("#!/bin/bash\necho 'error: no kernel image'; exit 1\n")
        report = self.check("--sections", "tests,peaks,train,loss", code=1, FAIL_AT="32k", APART="1")
        failed = report[report.index("## What failed"):report.index("| section |")]
        self.assertIn("test_bad: A.B/3", failed)
        self.assertIn("test_skipped: no test ran: no GPU on this machine", failed)
        self.assertIn("test_absent is not built", failed)
        self.assertIn("exit code 1: error: no kernel image", failed)
        self.assertIn("exit code 4: error: arena 'scratch' cannot hold it", failed)
        self.assertIn("the loss curves part: 0.5000 nats", failed)
        self.assertIn("| test_good | 3 | 0 | 0 |", report)
        self.assertIn("1.2 B, 8k tokens", report)

    def test_a_program_that_hangs_is_ended(self):
        (self.tree / "build/cuda/bench_attention").write_text("#!/bin/bash\nsleep 1000\n")
        main = self.tree / "scripts/gpu_check/main.py"
        main.write_text(main.read_text().replace('PyTorch\'s SDPA", 90', 'PyTorch\'s SDPA", 2'))
        report = self.check("--sections", "attention,nccl", code=1)
        self.assertRegex(report, r"\*\*attention\*\*: `.*bench_attention.*`: stopped after 2 s")
        self.assertIn("comm_nccl_test, 1 ranks", report)

    def test_no_gpu(self):
        (self.bin / "nvidia-smi").write_text("#!/bin/bash\nexit 9\n")
        self.assertIn("no GPU here", self.check(code=2))


if __name__ == "__main__":
    unittest.main()
