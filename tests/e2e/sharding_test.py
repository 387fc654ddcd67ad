"""Ranks, layouts, transports and recomputation change nothing: losses, gradients and digests."""

import unittest

from farspan_cli import Workspace, digest, metrics, train


class Sharding(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        train(cls.workspace, "one", "train.steps=5")
        cls.one = metrics(cls.workspace.run_folder("one"))

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    def assert_same_course(self, name, reference=None):
        rows = metrics(self.workspace.run_folder(name))
        one = metrics(self.workspace.run_folder(reference)) if reference else self.one
        self.assertEqual([r["step"] for r in rows], [r["step"] for r in one])
        for row, expected in zip(rows, one):
            at = f"{name}, step {row['step']}"
            self.assertEqual(row["valid_tokens"], expected["valid_tokens"], at)
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"],
                                   msg=at)
            self.assertAlmostEqual(row["grad_norm"], expected["grad_norm"],
                                   delta=1e-4 * expected["grad_norm"], msg=at)

    def test_any_number_of_ranks(self):
        for ranks in (2, 3, 4):
            for layout in ("zigzag", "contiguous"):
                with self.subTest(ranks=ranks, layout=layout):
                    name = f"{layout}{ranks}"
                    train(self.workspace, name, "train.steps=5", f"parallel.layout={layout}",
                          ranks=ranks)
                    self.assert_same_course(name)

    # The two commands of the framework's claim, as users type them.
    def test_balanced_ring_under_mpi(self):
        train(self.workspace, "balanced", "parallel.context=4", "parallel.layout=balanced",
              "parallel.attention=ring", "train.precision=fp32", "train.steps=5", ranks=4, mpi=True)
        self.assert_same_course("balanced")

    def test_hybrid_under_mpi(self):
        train(self.workspace, "hybrid", "parallel.context=4", "parallel.attention=hybrid",
              "parallel.ulysses=2", "train.steps=5", ranks=4, mpi=True)
        self.assert_same_course("hybrid")

    def test_every_strategy_and_layout(self):
        cases = (("ulysses", "striped", 2), ("ulysses", "zigzag", 4), ("allgather", "striped", 3),
                 ("allgather", "balanced", 4), ("hybrid", "balanced", 4), ("ring", "balanced", 3))
        for strategy, layout, ranks in cases:
            with self.subTest(strategy=strategy, layout=layout, ranks=ranks):
                name = f"{strategy}_{layout}_{ranks}"
                train(self.workspace, name, "train.steps=5", f"parallel.attention={strategy}",
                      f"parallel.layout={layout}", ranks=ranks)
                self.assert_same_course(name)

    def test_masks_and_biases(self):
        masks = {
            "sinks": ("model.sliding_window=24", "model.attention_sinks=3"),
            "alibi": ("model.position=alibi",),
            "xpos": ("model.position=xpos", "model.sliding_window=40"),
            "dilated": ("model.sparse_attention={type: dilated, segment_lengths: [16, 48], "
                        "dilations: [1, 3]}",),
            "s2": ("model.sparse_attention={type: s2, group_size: 32}",),
            "bigbird": ("model.sparse_attention={type: bigbird, block_size: 8}",),
        }
        for mask, keys in masks.items():
            with self.subTest(mask=mask):
                train(self.workspace, f"{mask}_one", "train.steps=5", *keys)
                train(self.workspace, f"{mask}_many", "train.steps=5", "parallel.layout=balanced",
                      *keys, ranks=4)
                self.assert_same_course(f"{mask}_many", f"{mask}_one")

    def test_automatic_sharding(self):
        for ranks, mpi in ((4, False), (2, True)):
            with self.subTest(ranks=ranks, mpi=mpi):
                name = f"auto{ranks}"
                train(self.workspace, name, "train.steps=3", "parallel.layout=auto",
                      "parallel.attention=auto", ranks=ranks, mpi=mpi)
                # Started again it chooses the same and goes on.
                train(self.workspace, name, "train.steps=5", "parallel.layout=auto",
                      "parallel.attention=auto", ranks=ranks, mpi=mpi)
                folder = self.workspace.run_folder(name)
                train(self.workspace, f"{name}_one", "train.steps=3")
                train(self.workspace, f"{name}_one", "train.steps=5")
                self.assert_same_course(name, f"{name}_one")
                choices = [line.split("INFO")[-1] for line in
                           (folder / "run.log").read_text().splitlines() if "(auto)" in line]
                self.assertEqual(len(choices), 2)
                resolved = (folder / "config.resolved.yaml").read_text()
                self.assertNotIn("layout: auto", resolved)
                self.assertNotIn("attention: auto", resolved)

    def test_data_by_context_under_mpi(self):
        train(self.workspace, "mesh", "train.steps=5", "parallel.data=2", "parallel.context=2",
              ranks=4, mpi=True)
        self.assert_same_course("mesh")

    def test_threads_and_mpi_give_the_same_bits(self):
        train(self.workspace, "threads", "train.steps=5", ranks=3)
        train(self.workspace, "mpi", "train.steps=5", ranks=3, mpi=True)
        self.assertEqual(digest(self.workspace.run_folder("threads")),
                         digest(self.workspace.run_folder("mpi")))

    def test_recompute_policies_give_the_same_bits(self):
        train(self.workspace, "none", "train.steps=10", "train.precision=bf16", ranks=2)
        expected = digest(self.workspace.run_folder("none"))
        for policy in ("selective", "full", "full+attention"):
            with self.subTest(policy=policy):
                train(self.workspace, policy, "train.steps=10", "train.precision=bf16",
                      f"train.recompute={policy}", ranks=2)
                self.assertEqual(digest(self.workspace.run_folder(policy)), expected)

    def test_resume_on_other_ranks_with_another_strategy(self):
        train(self.workspace, "moved", "train.steps=3", "schedule.type=constant", ranks=4)
        train(self.workspace, "moved", "train.steps=5", "schedule.type=constant",
              "parallel.attention=allgather", "parallel.layout=striped", ranks=3)
        train(self.workspace, "stayed", "train.steps=5", "schedule.type=constant")
        moved = metrics(self.workspace.run_folder("moved"))
        stayed = metrics(self.workspace.run_folder("stayed"))
        self.assertEqual([r["step"] for r in moved], [1, 2, 3, 4, 5])
        for row, expected in zip(moved, stayed):
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"])


if __name__ == "__main__":
    unittest.main()
