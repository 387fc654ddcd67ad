"""Every configuration of configs/ is one that `farspan config` and `train --dry-run` take, and each
recipe for large models has a small twin."""

import re
import unittest
from pathlib import Path

from farspan_cli import farspan

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
RECIPES = ["codellama", "easycontext", "llama3", "olmo3", "pose", "prolong", "yarn"]


def device(path):
    found = re.search(r"^device: (\w+)", path.read_text(), re.MULTILINE)
    return found.group(1) if found else "cpu"


class Configs(unittest.TestCase):
    def test_each_is_accepted(self):
        self.assertGreater(len(CONFIGS), 15)
        for path in CONFIGS:
            if device(path) != "cpu":
                continue  # refused by builds without it; tests of those builds take them
            with self.subTest(path.name):
                result = farspan("config", path)
                self.assertEqual(result.returncode, 0, result.stderr)

    def test_each_runs_dry(self):
        for path in CONFIGS:
            if device(path) != "cpu":
                continue
            with self.subTest(path.name):
                result = farspan("train", path, "--dry-run")
                # A recipe for GPUs may need more than this machine's memory: that is an answer too.
                self.assertIn(result.returncode, (0, 4, 7), result.stderr)
                self.assertIn("parameters", result.stdout)

    def test_recipes_have_twins(self):
        names = [p.stem for p in CONFIGS]
        for recipe in RECIPES:
            self.assertIn(f"{recipe}_small", names)
            self.assertTrue(any(n.startswith(recipe) and not n.endswith("_small") for n in names))


if __name__ == "__main__":
    unittest.main()
