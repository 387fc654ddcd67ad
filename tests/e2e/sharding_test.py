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

    def assert_same_course(self, name):
        rows = metrics(self.workspace.run_folder(name))
        self.assertEqual([r["step"] for r in rows], [r["step"] for r in self.one])
        for row, expected in zip(rows, self.one):
            at = f"{name}, step {row['step']}"
            self.assertEqual(row["valid_tokens"], expected["valid_tokens"], at)
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"],
                                   msg=at)
            self.assertAlmostEqual(row["grad_norm"], expected["grad_norm"],
                                   delta=1e-4 * expected["grad_norm"], msg=at)

    def test_any_number_of_ranks_and_both_layouts(self):
        for ranks in (2, 3, 4):
            for layout in ("zigzag", "contiguous"):
                with self.subTest(ranks=ranks, layout=layout):
                    name = f"{layout}{ranks}"
                    train(self.workspace, name, "train.steps=5", f"parallel.layout={layout}",
                          ranks=ranks)
                    self.assert_same_course(name)

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

    def test_resume_on_another_number_of_ranks(self):
        train(self.workspace, "moved", "train.steps=3", "schedule.type=constant", ranks=4)
        train(self.workspace, "moved", "train.steps=5", "schedule.type=constant", ranks=3)
        train(self.workspace, "stayed", "train.steps=5", "schedule.type=constant")
        moved = metrics(self.workspace.run_folder("moved"))
        stayed = metrics(self.workspace.run_folder("stayed"))
        self.assertEqual([r["step"] for r in moved], [1, 2, 3, 4, 5])
        for row, expected in zip(moved, stayed):
            self.assertAlmostEqual(row["loss"], expected["loss"], delta=1e-5 * expected["loss"])


if __name__ == "__main__":
    unittest.main()
