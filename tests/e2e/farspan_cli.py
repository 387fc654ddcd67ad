"""Runs the farspan program as a user would, for the end-to-end tests. Python's standard library only."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PROGRAM = os.environ.get("FARSPAN_PROGRAM", "build/cpu/farspan")
# In builds with AddressSanitizer Open MPI's own leaks would fail every rank.
MPIRUN = ["mpirun", "--oversubscribe", "-x", "ASAN_OPTIONS=detect_leaks=0"]
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMP_NUM_THREADS": "1",
}

CONFIG = """\
name: e2e
seed: 7
model: {vocab_size: 260, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
        num_attention_heads: 4, num_key_value_heads: 2, tie_word_embeddings: true}
data: {train: [{path: STORE}], validation: VALIDATION}
train: {sequence_length: 192, batch_tokens: 768, micro_batch: 1, steps: 12, precision: fp32}
optimizer: {lr: 3.0e-3}
schedule: {type: cosine, warmup: 2}
parallel: {layout: zigzag}
checkpoint: {every: 3, keep_last: 2}
evaluation: {every: 6, tokens: 1k}
logging: {tensorboard: false}
"""


class Workspace:
    """A temporary folder with a packed-documents store and a configuration."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="farspan_e2e_"))
        store = self.path / "docs.h5"
        result = farspan("data", "synth", "--kind", "documents", "--out", store, "--tokens", "40k",
                         "--seed", "3", "--quiet")
        assert result.returncode == 0, result.stderr
        validation = self.path / "held_out.h5"
        result = farspan("data", "synth", "--kind", "documents", "--out", validation, "--tokens",
                         "4k", "--seed", "4", "--quiet")
        assert result.returncode == 0, result.stderr
        self.config = self.path / "config.yaml"
        self.config.write_text(
            CONFIG.replace("STORE", str(store)).replace("VALIDATION", str(validation)))
        self.store = store

    def close(self):
        shutil.rmtree(self.path, ignore_errors=True)

    def run_folder(self, name):
        return self.path / "runs" / name


def command(*arguments, ranks=1, mpi=False):
    words = [PROGRAM, *map(str, arguments)]
    if ranks > 1 and mpi:
        return [*MPIRUN, "-np", str(ranks), *words]
    if ranks > 1:
        return [*words, "--local-ranks", str(ranks)]
    return words


def farspan(*arguments, ranks=1, mpi=False, timeout=240):
    return subprocess.run(command(*arguments, ranks=ranks, mpi=mpi), env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=timeout, check=False)


def train(workspace, name, *overrides, ranks=1, mpi=False, expect=0):
    """Trains into runs/<name>; returns the process."""
    result = farspan("train", workspace.config, f"output_dir={workspace.run_folder(name)}",
                     *overrides, "--quiet", ranks=ranks, mpi=mpi)
    assert result.returncode == expect, (
        f"exit {result.returncode}, expected {expect}\n{result.stdout}\n{result.stderr}")
    return result


def metrics(folder, kind="train"):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def digest(folder):
    result = farspan("inspect", folder, "--digest")
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def newest_checkpoint(folder):
    return sorted((Path(folder) / "checkpoints").glob("step_????????"))[-1]
