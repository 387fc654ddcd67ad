"""What lies in a run's folder is kept, and what a dry run says of a run is what the run does."""

import fcntl
import json
import os
import re
import subprocess
import unittest

from farspan_cli import (ENVIRONMENT, MPIRUN, PROGRAM, Workspace, command, digest, farspan, metrics,
                         train)

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def names(folder):
    return sorted(p.name for p in (folder / "checkpoints").glob("step_*"))


class RunFolder(unittest.TestCase):
    def setUp(self):
        self.workspace = Workspace()
        self.folder = self.workspace.run_folder("run")

    def tearDown(self):
        self.workspace.close()

    def test_checkpoints_of_a_run_that_goes_on_are_not_set_aside(self):
        train(self.workspace, "run", "train.steps=6")
        before, weights = names(self.folder), digest(self.folder)
        descriptor = os.open(self.folder / "checkpoints", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # as a run that is training does
            for resume in ("never", str(self.folder / "checkpoints" / before[0])):
                result = farspan("train", self.workspace.config, f"output_dir={self.folder}",
                                 "--resume", resume, "--quiet")
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertIn("another run is saving", result.stderr)
                self.assertEqual(names(self.folder), before)
        finally:
            os.close(descriptor)
        self.assertEqual(digest(self.folder), weights)
        self.assertEqual(len(metrics(self.folder)), 6)
        train(self.workspace, "run", "train.steps=3", "--resume", "never")
        self.assertEqual([n for n in names(self.folder) if "superseded" not in n], ["step_00000003"])

    def test_a_run_starts_with_the_weights_of_another(self):
        train(self.workspace, "run", "train.steps=3")
        weights = digest(self.folder).split(" optimizer ")[0]
        still = [f"model.from={self.folder}", "optimizer.lr=0", "train.steps=2", "train.batch_tokens=384"]
        for ranks in (1, 2):
            train(self.workspace, f"next{ranks}", *still, ranks=ranks)
            after = self.workspace.run_folder(f"next{ranks}")
            self.assertEqual(digest(after).split(" optimizer ")[0], weights)
            self.assertEqual([row["step"] for row in metrics(after)], [1, 2])
        moved = self.workspace.run_folder("moved")
        train(self.workspace, "moved", f"model.from={self.folder}", "train.steps=2")
        first = metrics(moved)[0]["loss"]
        anew = self.workspace.run_folder("anew")
        train(self.workspace, "anew", "train.steps=2")
        self.assertLess(first, metrics(anew)[0]["loss"])
        self.assertIn("step_00000003", (moved / "config.resolved.yaml").read_text())
        # The rest of a run starts from its own checkpoint, whatever became of the other.
        self.folder.rename(self.workspace.run_folder("elsewhere"))
        train(self.workspace, "moved", f"model.from={self.folder}", "train.steps=3")
        self.assertEqual(len(metrics(moved)), 3)
        self.assertNotIn("model.from is read", (moved / "run.log").read_text())
        # What it began with stays said, and another origin is not read.
        other = f"model.from={anew}"
        train(self.workspace, "moved", other, "train.steps=4")
        self.assertIn(f"model.from is read before the first step only: {anew} is not read",
                      (moved / "run.log").read_text())
        self.assertIn(f"from: {self.folder}", (moved / "config.resolved.yaml").read_text())
        train(self.workspace, "anew", other, "train.steps=3")
        self.assertIn("began with new weights", (anew / "run.log").read_text())

    def test_weights_that_a_run_cannot_start_with(self):
        train(self.workspace, "run", "train.steps=3")
        for path, overrides, code, words in [
                (self.folder / "none", [], 2, "there is no such run"),
                (self.workspace.path, [], 2, "holds no run"),
                (self.folder, ["model.hidden_size=64", "model.head_dim=8"], 2,
                 "model.hidden_size: 32 there, 64 here"),
                (self.folder, ["model.vocab_size=300"], 2, "model.vocab_size: 260 there, 300 here"),
                (self.folder, ["model.intermediate_size=96"], 2, "model.intermediate_size: 64 there"),
                (self.folder, ["model.num_hidden_layers=1"], 2, "model.num_hidden_layers: 2 there"),
                (self.folder, ["model.num_attention_heads=8", "model.num_key_value_heads=4",
                               "model.head_dim=4"], 2, "model.head_dim: 8 there")]:
            result = farspan("train", self.workspace.config, f"model.from={path}", *overrides,
                             f"output_dir={self.workspace.run_folder('refused')}", "--quiet")
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertIn(words, result.stderr)

    def test_damage_to_all_checkpoints_does_not_start_the_run_anew(self):
        train(self.workspace, "run", "train.steps=6")
        for shard in (self.folder / "checkpoints").glob("*/*.h5"):
            data = bytearray(shard.read_bytes())
            data[len(data) // 2] ^= 1
            shard.write_bytes(data)
        before = names(self.folder)
        result = farspan("train", self.workspace.config, f"output_dir={self.folder}",
                         "train.steps=6", "--quiet", ranks=2)
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("--resume never", result.stderr)
        self.assertEqual(result.stderr.count("farspan: error"), 1, result.stderr)
        self.assertEqual(names(self.folder), before)
        self.assertEqual(len(metrics(self.folder)), 6)

    def test_summary_of_an_earlier_start_is_replaced(self):
        train(self.workspace, "run", "train.steps=3")
        early = (self.folder / "summary.json").read_bytes()
        train(self.workspace, "run", "train.steps=6")
        # As if the second start had been killed after its last checkpoint.
        (self.folder / "summary.json").write_bytes(early)
        train(self.workspace, "run", "train.steps=6")
        summary = json.loads((self.folder / "summary.json").read_text())
        self.assertEqual((summary["steps"], summary["status"]), (6, "finished"))

    def test_dry_run_predicts_each_arena(self):
        for every, recompute, arenas in ((0, "none", 7), (3, "offload", 8)):
            overrides = ("train.steps=3", f"evaluation.every={every}", "data.documents=joined",
                         f"train.recompute={recompute}", "model.num_hidden_layers=4")
            dry = farspan("train", self.workspace.config, "--dry-run", *overrides, ranks=3)
            self.assertIn("dry run of 3 ranks", dry.stdout)
            run = farspan("train", self.workspace.config, *overrides, "--profile",
                          f"output_dir={self.workspace.run_folder(str(every))}", ranks=3)
            self.assertEqual(run.returncode, 0, run.stderr)
            used = dict(re.findall(r"^  (\w+) +(\d+) bytes$", run.stderr, re.M))
            self.assertEqual(len(used), arenas, run.stderr)
            for arena, amount in used.items():
                value, unit = re.search(rf"^  {arena} +([\d.]+) (\w+)", dry.stdout, re.M).groups()
                self.assertAlmostEqual(float(value) * UNITS[unit] / int(amount), 1, delta=0.03,
                                       msg=f"{arena}\n{dry.stdout}\n{run.stderr}")

    def test_dry_run_under_mpirun_answers_once(self):
        words = [*MPIRUN, "-np", "2", PROGRAM, "train", str(self.workspace.config), "--dry-run"]
        result = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
                                check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout.count("dry run of 2 ranks"), 1, result.stdout)

    def test_closed_standard_streams(self):
        words = command("train", self.workspace.config, f"output_dir={self.folder}", "train.steps=3")
        result = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words],
                                env=ENVIRONMENT, timeout=60, check=False)
        self.assertEqual(result.returncode, 0)
        digest(self.folder)


if __name__ == "__main__":
    unittest.main()
