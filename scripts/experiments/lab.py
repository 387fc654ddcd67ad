"""What the experiments share: data, runs, evaluations, tables, plots. Python's standard library only.

A lab has a folder. What lies there already is not computed again: start an experiment that was
interrupted once more, and it goes on where it was.

    lab = Lab(folder)
    lab.synth("passkey256", kind="passkey", length=256, tokens="8M")
    run = lab.train("base", {...})                  # a configuration as a dictionary
    cells = lab.evaluate("passkey", run, lengths=[256, 1024], depths=5)
    lab.together([lambda: ..., lambda: ...])        # as many at a time as there are cores
"""

import concurrent.futures
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FARSPAN = Path(os.environ.get("FARSPAN", ROOT / "build" / "cpu" / "farspan"))


def fail(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def cores():
    return len(os.sched_getaffinity(0))


class Lab:
    def __init__(self, folder, quiet=False):
        self.folder = Path(folder)
        self.quiet = quiet
        self.began = time.monotonic()
        self.guard, self.locks = threading.Lock(), {}
        if not os.access(FARSPAN, os.X_OK):
            fail(f"{FARSPAN} is not built: cmake --preset cpu && cmake --build --preset cpu")
        (self.folder / "data").mkdir(parents=True, exist_ok=True)

    def say(self, text):
        if not self.quiet:
            print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def farspan(self, *arguments, threads=1):
        """Runs the program; its standard output. Ends the experiment where it fails."""
        words = [str(FARSPAN), *map(str, arguments)]
        result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False,
                                env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        if result.returncode != 0:
            fail(f"exit code {result.returncode} of: {' '.join(words)}\n{result.stderr[-2000:]}")
        return result.stdout

    def synth(self, name, kind, length, tokens, seed=1, labels="answer"):
        """A token store of synthetic documents; its path."""
        path = self.folder / "data" / f"{name}.h5"
        if not path.with_suffix(".h5.manifest.json").exists():
            self.say(f"data {name}")
            self.farspan("data", "synth", "--kind", kind, "--length", length, "--tokens", tokens,
                         "--seed", seed, "--labels", labels, "--out", path, "--force", "--quiet")
        return path

    def text(self):
        """Paths of the King James Bible, training and held-out."""
        train, val = ROOT / "data" / "kjv.train.h5", ROOT / "data" / "kjv.val.h5"
        if not (train.exists() and val.exists()):
            subprocess.run([ROOT / "scripts" / "make_kjv.sh"], check=True, cwd=ROOT,
                           env={**os.environ, "FARSPAN": str(FARSPAN)})
        return train, val

    def train(self, name, config, threads=1):
        """Trains, or goes on, and returns the run's folder. Jobs that want the same run train it once."""
        with self.guard:
            lock = self.locks.setdefault(name, threading.Lock())
        with lock:
            return self.train_alone(name, config, threads)

    def train_alone(self, name, config, threads):
        run = self.folder / "runs" / name
        source = run.parent / f"{name}.yaml"
        source.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"name": run.name, "output_dir": str(run), **config}, indent=1) + "\n"
        if not source.exists() or source.read_text() != text:
            shutil.rmtree(run, ignore_errors=True)  # of another experiment
            source.write_text(text)  # JSON is YAML
        summary = run / "summary.json"
        if summary.exists() and json.loads(summary.read_text())["status"] == "finished":
            return run
        began = time.monotonic()
        self.farspan("train", source, "--quiet", threads=threads)
        self.say(f"trained {name} in {time.monotonic() - began:.0f} s")
        return run

    def evaluate(self, what, run, *overrides, name="", threads=1, **options):
        """The JSON that `farspan eval` writes, as a dictionary."""
        words = []
        for key, value in options.items():
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            words += [f"--{key.replace('_', '-')}", text]
        out = Path(run).parent / f"{Path(run).name}.{name or what}.json"
        command = [what, *words, *overrides]
        if out.exists():
            kept = json.loads(out.read_text())
            if kept["command"] == command and out.stat().st_mtime > newest_time(run):
                return kept["result"]
        result = json.loads(self.farspan("eval", what, "--model", run, *words, "--json", "--quiet",
                                         *overrides, threads=threads))
        out.write_text(json.dumps({"command": command, "result": result}, indent=1) + "\n")
        return result

    def together(self, jobs):
        """Runs jobs, each on one core, as many at a time as there are cores; their results."""
        with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
            return [f.result() for f in [pool.submit(job) for job in jobs]]


def newest_time(run):
    return max((p.stat().st_mtime for p in (Path(run) / "checkpoints").glob("step_*")), default=0)


def metrics(run, kind="train"):
    """Rows of metrics.jsonl."""
    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def mean_and_deviation(values, digits=2):
    """"0.95 +- 0.02" (sample standard deviation), or the one value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(header, rows):
    """Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def length_text(length):
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)


def plot(path, title, x_label, y_label, series, log_x=False, y_range=""):
    """Lines with points through gnuplot (SVG). series: {name: [(x, y), ...]}. False without gnuplot."""
    if not shutil.which("gnuplot"):
        return False
    script = [f"set terminal svg size 760,480 font 'DejaVu Sans,13' background '#ffffff'",
              f"set output '{path}'", f"set title '{title}'", f"set xlabel '{x_label}'",
              f"set ylabel '{y_label}'", "set grid lc '#dddddd'", "set key outside right top",
              f"set yrange [{y_range or '*:*'}]"]
    if log_x:
        ticks = sorted({x for points in series.values() for x, _ in points})
        script.append("set logscale x 2")
        script.append("set xtics (" + ", ".join(f"'{length_text(int(x))}' {x}" for x in ticks) + ")")
    blocks, parts = [], []
    for i, (name, points) in enumerate(series.items()):
        blocks.append(f"$d{i} << EOD\n" + "\n".join(f"{x} {y}" for x, y in points) + "\nEOD")
        parts.append(f"$d{i} using 1:2 with linespoints lw 2 pt {i + 5} title '{name}'")
    script = blocks + script + ["plot " + ", ".join(parts)]
    result = subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=False,
                            capture_output=True)
    if result.returncode != 0:
        fail(f"gnuplot: {result.stderr}")
    return True


def hardware():
    """One line: processor, cores, instructions, and the program's version."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    version = subprocess.run([str(FARSPAN), "--version"], capture_output=True, text=True,
                             check=False).stdout.strip()
    return f"{model}, {cores()} cores; {version}"
