#!/usr/bin/env python3
"""The longest sequence that one GPU trains, against what dry runs say.

    scripts/longest_sequence.py [--program build/cuda/farspan] [--config configs/llama_8b_layers.yaml]
                                [--window 4k] [--shares 0.97 1.0 1.03] [section.key=value ...]

Asks `farspan train --max-length` for the longest length that fits device_memory (by default what
nvidia-smi says the GPU has), then trains one step at each share of it and prints a Markdown table:
whether the step was done, the most memory in use by nvidia-smi, and the dry run's figure. Attention
sees a window, which changes its time and not its memory; --window 0 for all of it. Needs an otherwise
idle GPU; Python's standard library only.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def smi(field):
    text = subprocess.run(["nvidia-smi", f"--query-gpu=memory.{field}", "--format=csv,noheader,nounits", "-i", "0"],
                          capture_output=True, text=True, timeout=30, check=True).stdout
    return int(text.split()[0]) << 20


def run(command):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def predicted(text):
    match = re.search(r"([\d.]+) (\w+) of device memory", text)
    return float(match[1]) * UNITS[match[2]]


def done_steps(folder):
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["kind"] == "train"]


def one_step(command, folder, limit):
    """(seconds of the step or None, most memory in use, the end of what was said). Killed after the
    step, before it would save."""
    most, start = 0, time.monotonic()
    with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
            while process.poll() is None and not done_steps(folder) and time.monotonic() - start < limit:
                most = max(most, smi("used"))
                time.sleep(0.1)
            most = max(most, smi("used"))
            process.kill()
    rows = done_steps(folder)
    said = folder.with_suffix(".log").read_text(encoding="utf-8").strip().splitlines()
    return rows[0]["seconds"] if rows else None, most, said[-1] if said else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/cuda/farspan")
    parser.add_argument("--config", default="configs/llama_8b_layers.yaml")
    parser.add_argument("--window", default="4k")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.97, 1.0, 1.03])
    parser.add_argument("--limit", type=float, default=900, help="seconds for one run")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()

    memory = [] if any(o.startswith("device_memory=") for o in args.overrides) else [f"device_memory={smi('total')}"]
    common = [args.program, "train", args.config, *memory, f"model.sliding_window={args.window}",
              "evaluation.every=0", *args.overrides]
    code, text = run([*common, "--max-length"])
    match = re.search(r"multiples of (\d+): (\d+)", text)
    if code != 0 or not match:
        sys.exit(text)
    unit, longest = int(match[1]), int(match[2])
    print(f"`--max-length`: {longest} tokens, in multiples of {unit}\n")
    print("| tokens | share | dry run, GiB | in use, GiB | in use / dry run | seconds of the step |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = folder / "tokens.h5"
        tokens = int(max(args.shares) * longest) + 2 * unit
        code, text = run([args.program, "data", "synth", "--kind", "markov", "--tokens", str(tokens), "--length",
                          str(tokens), "--vocab-size", "128256", "--out", str(store), "--quiet"])
        if code != 0:
            sys.exit(text)
        before = smi("used")
        for share in args.shares:
            length = int(share * longest) // unit * unit
            shape = [f"train.sequence_length={length}", f"train.batch_tokens={length}", "train.micro_batch=1",
                     "train.steps=2", "checkpoint.every=0", f"data.train={store}"]
            # The limit is what is tested: nothing refuses beforehand.
            command = [*common, *shape, "device_memory=null", f"output_dir={folder / str(length)}"]
            dry = predicted(run([*command, "--dry-run"])[1])
            seconds, most, said = one_step(command, folder / str(length), args.limit)
            used = most - before
            print(f"| {length} | {share:.2f} | {dry / 2**30:.2f} | {used / 2**30:.2f} | {used / dry:.3f} | "
                  f"{f'{seconds:.1f}' if seconds else 'not done: ' + said} |", flush=True)


if __name__ == "__main__":
    main()
