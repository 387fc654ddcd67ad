"""What users get wrong: one clear message, the documented exit code, nothing saved is lost."""

import os
import shutil
import subprocess
import unittest

from farspan_cli import (ENVIRONMENT, MPIRUN, PROGRAM, Workspace, digest, farspan, newest_checkpoint,
                         train)


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    def assert_refused(self, result, code, *texts):
        output = result.stdout + result.stderr
        self.assertEqual(result.returncode, code, output)
        for text in texts:
            self.assertIn(text, output)
        self.assertEqual(output.count("farspan: error"), 1, "one message, from one rank:\n" + output)

    def train(self, config, *overrides, ranks=1, mpi=False):
        folder = f"output_dir={self.workspace.run_folder('refused')}"
        return farspan("train", config, folder, *overrides, "--quiet", ranks=ranks, mpi=mpi)

    def test_missing_configuration(self):
        for ranks, mpi in ((1, False), (3, False), (3, True)):
            with self.subTest(ranks=ranks, mpi=mpi):
                self.assert_refused(self.train("nowhere.yaml", ranks=ranks, mpi=mpi), 2,
                                    "nowhere.yaml")

    def test_missing_store(self):
        result = self.train(self.workspace.config, "data.train=[{path: nowhere.h5}]", ranks=2,
                            mpi=True)
        self.assertIn(result.returncode, (2, 3))
        self.assertEqual((result.stdout + result.stderr).count("farspan: error"), 1)
        self.assertIn("nowhere.h5", result.stdout + result.stderr)

    def test_empty_text(self):
        empty = self.workspace.path / "empty.txt"
        empty.write_text("")
        self.assert_refused(
            farspan("data", "import", "--format", "text", "--tokenizer", "bytes", "--out",
                    self.workspace.path / "x.h5", empty), 3, "empty.txt")

    def test_token_outside_the_vocabulary(self):
        self.assert_refused(self.train(self.workspace.config, "model.vocab_size=100", ranks=2), 3,
                            "docs.h5")

    def test_damaged_store(self):
        damaged = self.workspace.path / "damaged.h5"
        for suffix in ("", ".manifest.json"):
            shutil.copy(str(self.workspace.store) + suffix, str(damaged) + suffix)
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 0x10
        damaged.write_bytes(data)
        self.assert_refused(
            self.train(self.workspace.config, f"data.train=[{{path: {damaged}}}]", ranks=2, mpi=True),
            3, "damaged.h5")
        damaged.write_bytes(data[:1000])
        self.assert_refused(self.train(self.workspace.config, f"data.train=[{{path: {damaged}}}]"), 3,
                            "damaged.h5")

    def test_damaged_checkpoint_is_passed_over(self):
        train(self.workspace, "damage", "train.steps=6")
        before = newest_checkpoint(self.workspace.run_folder("damage"))
        expected = digest(self.workspace.run_folder("damage"))
        shard = next(before.glob("*.h5"))
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        result = farspan("inspect", before, "--digest")
        self.assert_refused(result, 3, shard.name)
        # Started again, the run falls back to step 3 and arrives where it was.
        train(self.workspace, "damage", "train.steps=6")
        self.assertEqual(digest(self.workspace.run_folder("damage")), expected)

    def test_another_model_in_the_same_folder(self):
        train(self.workspace, "model", "train.steps=2")
        before = digest(self.workspace.run_folder("model"))
        result = self.train(self.workspace.config, "train.steps=4", "model.num_hidden_layers=1",
                            f"output_dir={self.workspace.run_folder('model')}", ranks=2)
        self.assert_refused(result, 2, "num_hidden_layers")
        self.assertEqual(digest(self.workspace.run_folder("model")), before)

    def test_mesh_that_does_not_fit(self):
        self.assert_refused(self.train(self.workspace.config, "parallel.context=3", ranks=2), 2,
                            "parallel.context")

    def test_heads_that_do_not_divide(self):
        self.assert_refused(self.train(self.workspace.config, "model.num_key_value_heads=3"), 2,
                            "num_key_value_heads")

    # Found before any rank allocates: no folder, no memory.
    def test_attention_that_cannot_be(self):
        cases = (
            (("parallel.attention=hybrid", "parallel.ulysses=3"), 4,
             ("parallel.ulysses", "does not divide parallel.context 4", "1, 2 or 4")),
            (("parallel.attention=ulysses",), 3,
             ("3 context ranks do not divide num_attention_heads 4", "1, 2 or 4", "ring")),
            (("parallel.attention=hybrid",), 3, ("parallel.ulysses", "auto finds no size")),
            (("model.sliding_window=-1",), 1, ("model.sliding_window", "0: no window")),
            (("model.sliding_window=0",
              "model.layer_types=[full_attention, sliding_attention]"), 1,
             ("model.layer_types", "no window to slide")),
            (("model.attention_sinks=4",), 2, ("model.attention_sinks", "sliding_window is 0")),
            (("model.sparse_attention={type: dilated, segment_lengths: [10], dilations: [3]}",
              "parallel.layout=striped"), 2, ("segment_lengths", "9 or 12")),
            (("model.is_causal=false",), 2, ("model.is_causal", "inspect attention")),
        )
        for overrides, ranks, texts in cases:
            for mpi in (False, True) if ranks > 1 else (False,):
                with self.subTest(overrides=overrides, mpi=mpi):
                    self.assert_refused(
                        self.train(self.workspace.config, *overrides, ranks=ranks, mpi=mpi), 2,
                        *texts)
        self.assertFalse(self.workspace.run_folder("refused").exists())

    def test_unknown_key(self):
        self.assert_refused(self.train(self.workspace.config, "train.stepz=3"), 2, "train.steps")

    def test_unwritable_folder(self):
        blocked = self.workspace.path / "file"
        blocked.write_text("")
        self.assert_refused(self.train(self.workspace.config, f"output_dir={blocked}/run", ranks=2), 2,
                            str(blocked))

    def test_ranks_with_different_configurations(self):
        words = [*MPIRUN, "-np", "1", PROGRAM, "train", str(self.workspace.config),
                 f"output_dir={self.workspace.run_folder('differ')}", "--quiet", ":", "-np", "1",
                 PROGRAM, "train", str(self.workspace.config), "optimizer.lr=0.5",
                 f"output_dir={self.workspace.run_folder('differ')}", "--quiet"]
        result = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
                                check=False)
        self.assert_refused(result, 2, "configuration differs")

    @unittest.skipUnless(os.geteuid() == 0, "mounting a small file system needs root")
    def test_full_disk_keeps_the_earlier_checkpoint(self):
        disk = self.workspace.path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)],
                                 capture_output=True, check=False)
        if mounted.returncode != 0:
            self.skipTest("cannot mount a tmpfs here")
        try:
            arguments = (self.workspace.config, f"output_dir={disk}/run", "checkpoint.every=2")
            self.assertEqual(self.train(*arguments, "train.steps=2").returncode, 0)
            before = digest(disk / "run")
            room = os.statvfs(disk)
            (disk / "filler").write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - 100_000))
            self.assert_refused(self.train(*arguments, "train.steps=4", ranks=2), 4, "disk")
            self.assertEqual(digest(disk / "run"), before)
            (disk / "filler").unlink()
            self.assertEqual(self.train(*arguments, "train.steps=4").returncode, 0)
        finally:
            subprocess.run(["umount", str(disk)], check=False)


if __name__ == "__main__":
    unittest.main()
