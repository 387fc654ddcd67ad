#!/usr/bin/env python3
"""farspan extend search as users run it: what it finds is what eval measures, on any ranks, after a kill; errors."""

import json
import shutil
import signal
import subprocess
import sys
import time
import unittest

from farspan_cli import ENVIRONMENT, Workspace, command, farspan, train

SMALL = {"--target-context": "384", "--population": "10", "--iterations": "4", "--mutations": "4",
         "--crossovers": "4", "--samples": "4"}


class Extend(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.run_folder = cls.workspace.run_folder("run")
        train(cls.workspace, "run")
        cls.text = cls.workspace.path / "long.h5"  # four samples of 384 tokens and what follows
        result = farspan("data", "synth", "--kind", "markov", "--out", cls.text, "--tokens", "1537",
                         "--length", "1537", "--quiet")
        assert result.returncode == 0, result.stderr

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    def words(self, name, *more):
        options = {"--model": self.run_folder, "--data": self.text, **SMALL}
        given = [word for option in options.items() if option[0] not in more for word in option]
        return ["extend", "search", "--out", self.workspace.path / name, *given, *more]

    def search(self, name, *more, expect=0, **ranks):
        result = farspan(*self.words(name, *more), **ranks)
        self.assertEqual(result.returncode, expect, result.stdout + result.stderr)
        return result

    def read(self, name):
        return (self.workspace.path / name).read_text()

    def test_what_is_found_is_what_eval_measures(self):
        report = json.loads(self.search("found.yaml", "--json", "--quiet").stdout)
        results = {row["name"]: row for row in report["results"]}
        self.assertEqual(list(results), ["PI", "NTK", "YaRN", "found"])
        self.assertLessEqual(results["found"]["nll"], min(row["nll"] for row in report["results"]))
        self.assertEqual(report["best_nll_by_iteration"][-1], results["found"]["nll"])
        yaml = self.read("found.yaml")
        scaling = yaml[yaml.index("scaling: ") + 9:].strip()
        self.assertEqual(report["override"], "model.rope.scaling=" + scaling)
        given = f"original_context: {report['original_context']}, target_context: 384}}"
        for name, override in (("found", report["override"]),
                               ("PI", "model.rope.scaling={type: linear, " + given),
                               ("NTK", "model.rope.scaling={type: ntk, " + given),
                               ("YaRN", "model.rope.scaling={type: yarn, " + given)):
            result = farspan("eval", "perplexity", "--model", self.run_folder, "--data", self.text,
                             "--lengths", "384", "--tokens", "1536", "--json", "--quiet", override)
            self.assertEqual(result.returncode, 0, result.stderr)
            cell = json.loads(result.stdout)["cells"][0]
            self.assertAlmostEqual(cell["nll"], results[name]["nll"], delta=1e-6, msg=name)
        joined = self.search("joined.yaml", "--documents", "joined", "--iterations", "1", "--json")
        self.assertEqual(json.loads(joined.stdout)["documents"], "joined")
        config = farspan("config", self.workspace.config, report["override"])
        self.assertEqual(config.returncode, 0, config.stderr)
        self.assertIn("longrope", config.stdout)
        train(self.workspace, "longer", report["override"], f"model.from={self.run_folder}",
              "train.sequence_length=384", "train.steps=2")

    def test_the_same_on_any_ranks_and_after_a_kill(self):
        self.search("one.yaml")
        whole = self.read("one.progress.jsonl")
        for name, ranks in (("threads", {"ranks": 2}), ("mpi", {"ranks": 3, "mpi": True})):
            self.search(f"{name}.yaml", **ranks)
            self.assertEqual(self.read(f"{name}.yaml"), self.read("one.yaml"))
            self.assertEqual(self.read(f"{name}.progress.jsonl"), whole)
        progress = self.workspace.path / "killed.progress.jsonl"
        with subprocess.Popen(command(*self.words("killed.yaml"), ranks=2), env=ENVIRONMENT,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.time() + 120
            while time.time() < deadline and process.poll() is None:
                if progress.exists() and progress.read_text().count("\n") >= 6:
                    break
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        self.assertFalse((self.workspace.path / "killed.yaml").exists(), "killed too late")
        self.assertIn("goes on after", self.search("killed.yaml").stderr)
        self.assertEqual(self.read("killed.yaml"), self.read("one.yaml"))
        self.assertEqual(self.read("killed.progress.jsonl"), whole)
        self.search("one.yaml", "--iterations", "5")  # a search that was done goes on
        self.assertTrue(self.read("one.progress.jsonl").startswith(whole))

    def test_scores_are_of_the_same_weights(self):
        words = ("--model", self.workspace.run_folder("again"), "--iterations", "1")
        train(self.workspace, "again", "train.steps=1")
        report = json.loads(self.search("again.yaml", *words, "--json").stdout)
        self.assertIn("goes on after", self.search("again.yaml", *words).stderr)
        shutil.rmtree(self.workspace.run_folder("again"))
        train(self.workspace, "again", "train.steps=1", "seed=8")
        error = self.search("again.yaml", *words, expect=2).stderr
        self.assertIn(f"differs in checkpoint (there \"{report['checkpoint']}\"", error)

    def test_scores_are_of_the_same_samples(self):
        train(self.workspace, "joined", "train.steps=1", "data.documents=joined",
              "positions.reset_per_document=true")
        documents = self.workspace.path / "short.h5"  # windows that cross borders are others
        result = farspan("data", "synth", "--kind", "markov", "--out", documents, "--tokens",
                         "2000", "--length", "400", "--quiet")
        self.assertEqual(result.returncode, 0, result.stderr)
        words = ("--model", self.workspace.run_folder("joined"), "--data", documents,
                 "--iterations", "1")
        self.search("samples.yaml", *words)
        error = self.search("samples.yaml", *words, "--documents", "joined", expect=2).stderr
        self.assertIn("differs in reset_per_document (there true, here false)", error)

    def test_what_cannot_be(self):
        self.search("first.yaml", "--quiet")
        for words, code, text in (
                (["--target-context", "192"], 2, "not above the original context 192"),
                (["--target-context", "4k"], 3, "no document has 4096 tokens: the longest has 1537"),
                (["--tokens", "385"], 2, "--tokens"), (["--attention", "dca"], 2, "--attention"),
                (["--seed", "2"], 2, "differs in seed"), (["--population", "2"], 2, "--population"),
                (["model.rope.scaling={type: linear, factor: 2}"], 2,
                 "an override scales rotations by linear"),
                (["optimizer.lr=1"], 2, "training only")):
            self.assertIn(text, self.search("first.yaml", *words, expect=code).stderr)
        self.assertIn("--out", self.search("first.json", expect=2).stderr)
        for folder in ("folder.yaml", "taken.progress.jsonl"):
            (self.workspace.path / folder).mkdir()
        for out, text in (("absent/first.yaml", "there is no folder"),
                          ("folder.yaml", "folder.yaml is a folder"),
                          ("taken.yaml", "taken.progress.jsonl is a folder")):
            error = self.search(out, "--model", "absent", expect=2).stderr  # before any work
            self.assertIn("--out", error)
            self.assertIn(text, error)
        train(self.workspace, "scaled", "model.rope.scaling={type: ntk, factor: 2}", "train.steps=1")
        for overrides in ((), ("model.rope.scaling={type: linear, factor: 2}",)):
            error = self.search("scaled.yaml", "--model", self.workspace.run_folder("scaled"),
                                *overrides, expect=2).stderr
            self.assertIn("the weights were trained with rotary scaling ntk", error)
        train(self.workspace, "alibi", "model.position=alibi", "train.steps=1")
        result = farspan("extend", "search", "--model", self.workspace.run_folder("alibi"), "--out",
                         self.workspace.path / "a.yaml", "--target-context", "384")
        self.assertEqual(result.returncode, 2)
        self.assertIn("model.position is alibi", result.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
