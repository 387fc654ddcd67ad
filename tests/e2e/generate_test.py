"""farspan generate: the same text from one rank, thread ranks and mpirun, from a run and its checkpoints."""

import json
import subprocess
import unittest

from farspan_cli import ENVIRONMENT, Workspace, command, farspan, newest_checkpoint, train

PROMPT = "what was said before is said again, and " * 12  # long enough for ranks to share


class Generate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workspace = Workspace()
        train(cls.workspace, "run", "train.steps=6")
        cls.folder = cls.workspace.run_folder("run")
        cls.prompt = cls.workspace.path / "prompt.txt"
        cls.prompt.write_text(PROMPT)

    @classmethod
    def tearDownClass(cls):
        cls.workspace.close()

    def generate(self, *arguments, model=None, ranks=1, mpi=False):
        result = farspan("generate", "--model", model or self.folder, "--max-new-tokens", "48",
                         "--json", *arguments, ranks=ranks, mpi=mpi)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def test_ranks_write_the_same_text(self):
        for prompt in (["--prompt", "In the"], ["--prompt-file", self.prompt]):
            for draws in (["--temperature", "0"], ["--temperature", "1", "--seed", "3"]):
                one = self.generate(*prompt, *draws)
                for ranks, mpi in ((3, False), (2, True)):
                    many = self.generate(*prompt, *draws, ranks=ranks, mpi=mpi)
                    self.assertEqual(many["ranks"], ranks)
                    self.assertEqual(many["tokens"], one["tokens"], (prompt, draws, ranks))
        shared = self.generate("--prompt-file", self.prompt, "parallel.attention=ulysses",
                               "parallel.layout=contiguous", "--temperature", "0", ranks=2, mpi=True)
        self.assertEqual(shared["tokens"],
                         self.generate("--prompt-file", self.prompt, "--temperature", "0")["tokens"])

    def test_checkpoints_and_streams(self):
        run = self.generate("--prompt", "In the", "--seed", "9")
        checkpoint = self.generate("--prompt", "In the", "--seed", "9",
                                   model=newest_checkpoint(self.folder))
        self.assertEqual(run["tokens"], checkpoint["tokens"])
        result = farspan("generate", "--model", self.folder, "--max-new-tokens", "48", "--prompt",
                         "In the", "--seed", "9", "--quiet")
        text = run["text"].replace("\r\n", "\n").replace("\r", "\n")  # as subprocess reads lines
        self.assertEqual(result.stdout, text + "\n")
        self.assertEqual(result.stderr, "")

    def test_a_damaged_run_and_a_gone_reader(self):
        result = subprocess.run(
            ["sh", "-c", '"$@" | head -c 5', "sh",
             *command("generate", "--model", self.folder, "--prompt", "x", "--max-new-tokens", "4k",
                      "--quiet")],
            env=ENVIRONMENT, capture_output=True, timeout=60, check=False)
        self.assertEqual(len(result.stdout), 5)
        train(self.workspace, "damaged", "train.steps=3")
        damaged = self.workspace.run_folder("damaged")
        for shard in newest_checkpoint(damaged).glob("*.h5"):
            shard.write_bytes(shard.read_bytes()[:-100])
        for ranks in (1, 2):
            result = farspan("generate", "--model", damaged, "--prompt", "x", ranks=ranks,
                             mpi=ranks > 1)
            self.assertEqual(result.returncode, 3, result.stderr)
            self.assertEqual(result.stderr.count("none of them verifies"), 1, result.stderr)


if __name__ == "__main__":
    unittest.main()
