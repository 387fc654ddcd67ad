#!/usr/bin/env python3
"""farspan eval as users run it: the same numbers alone, on four ranks and under mpirun; reports; errors."""

import json
import sys
import unittest

from farspan_cli import Workspace, farspan, metrics, train

EVALUATION = ["evaluation.passkey.lengths=[96, 256]", "evaluation.passkey.depths=3",
              "evaluation.passkey.samples=1", "evaluation.perplexity.lengths=[64, 384]"]


class Eval(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.run_folder = cls.workspace.run_folder("run")
        train(cls.workspace, "run", *EVALUATION)

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    def eval(self, *arguments, expect=0, **ranks):
        result = farspan("eval", *arguments, "--model", self.run_folder, "--quiet", **ranks)
        self.assertEqual(result.returncode, expect, result.stdout + result.stderr)
        return result

    def json(self, *arguments, **ranks):
        return json.loads(self.eval(*arguments, "--json", **ranks).stdout)

    def test_retrieval_is_the_same_on_any_ranks(self):
        for task in ("passkey", "kv"):
            words = [task, "--lengths", "96,300", "--depths", "3", "--samples", "2"]
            one = self.json(*words)
            self.assertEqual(len(one["cells"]), 6)
            self.assertEqual(one["step"], 12)
            self.assertLess(one["by_length"][1]["accuracy"], 0.2)
            for ranks, more in (({"ranks": 4}, []), ({"ranks": 2, "mpi": True}, ["parallel.data=2"])):
                other = self.json(*words, *more, **ranks)
                for a, b in zip(one["cells"], other["cells"]):
                    self.assertEqual((a["right"], a["tokens_right"]), (b["right"], b["tokens_right"]))
                    self.assertAlmostEqual(a["answer_nll"], b["answer_nll"], delta=1e-4)
            generated = self.json(*words, "--generate")
            for a, b in zip(one["cells"], generated["cells"]):
                self.assertEqual(a["right"], b["right"])

    def test_attention_beyond_the_trained_context(self):
        for attention in ("dca", "lm_infinite"):
            mode = ["--attention", attention, "--attention-context", "64"]
            words = ["passkey", "--lengths", "96,300", "--depths", "3", "--samples", "2", *mode]
            one = self.json(*words)
            self.assertEqual((one["attention"], one["attention_context"]), (attention, 64))
            self.assertEqual(one["scoring"], "argmax, teacher-forced")
            generated = self.json(*words, "--generate")
            two = self.json(*words, "parallel.data=2", ranks=2)
            for a, b, c in zip(one["cells"], generated["cells"], two["cells"]):
                self.assertEqual(a["right"], b["right"])
                self.assertEqual((a["tokens_right"], a["answer_nll"]), (c["tokens_right"], c["answer_nll"]))
            self.assertIn("parallel.data=2", self.eval(*words, ranks=2, expect=2).stderr)
            text = ["perplexity", "--lengths", "64,384", "--stride", "32", "--tokens", "500"]
            plain, far = self.json(*text), self.json(*text, *mode)
            self.assertIsNone(plain["attention_context"])
            a, b = (report["cells"] for report in (plain, far))
            self.assertEqual(a[0]["nll"], b[0]["nll"])
            self.assertEqual(a[1]["scored"], b[1]["scored"])
            self.assertGreater(abs(a[1]["nll"] - b[1]["nll"]), 1e-7)
            joined = self.json(*text, *mode, "--documents", "joined")
            self.assertEqual(joined["documents"], "joined")
            self.assertGreater(joined["cells"][1]["by_context"][-1]["begin"], 128)
            longppl = self.json("longppl", "--lengths", "256", "--short", "32", *mode)
            self.assertEqual(longppl["attention_context"], 64)

    def test_perplexity_is_the_same_on_any_ranks_and_as_in_training(self):
        words = ["perplexity", "--lengths", "64,384"]
        one, four = self.json(*words), self.json(*words, ranks=4)
        for a, b in zip(one["cells"], four["cells"]):
            self.assertEqual(a["scored"], b["scored"])
            self.assertAlmostEqual(a["nll"], b["nll"], delta=1e-5)
            self.assertEqual(sum(x["tokens"] for x in a["by_context"]), a["scored"])
        rows = {row["name"]: row for row in metrics(self.run_folder, "eval") if row["step"] == 12}
        for cell in one["cells"]:
            row = rows[f"perplexity@{cell['length']}"]
            self.assertAlmostEqual(row["loss"], cell["nll"], delta=1e-5)
            self.assertEqual(row["tokens"], cell["scored"])
        sliding = self.json(*words, "--stride", "32", "--tokens", "500")
        self.assertEqual({c["first"] for c in sliding["cells"]}, {384 - 32 + 1})
        self.assertEqual(len({c["scored"] for c in sliding["cells"]}), 1)
        longppl = self.json("longppl", "--lengths", "256", "--short", "32")
        self.assertEqual(longppl["cells"][0]["compared"], longppl["cells"][0]["scored"])

    def test_training_looks_at_passkeys_and_resumes_exactly(self):
        rows = metrics(self.run_folder, "eval")
        self.assertEqual([r["documents"] for r in rows if r["name"] == "passkey@256"], [3, 3])
        summary = json.loads((self.run_folder / "summary.json").read_text())
        last = [{k: v for k, v in r.items() if k != "kind"} for r in rows
                if r["step"] == 12 and "@" in r["name"]]
        self.assertEqual(len(last), 4)
        self.assertEqual(summary["evaluations"], last)
        train(self.workspace, "again", "train.steps=6", "schedule.type=constant", *EVALUATION)
        train(self.workspace, "again", "train.steps=12", "schedule.type=constant", *EVALUATION)
        train(self.workspace, "whole", "train.steps=12", "schedule.type=constant")
        losses = [[r["loss"] for r in metrics(self.workspace.run_folder(name))]
                  for name in ("again", "whole")]
        self.assertEqual(*losses)

    def test_ruler_and_reports(self):
        table = self.eval("ruler", "--lengths", "1k", "--tasks", "vt,cwe", "--depths", "2",
                          "--samples", "1").stdout
        self.assertIn("cwe", table)
        for suffix, magic in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".csv", b"task,"),
                              (".json", b"{")):
            out = self.workspace.path / f"report{suffix}"
            self.eval("passkey", "--lengths", "96,128", "--depths", "2", "--samples", "1",
                      "--out", out)
            self.assertTrue(out.read_bytes().startswith(magic), suffix)

    def test_what_cannot_be(self):
        for words, text in ((["passkey", "--lengths", "60"], "at least 80"),
                            (["passkey", "--lengths", "96", "--out", "a.pdf"], ".svg"),
                            (["passkey", "--lengths", "96", "--out", "none/a.svg"], "no folder none"),
                            (["perplexity", "--lengths", "64", "--stride", "128"], "--stride"),
                            (["ruler", "--lengths", "1k", "--tasks", "needle"], "multikey")):
            self.assertIn(text, self.eval(*words, expect=2).stderr)
        self.assertIn("needs",
                      self.eval("perplexity", "--lengths", "64k", expect=3).stderr)
        result = farspan("eval", "score", "--model", self.run_folder)
        self.assertEqual(result.returncode, 2)
        self.assertIn("not built", result.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0]])
