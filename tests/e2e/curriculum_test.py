"""Curricula: stages of other lengths, layouts and data give the same course on any number of ranks, and a
run that was killed or stopped in any of them goes on as if it had not been."""

import json
import random
import signal
import subprocess
import time
import unittest
from pathlib import Path

from farspan_cli import (ENVIRONMENT, PROGRAM, Workspace, command, digest, farspan, metrics, train)

REPOSITORY = Path(__file__).resolve().parents[2]

# What each stage changes: the layout of ranks, rotary base, mixture, sampler, window, learning rate.
STAGES = """[
  {sequence_length: 64, steps: 3, PARALLEL0},
  {sequence_length: 128, tokens: 3000, rope: {theta: 50000}, lr_factor: 0.5, PARALLEL1},
  {sequence_length: 192, steps: 3, train: [{path: STORE, weight: 3}, OTHER], PARALLEL2,
   positions: {sampler: pose, target_context: 1k}, sliding_window: 96},
  {sequence_length: 384, micro_batch: 1, PARALLEL3}]"""
STEPS = 14
BATCH = "train.batch_tokens=768"


def stages(workspace, *layouts):
    text = STAGES.replace("STORE", str(workspace.store)).replace("OTHER", str(workspace.other))
    for i in range(4):
        text = text.replace(f"PARALLEL{i}", f"parallel: {layouts[i % len(layouts)]}")
    return "curriculum={type: growlength, stages: " + " ".join(text.split()) + "}"


def stage_of(step):
    return (step > 3) + (step > 7) + (step > 10)


