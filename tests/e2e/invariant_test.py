"""parallel.invariant: after five steps the weights, moments and losses are the same bits whatever
the number of ranks, the layout, the micro-batches and the transport."""

import unittest

from farspan_cli import Workspace, digest, metrics, train

# Two blocks of 128 tokens and a rest; 1,200 tokens a step.
SHAPE = ("train.steps=5", "train.sequence_length=300", "train.batch_tokens=1200",
         "parallel.invariant=true", "model.sliding_window=150",
         "model.layer_types=[full_attention, sliding_attention]")
LAYOUTS = ("contiguous", "zigzag", "striped", "balanced")


class Invariant(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        cls.one = cls.run_named("one")

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    @classmethod
    def run_named(cls, name, *overrides, **where):
        """The digest of a run and its losses, as printed."""
        train(cls.workspace, name, *SHAPE, *overrides, **where)
        folder = cls.workspace.run_folder(name)
        return digest(folder), [(r["loss"], r["grad_norm"]) for r in metrics(folder)]

    def assert_same(self, name, *overrides, **where):
        with self.subTest(name=name):
            self.assertEqual(self.run_named(name, *overrides, **where), self.one)

    def test_any_ranks_and_layouts(self):
        for ranks in (2, 3, 4):
            for layout in LAYOUTS:
                self.assert_same(f"{layout}_{ranks}", f"parallel.layout={layout}", ranks=ranks)

    def test_micro_batches_data_ranks_and_threads(self):
        self.assert_same("micro2", "train.micro_batch=2")
        self.assert_same("micro4", "train.micro_batch=4", "parallel.layout=zigzag", ranks=3)
        self.assert_same("data2", "parallel.data=2", "parallel.context=2", ranks=4)
        self.assert_same("data4", "parallel.data=4", "parallel.context=1", ranks=4)
        self.assert_same("recompute", "train.recompute=full", ranks=2)

    def test_resumed_on_other_ranks(self):
        constant = ("schedule.type=constant", "checkpoint.every=3")
        one = self.run_named("stayed", *constant)
        self.run_named("moved", *constant, "train.steps=3", ranks=4)
        moved = self.run_named("moved", *constant, "parallel.layout=striped", ranks=3)
        self.assertEqual(moved, one)

    def test_evaluation(self):
        keys = ("evaluation.every=5", "evaluation.tokens=1200")
        losses = []
        for ranks in (1, 3):
            self.run_named(f"evaluated_{ranks}", *keys, ranks=ranks)
            folder = self.workspace.run_folder(f"evaluated_{ranks}")
            losses.append([r["value"] for r in metrics(folder, "eval") if r["name"] == "loss"])
        self.assertEqual(len(losses[0]), 1)
        self.assertEqual(losses[0], losses[1])

    def test_under_mpi(self):
        self.assert_same("mpi3", "parallel.layout=zigzag", ranks=3, mpi=True)
        self.assert_same("mpi4", "parallel.layout=balanced", ranks=4, mpi=True)

    def test_bf16_and_alibi(self):
        keys = ("train.precision=bf16", "model.position=alibi")
        one = self.run_named("bf16_one", *keys)
        many = self.run_named("bf16_many", *keys, "parallel.layout=zigzag", ranks=3)
        self.assertEqual(one, many)
        self.assertNotEqual(one[0], self.one[0])

    def test_without_it_bits_differ(self):
        plain = self.run_named("plain_one", "parallel.invariant=false")
        many = self.run_named("plain_many", "parallel.invariant=false", ranks=4)
        self.assertNotEqual(plain[0], many[0])


if __name__ == "__main__":
    unittest.main()
