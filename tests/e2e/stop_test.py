"""Stopping on request: SIGUSR1 and SIGTERM save a checkpoint and exit 75, and the run goes on exactly."""

import os
import signal
import subprocess
import time
import unittest

from farspan_cli import ENVIRONMENT, Workspace, command, digest, metrics, train


class Stop(unittest.TestCase):
    def setUp(self):
        self.workspace = Workspace()

    def tearDown(self):
        self.workspace.close()

    def stop_and_resume(self, number, ranks, mpi):
        folder = self.workspace.run_folder("stopped")
        steps = "train.steps=120"
        words = command("train", self.workspace.config, f"output_dir={folder}", steps,
                        "checkpoint.every=0", "--quiet", ranks=ranks, mpi=mpi)
        process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        deadline = time.time() + 60
        while not ((folder / "metrics.jsonl").exists() and metrics(folder)):
            self.assertLess(time.time(), deadline, "no step within a minute")
            self.assertIsNone(process.poll(), "ended too early")
            time.sleep(0.02)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 75, output)
        stopped_at = metrics(folder)[-1]["step"]
        self.assertLess(stopped_at, 120)
        train(self.workspace, "stopped", steps, "checkpoint.every=0", ranks=ranks, mpi=mpi)
        train(self.workspace, "unbroken", steps, "checkpoint.every=0", ranks=ranks, mpi=mpi)
        self.assertEqual(digest(folder), digest(self.workspace.run_folder("unbroken")))
        self.assertEqual([r["step"] for r in metrics(folder)], list(range(1, 121)))

    def test_sigusr1_threads(self):
        self.stop_and_resume(signal.SIGUSR1, 2, mpi=False)

    def test_sigterm_one_rank(self):
        self.stop_and_resume(signal.SIGTERM, 1, mpi=False)

    def test_sigusr1_through_mpirun(self):
        self.stop_and_resume(signal.SIGUSR1, 2, mpi=True)


if __name__ == "__main__":
    unittest.main()
