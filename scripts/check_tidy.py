#!/usr/bin/env python3
"""Runs clang-tidy over the sources that the cpu preset builds, remembering what was clean.

    scripts/check_tidy.py                    all sources of src/, kernels/ and tests/
    scripts/check_tidy.py src/core kernels   those below these folders or files

A file is clean for as long as it, every header of ours that it includes, its compile command and
.clang-tidy stay as they are: build/tidy holds one empty file per clean content. Needs a built cpu
preset (its compile commands, generated headers and dependency list). Exit status: 0 clean, 1
findings, 2 cannot run.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cpu"
CACHE = ROOT / "build" / "tidy"
# As scripts/setup.sh fetches it.
VERSION = "23.1.4"
TIDY = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / (
    f"farspan/clang-tidy/{VERSION}/bin/clang-tidy")


def fail(text):
    print(f"check_tidy: {text}", file=sys.stderr)
    sys.exit(2)


def dependencies():
    """Object file -> headers and sources it was built from, by ninja's own records."""
    listed = subprocess.run(["ninja", "-C", str(BUILD), "-t", "deps"], capture_output=True,
                            text=True, check=True).stdout
    found, current = {}, None
    for line in listed.splitlines():
        if line.startswith("    ") and current is not None:
            current.append(line.strip())
        elif ": #deps" in line:
            current = found.setdefault(line.split(": #deps")[0], [])
    return found


def object_of(command):
    match = re.search(r" -o (\S+)", command)
    return match.group(1) if match else ""


def flags_for_clang(command):
    """g++'s own include folder, last: clang has no omp.h of its own without its runtime."""
    if "-fopenmp" not in command:
        return []
    folder = subprocess.run(["g++", "-print-file-name=include"], capture_output=True,
                            text=True).stdout.strip()
    return [f"--extra-arg=-idirafter{folder}"]


def content_key(source, command, deps):
    digest = hashlib.sha256()
    digest.update(VERSION.encode())
    for folder in Path(source).parents:
        if folder.is_relative_to(ROOT) and (folder / ".clang-tidy").is_file():
            digest.update((folder / ".clang-tidy").read_bytes())
    digest.update(command.encode())
    ours = {os.path.normpath(os.path.join(BUILD, d)) for d in deps}
    for file in sorted(f for f in ours | {source} if f.startswith(str(ROOT))):
        path = Path(file)
        digest.update(file.encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def run_one(entry):
    started = time.monotonic()
    result = subprocess.run(
        [str(TIDY), "--quiet", "-p", str(BUILD), *flags_for_clang(entry["command"]),
         "--extra-arg=-Wno-unknown-warning-option", "--extra-arg=-Wno-ignored-optimization-argument",
         entry["file"]], capture_output=True, text=True, cwd=ROOT)
    text = result.stdout.strip()
    if result.returncode != 0 and not text:
        text = result.stderr.strip()
    return entry, result.returncode, text, time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=["src", "kernels", "tests"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--slowest", action="store_true", help="list the five slowest files")
    options = parser.parse_args()
    if not os.access(TIDY, os.X_OK):
        fail(f"no clang-tidy {VERSION} at {TIDY}; run scripts/setup.sh")
    if not (BUILD / "compile_commands.json").is_file():
        fail("no build/cpu: cmake --preset cpu && cmake --build --preset cpu")
    wanted = [str((ROOT / p).resolve()) for p in options.paths]
    deps = dependencies()
    CACHE.mkdir(parents=True, exist_ok=True)
    todo, clean, seen = [], 0, set()
    for entry in json.loads((BUILD / "compile_commands.json").read_text()):
        file = entry["file"]
        inside = any(file == w or file.startswith(w + "/") for w in wanted)
        if not inside or file in seen or str(BUILD) in file or not file.endswith(".cpp"):
            continue
        seen.add(file)
        entry["key"] = content_key(file, entry["command"], deps.get(object_of(entry["command"]), []))
        if (CACHE / entry["key"]).exists():
            clean += 1
        else:
            todo.append(entry)
    if not seen:
        fail(f"no source of the cpu preset lies in {' '.join(options.paths)}")

    bad, times = 0, []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for entry, status, text, seconds in pool.map(run_one, todo):
            times.append((seconds, os.path.relpath(entry["file"], ROOT)))
            if status == 0 and "warning:" not in text:
                (CACHE / entry["key"]).touch()
                continue
            bad += 1
            print(text.replace(str(ROOT) + "/", ""), flush=True)
    if options.slowest:
        for seconds, file in sorted(times, reverse=True)[:5]:
            print(f"check_tidy: {seconds:6.1f} s {file}")
    print(f"check_tidy: {len(todo)} files checked in {sum(t for t, _ in times):.0f} CPU seconds, "
          f"{clean} unchanged since they were clean, {bad} with findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
