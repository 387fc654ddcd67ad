"""Programs with a time limit, and what a section of the check has to say."""

import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path


class Failure(Exception):
    """Why a section cannot go on."""


@dataclass
class Result:
    """What a program did. `code` is None where it ran out of time."""
    command: str
    code: int | None
    seconds: float
    output: str
    log: Path

    @property
    def ok(self):
        return self.code == 0

    def why(self):
        """One line on how it ended, with the end of what it wrote."""
        ending = (f"stopped after {self.seconds:.0f} s" if self.code is None
                  else f"exit code {self.code}")
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        told = [line for line in lines if "error" in line.lower()][-1:] or lines[-1:]
        return f"`{self.command}`: {ending}{': ' + told[0][:240] if told else ''} ({self.log.name})"


@dataclass
class Check:
    """One run of the check: where its programs are, what it may use, where its files go."""
    root: Path
    out: Path
    device: str
    quick: bool
    bundle: bool
    deadline: float = 0.0  # of the section at hand, time.monotonic()
    failures: list = field(default_factory=list)
    commands: list = field(default_factory=list)
    blocks: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)  # what later sections and the summary use
    background: list = field(default_factory=list)

    @property
    def on_gpu(self):
        return self.device == "cuda"

    @property
    def raw(self):
        return self.out / "raw"

    def program(self, name):
        """Path of one of Farspan's programs; None where it was not built."""
        folder = self.root / ("bin" if self.bundle else f"build/{'cuda' if self.on_gpu else 'cpu'}")
        for path in (folder / name, folder / "tests" / name):
            if path.exists():
                return path
        return None

    def need(self, name):
        path = self.program(name)
        if path is None:
            raise Failure(f"{name} is not built")
        return path

    def mpirun(self, ranks):
        own = self.root / "bin" / "mpirun"
        start = [str(own)] if own.exists() else ["mpirun", "--allow-run-as-root", "--oversubscribe"]
        return start + ["--bind-to", "none", "-np", str(ranks)]

    def shown(self, command):
        text = shlex.join(str(part) for part in command)
        return text.replace(f"{self.root}/", "").replace(f"{self.out}/", "OUT/")

    def left(self):
        return max(1.0, self.deadline - time.monotonic())

    def say(self, *markdown):
        self.blocks.extend(markdown)

    def table(self, header, rows):
        if rows:
            lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
            lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
            self.blocks.append("\n".join(lines))

    def fail(self, text):
        self.failures.append(text)

    def start(self, command, log, env=None):
        """Starts a program in a process group of its own, its output going to raw/LOG.log."""
        path = self.raw / f"{log}.log"
        with path.open("w") as stream:
            process = subprocess.Popen([str(part) for part in command], stdout=stream,
                                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                       env={**os.environ, **(env or {})}, cwd=self.root,
                                       start_new_session=True)
        process.log_path, process.began = path, time.monotonic()
        process.shown = self.shown(command)
        self.commands.append(process.shown)
        return process

    @staticmethod
    def kill(process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def finish(self, process, limit):
        """Waits for it at most `limit` seconds and not beyond the section's end, then kills it."""
        try:
            code = process.wait(timeout=max(0.1, min(limit, self.left())))
        except subprocess.TimeoutExpired:
            self.kill(process)
            code = None
        return Result(process.shown, code, time.monotonic() - process.began,
                      process.log_path.read_text(errors="replace"), process.log_path)

    def run(self, command, log, limit=600.0, env=None):
        return self.finish(self.start(command, log, env), limit)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return float("nan")
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
