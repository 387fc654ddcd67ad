#!/usr/bin/env python3
"""What parallel.invariant costs: step times with it and without it, the two taking turns.

    scripts/bench_invariant.py [--program build/cpu/farspan] [--rounds 5] [--steps 6]

Trains small models on a synthetic store in a temporary folder and prints a Markdown table: seconds
of a step, median (least to most) over all steps of all rounds but the first two of each run, and
the ratio of the medians. CPU seconds are those of the whole process, so that they hold on a busy
machine too. Python's standard library only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = {
    "quickstart": "model: {vocab_size: 260, hidden_size: 128, intermediate_size: 352, "
                  "num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 2, "
                  "tie_word_embeddings: true}",
    "larger": "model: {vocab_size: 260, hidden_size: 512, intermediate_size: 1408, "
              "num_hidden_layers: 4, num_attention_heads: 8, num_key_value_heads: 2, "
              "tie_word_embeddings: true}",
}
LENGTHS = {"quickstart": (2048, 16384), "larger": (4096, 4096)}  # sequence, tokens of a step
WARM_UP = 2


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train(args, folder, model, precision, ranks, invariant):
    """Step times of one short run, and the CPU seconds of a step after the first two."""
    length, tokens = LENGTHS[model]
    config = folder / f"{model}.yaml"
    config.write_text(f"""name: bench
{MODELS[model]}
data: {{train: [{{path: {folder}/docs.h5}}], documents: masked}}
train: {{sequence_length: {length}, batch_tokens: {tokens}, micro_batch: 1, precision: {precision}}}
parallel: {{context: {ranks}, attention: allgather, layout: zigzag}}
checkpoint: {{every: 1000}}
evaluation: {{every: 0}}
logging: {{tensorboard: false}}
""")

    def run(steps):
        out = folder / "run"
        subprocess.run(["rm", "-rf", str(out)], check=True)
        before = cpu_seconds()
        result = subprocess.run(
            [args.program, "train", config, f"output_dir={out}", f"train.steps={steps}",
             f"parallel.invariant={str(invariant).lower()}", "--quiet",
             "--local-ranks", str(ranks)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            sys.exit(f"{result.stdout}\n{result.stderr}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [r["seconds"] for r in rows if r["kind"] == "train"], cpu_seconds() - before

    _, start = run(WARM_UP)
    seconds, cpu = run(WARM_UP + args.steps)
    return seconds[WARM_UP:], (cpu - start) / args.steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", default="build/cpu/farspan")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    cases = [(m, p, r) for m in MODELS for p in ("bf16", "fp32") for r in (1, 2)]
    print("| model | precision | ranks | step, s | invariant, s | ratio | CPU s | invariant | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="farspan_bench_") as name:
        folder = Path(name)
        subprocess.run([args.program, "data", "synth", "--kind", "documents", "--out",
                        folder / "docs.h5", "--tokens", "400k", "--seed", "3", "--quiet"],
                       check=True)
        for case in cases:
            wall, cpu = {False: [], True: []}, {False: [], True: []}
            for _ in range(args.rounds):
                for invariant in (False, True):
                    seconds, per_step = train(args, folder, *case, invariant)
                    wall[invariant] += seconds
                    cpu[invariant].append(per_step)
            middle = {i: statistics.median(wall[i]) for i in wall}
            spent = {i: statistics.median(cpu[i]) for i in cpu}
            text = {i: f"{middle[i]:.3f} ({min(wall[i]):.3f}-{max(wall[i]):.3f})" for i in wall}
            print(f"| {case[0]} | {case[1]} | {case[2]} | {text[False]} | {text[True]} | "
                  f"{middle[True] / middle[False]:.2f} | {spent[False]:.3f} | {spent[True]:.3f} | "
                  f"{spent[True] / spent[False]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