class Curriculum(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.workspace.other = cls.workspace.path / "other.h5"
        result = farspan("data", "synth", "--kind", "documents", "--out", cls.workspace.other,
                         "--tokens", "20k", "--seed", "9", "--quiet")
        assert result.returncode == 0, result.stderr
        config = cls.workspace.config
        config.write_text(config.read_text().replace("sequence_length: 192, ", "").replace(
            "micro_batch: 1, ", ""))
        cls.arguments = (BATCH, f"train.steps={STEPS}", "checkpoint.every=1",
                         "checkpoint.keep_last=20", "evaluation.every=2")
        cls.train("one", stages(cls.workspace, "{context: 1}"))
        cls.one = metrics(cls.workspace.run_folder("one"))

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    @classmethod
    def train(cls, name, *overrides, **options):
        return train(cls.workspace, name, *cls.arguments, *overrides, **options)

    def test_rows_say_the_stage(self):
        lengths = (64, 128, 192, 384)
        for row in self.one:
            stage = stage_of(row["step"])
            self.assertEqual((row["stage"], row["sequence_length"]), (stage, lengths[stage]), row)
            self.assertEqual(row["tokens"], 768 * row["step"])
        for row in metrics(self.workspace.run_folder("one"), "eval"):
            self.assertEqual(row["sequence_length"], lengths[stage_of(row["step"])])
        log = (self.workspace.run_folder("one") / "run.log").read_text()
        self.assertIn("stage 1 after step 3 and 2304 tokens: sequences of 64 tokens", log)
        summary = json.loads((self.workspace.run_folder("one") / "summary.json").read_text())
        self.assertEqual([s["steps"] for s in summary["stages"]], [3, 4, 3, 4])
        svg = (self.workspace.run_folder("one") / "loss.svg").read_text()
        self.assertIn("64, 128, 192 and 384 tokens", svg)

    def test_ranks_change_nothing(self):
        cases = {
            2: ("{data: 2}", "{context: 2}", "{data: 2}", "{context: 2, attention: allgather}"),
            4: ("{data: 4}", "{data: 2, context: 2}", "{context: 2, attention: ulysses}",
                "{context: 4, layout: striped}"),
        }
        for ranks, layouts in cases.items():
            with self.subTest(ranks=ranks):
                # Four ranks would leave a stage of 64 tokens less than a tile on context ranks.
                self.train(f"ranks{ranks}", stages(self.workspace, *layouts), ranks=ranks,
                           mpi=ranks == 2)
                rows = metrics(self.workspace.run_folder(f"ranks{ranks}"))
                self.assertEqual(len(rows), STEPS)
                for row, expected in zip(rows, self.one):
                    at = f"{ranks} ranks, step {row['step']}"
                    self.assertEqual(row["valid_tokens"], expected["valid_tokens"], at)
                    self.assertEqual(row["stage"], expected["stage"], at)
                    self.assertAlmostEqual(row["loss"], expected["loss"],
                                           delta=1e-5 * expected["loss"], msg=at)
                    self.assertAlmostEqual(row["grad_norm"], expected["grad_norm"],
                                           delta=1e-4 * expected["grad_norm"], msg=at)

    # From every step, those at a switch included.
    def test_resuming_anywhere_is_exact(self):
        layouts = ("{data: 2}", "{context: 2}")
        self.train("whole", stages(self.workspace, *layouts), ranks=2)
        expected = digest(self.workspace.run_folder("whole"))
        checkpoints = self.workspace.run_folder("whole") / "checkpoints"
        for step in range(1, STEPS):
            with self.subTest(step=step):
                name = f"from{step}"
                train(self.workspace, name, *self.arguments, stages(self.workspace, *layouts),
                      "--resume", checkpoints / f"step_{step:08d}", ranks=2)
                self.assertEqual(digest(self.workspace.run_folder(name)), expected)
                rows = metrics(self.workspace.run_folder(name))
                self.assertEqual([r["step"] for r in rows], list(range(step + 1, STEPS + 1)))
                self.assertEqual([r["loss"] for r in rows],
                                 [r["loss"] for r in metrics(self.workspace.run_folder("whole"))
                                  if r["step"] > step])

    def test_killed_in_any_stage(self):
        rng = random.Random(5)
        layouts = ("{data: 2}", "{context: 2}")
        words = command("train", self.workspace.config, *self.arguments,
                        stages(self.workspace, *layouts), "--quiet",
                        f"output_dir={self.workspace.run_folder('killed')}", ranks=2)
        seen = set()
        for _ in range(60):
            process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            begin = len(self.steps("killed"))
            until = begin + rng.randint(1, 3)
            while process.poll() is None and len(self.steps("killed")) < until:
                time.sleep(0.002)
            if process.poll() is not None:
                self.assertEqual(process.returncode, 0)
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            seen.add(stage_of(max(self.steps("killed") or [1])))
        self.train("unkilled", stages(self.workspace, *layouts), ranks=2)
        self.assertEqual(digest(self.workspace.run_folder("killed")),
                         digest(self.workspace.run_folder("unkilled")))
        self.assertEqual(self.steps("killed"), list(range(1, STEPS + 1)))
        self.assertGreaterEqual(len(seen), 3, f"killed in the stages {seen} only")

    def steps(self, name):
        file = self.workspace.run_folder(name) / "metrics.jsonl"
        if not file.exists():
            return []
        rows = []
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                pass
        return [r["step"] for r in rows if r["kind"] == "train"]

    def test_what_may_change_on_resume(self):
        name = "longer"
        self.train(name, stages(self.workspace, "{context: 1}"))
        # The last stage goes on, on other ranks.
        longer = stages(self.workspace, "{context: 1}", "{context: 1}", "{context: 1}", "{context: 1}")
        train(self.workspace, name, *self.arguments, longer, f"train.steps={STEPS + 2}")
        self.assertEqual(self.steps(name), list(range(1, STEPS + 3)))
        refused = train(self.workspace, name, *self.arguments, longer.replace("steps: 3", "steps: 4"),
                        f"train.steps={STEPS + 4}", expect=2)
        self.assertIn("stage 0 of the curriculum, its steps: 3 done, 4 now", refused.stderr)

    # Another stage on other text: as if it had been planned from the start, also when what was
    # planned for later is left out or reads something else.
    def test_later_stages_may_read_other_text(self):
        third = self.workspace.path / "third.h5"
        result = farspan("data", "synth", "--kind", "documents", "--out", third, "--tokens", "20k",
                         "--seed", "11", "--quiet")
        self.assertEqual(result.returncode, 0, result.stderr)

        def listed(*others):
            items = ["{sequence_length: 64, steps: 3}"] + [
                f"{{sequence_length: 128, steps: 3, train: [{store}]}}" for store in others]
            return "curriculum={type: growlength, stages: [" + ", ".join(items) + "]}"

        other = self.workspace.other
        # Constant: the schedule runs over all steps, so over stages still to come.
        budget = ("train.steps=null", "schedule={type: constant, warmup: 2}")
        self.train("planned", listed(other, third), *budget)
        expected = digest(self.workspace.run_folder("planned"))
        self.train("added", listed(), *budget)
        self.train("added", listed(other), *budget)
        self.train("added", listed(other, third), *budget)
        self.assertEqual(digest(self.workspace.run_folder("added")), expected)
        checkpoints = self.workspace.run_folder("planned") / "checkpoints"
        self.train("swapped", listed(third, other), *budget, "--resume", checkpoints / "step_00000003")
        self.assertNotEqual(digest(self.workspace.run_folder("swapped")), expected)
        self.train("dropped", listed(other), *budget, "--resume", checkpoints / "step_00000006")
        # A stage that has begun keeps its text: under its name, and under what the name holds.
        refused = self.train("refused", listed(third), *budget, "--resume",
                             checkpoints / "step_00000004", expect=2)
        self.assertIn("stage 1 of the curriculum, data.train[0].path", refused.stderr)
        files = [other, Path(f"{other}.manifest.json")]
        for file in files:
            file.rename(f"{file}.kept")
        try:
            result = farspan("data", "synth", "--kind", "documents", "--out", other, "--tokens", "20k",
                             "--seed", "12", "--quiet")
            self.assertEqual(result.returncode, 0, result.stderr)
            refused = self.train("refused", listed(other), *budget, "--resume",
                                 checkpoints / "step_00000004", expect=2)
            self.assertIn("hold other text than when they did", refused.stderr)
        finally:
            for file in files:
                Path(f"{file}.kept").rename(file)

    # The mask grows, the packed length stays; from any step on, on one rank or two.
    def test_window(self):
        window = ("curriculum={type: window, initial_window: 16, window_steps: 8}",
                  "train.sequence_length=192", "train.micro_batch=2")
        self.train("window", *window)
        rows = metrics(self.workspace.run_folder("window"))
        self.assertEqual({r["sequence_length"] for r in rows}, {192})
        windows = [r.get("window", 192) for r in rows]
        self.assertEqual(windows, [16, 36, 60, 78, 102, 126, 144, 168] + [192] * 6)
        self.train("window2", *window, ranks=2)
        for row, expected in zip(metrics(self.workspace.run_folder("window2")), rows):
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"])
        for step in (2, 5, 8, 11):
            name = f"window_from{step}"
            self.train(name, *window, "--resume", self.workspace.run_folder("window") /
                       "checkpoints" / f"step_{step:08d}")
            self.assertEqual(digest(self.workspace.run_folder(name)),
                             digest(self.workspace.run_folder("window")))

    # OLMo 3's: a stage that is longer scales the layers without a window, and only those.
    def test_scaling_of_full_layers(self):
        def scaled(layers, parallel="{context: 1}"):
            scaling = f"{{type: yarn, original_context: 128, target_context: 384, layers: {layers}}}"
            return ("curriculum={type: growlength, stages: [{sequence_length: 128, steps: 3}, "
                    f"{{sequence_length: 384, steps: 4, rope: {{scaling: {scaling}}}, "
                    f"parallel: {parallel}}}]}}", "model.sliding_window=32",
                    "model.layer_types=[sliding_attention, full_attention]", "train.steps=null")

        full = scaled("full_attention")
        self.train("scaled", *full)
        folder = self.workspace.run_folder("scaled")
        rows = metrics(folder)
        self.train("scaled2", *scaled("full_attention", "{context: 2}"), ranks=2)
        for row, expected in zip(metrics(self.workspace.run_folder("scaled2")), rows):
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"])
        self.train("scaled_all", *scaled("all"))
        losses = [r["loss"] for r in metrics(self.workspace.run_folder("scaled_all"))]
        self.assertEqual(losses[:3], [r["loss"] for r in rows[:3]])
        self.assertNotEqual(losses[3], rows[3]["loss"])

        for step in (2, 3, 4, 6):
            name = f"scaled_from{step}"
            self.train(name, *full, "--resume", folder / "checkpoints" / f"step_{step:08d}")
            self.assertEqual(digest(self.workspace.run_folder(name)), digest(folder))
        refused = self.train("refused", *scaled("all"), "--resume",
                             folder / "checkpoints" / "step_00000004", expect=2)
        self.assertIn("model.rope.scaling.layers: full_attention in the saved run, all now",
                      refused.stderr)

        def perplexity(*overrides):
            result = farspan("eval", "perplexity", "--model", folder, "--lengths", "192", "--json",
                             "--quiet", *overrides)
            self.assertEqual(result.returncode, 0, result.stderr)
            return json.loads(result.stdout)["cells"][0]["nll"]

        self.assertEqual(perplexity("model.rope.scaling.layers=full_attention"), perplexity())
        self.assertNotEqual(perplexity("model.rope.scaling.layers=all"), perplexity())
        # Weights of a run that scaled other layers than this one does.
        whole = ("model.sliding_window=32", "model.layer_types=[sliding_attention, full_attention]",
                 f"model.from={folder}", "train.steps=1", "train.sequence_length=384",
                 "model.rope.scaling={type: yarn, "
                 "original_context: 128, target_context: 384, layers: LAYERS}")
        for layers in ("full_attention", "all"):
            name = f"moved_{layers}"
            self.train(name, *(w.replace("LAYERS", layers) for w in whole))
            log = (self.workspace.run_folder(name) / "run.log").read_text()
            warned = "model.rope.scaling.layers: full_attention there, all here" in log
            self.assertEqual(warned, layers == "all", log)

    # Its windows choose layouts of their own here; config.resolved.yaml says one key for all.
    def test_resolved_chooses_the_same(self):
        self.train("chosen", "curriculum={type: window, window_steps: 8}", "train.sequence_length=192",
                   "parallel.layout=auto", "parallel.attention=auto", ranks=2)
        folder, again = (self.workspace.run_folder(name) for name in ("chosen", "chosen_again"))

        def choices(run):
            return [line.split(" I ", 1)[1] for line in (run / "run.log").read_text().splitlines()
                    if "(auto)" in line]

        self.assertGreater(len({line.split("parallel.", 1)[1] for line in choices(folder)}), 1)
        result = farspan("train", folder / "config.resolved.yaml", f"output_dir={again}", "--quiet",
                         ranks=2)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(choices(again), choices(folder))
        self.assertEqual(digest(again), digest(folder))

    def test_cyclic(self):
        cyclic = ("curriculum={type: cyclic, min_length: 96, max_length: 384, cycles: 2}",)
        self.train("cyclic", *cyclic)
        rows = metrics(self.workspace.run_folder("cyclic"))
        self.assertEqual([r["sequence_length"] for r in rows],
                         [96, 96, 192, 192, 384, 384, 384, 96, 96, 192, 192, 384, 384, 384])
        train(self.workspace, "cyclic_from9", *self.arguments, *cyclic, "--resume",
              self.workspace.run_folder("cyclic") / "checkpoints" / "step_00000009")
        self.assertEqual(digest(self.workspace.run_folder("cyclic_from9")),
                         digest(self.workspace.run_folder("cyclic")))

    # Gates that open as soon as they are looked at, and one that never does.
    def test_gated(self):
        stages = ("[{sequence_length: 128, steps: 5, parallel: {data: 2}}, {sequence_length: 192, steps: 6, "
                  "parallel: {context: 2}}, {sequence_length: 384, steps: 4, parallel: {context: 2}}]")
        opens = (f"curriculum={{type: gated, gate: {{retrieval: 0, recovery: 100, every: 3}}, "
                 f"stages: {stages}}}", "train.steps=null")
        self.train("gated", *opens, ranks=2)
        folder = self.workspace.run_folder("gated")
        rows = metrics(folder)
        self.assertEqual([r["stage"] for r in rows], [0] * 3 + [1] * 3 + [2] * 3)
        gates = [r for r in metrics(folder, "eval") if r["name"] == "gate/loss"]
        self.assertEqual([(r["step"], r["sequence_length"]) for r in gates],
                         [(3, 128), (6, 128), (9, 128)])
        # Finished: nothing is left to do, and from every step on it ends the same.
        self.train("gated", *opens, ranks=2)
        self.assertEqual(len(metrics(folder)), 9)
        for step in range(1, 9):
            name = f"gated_from{step}"
            self.train(name, *opens, "--resume", folder / "checkpoints" / f"step_{step:08d}", ranks=2)
            self.assertEqual(digest(self.workspace.run_folder(name)), digest(folder))
            resumed = [r for r in metrics(self.workspace.run_folder(name), "eval")
                       if r["name"].startswith("gate/")]
            self.assertEqual(resumed, [r for r in metrics(folder, "eval")
                                       if r["name"].startswith("gate/") and r["step"] > step])
        shut = (opens[0].replace("retrieval: 0", "retrieval: 1"), opens[1])
        self.train("shut", *shut, ranks=2)
        rows = metrics(self.workspace.run_folder("shut"))
        self.assertEqual([r["stage"] for r in rows], [0] * 5 + [1] * 6 + [2] * 4)
        log = (self.workspace.run_folder("shut") / "run.log").read_text()
        self.assertIn("closed, and the stage's budget is spent: going on", log)
        self.train("one_gated", opens[0].replace("data: 2", "data: 1").replace(
            "context: 2", "context: 1"), opens[1])
        for row, expected in zip(metrics(self.workspace.run_folder("one_gated")), metrics(folder)):
            self.assertEqual(row["stage"], expected["stage"])
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"])

    def test_growlength_small(self):
        store, held_out = self.workspace.store, self.workspace.path / "held_out.h5"
        folder = self.workspace.run_folder("growlength_small")
        result = farspan("train", REPOSITORY / "configs" / "growlength_small.yaml",
                         f"output_dir={folder}", f"data.train=[{store}]",
                         f"data.validation={held_out}", "train.steps=null",
                         "curriculum.stages[0].tokens=20k", "curriculum.stages[1].tokens=20k",
                         "curriculum.stages[2].tokens=20k", "model.num_hidden_layers=1",
                         "evaluation.every=2", "schedule.warmup=1", "--quiet", ranks=2, mpi=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = metrics(folder)
        self.assertEqual(sorted({r["sequence_length"] for r in rows}), [256, 512, 1024])
        log = (folder / "run.log").read_text()
        self.assertIn("data 2 x context 1", log)
        self.assertIn("data 1 x context 2", log)


if __name__ == "__main__":
    unittest.main()
