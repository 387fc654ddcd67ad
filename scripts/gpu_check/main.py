#!/usr/bin/env python3
"""scripts/gpu_check.sh, after it has found a GPU: runs the sections and writes the report."""

import argparse
import datetime
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import measure
import tests
import training
from runner import Check, Failure

# In the order of the run: what must not be lost comes first. Limits in seconds; their sum is below
# 8 minutes, and few sections use theirs up.
SECTIONS = {
    "tests": ("GPU tests", 110, tests.gpu_tests),
    "peaks": ("Peaks: copies and matrix products", 40, measure.peaks),
    "attention": ("Attention beside PyTorch's SDPA", 90, measure.attention),
    "train": ("Training steps", 110, training.steps),
    "loss": ("Loss curve beside the CPU's", 60, training.loss_curves),
    "nccl": ("NCCL with several ranks on one GPU", 60, tests.nccl),
}


def arguments():
    parser = argparse.ArgumentParser(prog="gpu_check.sh")
    parser.add_argument("--out", help="folder for report.md and raw/ (made; must not hold a report); "
                        "default runs/gpu_check/DATE-TIME")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="names, a,b,c")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--list", action="store_true", help="print the sections and leave")
    args = parser.parse_args()
    if args.list:
        for name, (title, limit, _) in SECTIONS.items():
            print(f"{name:<10} {limit:>4} s  {title}")
        sys.exit(0)
    unknown = [name for name in args.sections.split(",") if name not in SECTIONS]
    if unknown:
        parser.error(f"no section '{unknown[0]}' (there are {', '.join(SECTIONS)})")
    if not args.out:
        args.out = f"runs/gpu_check/{datetime.datetime.now():%Y%m%d-%H%M%S}"
    return args


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else ""


def hardware(check):
    """What the figures depend on, (label, text) each."""
    rows = [("date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"))]
    program = check.program("farspan")
    rows.append(("Farspan", first_line([str(program), "--version"]) if program else "not built"))
    if check.on_gpu:
        fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
        for i, line in enumerate(subprocess.run(
                ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=60).stdout.splitlines()):
            name, driver, memory, sm, mem, power = [cell.strip() for cell in line.split(",")]
            rows.append((f"GPU {i}", f"{name}, {memory}, at most {sm} (memory {mem}), {power}"))
            check.facts.setdefault("gpu", name)
            if i == 0:
                rows.insert(2, ("driver", driver))
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    rows.append(("CPU", f"{cpu}, {os.cpu_count()} hardware threads"))
    torch = first_line([sys.executable, "-c", "import torch; print(torch.__version__, 'CUDA',"
                        "torch.version.cuda, 'cuDNN', torch.backends.cudnn.version())"])
    rows.append(("PyTorch", torch or "cannot be imported: nothing is compared with it"))
    check.facts["torch"] = bool(torch)
    return rows


def write_report(check, machine, done, seconds):
    gpu = check.facts.get("gpu", "no GPU")
    lines = [f"# GPU check: {gpu}", ""]
    if not check.on_gpu:
        lines += ["**A rehearsal on the CPU at tiny sizes: it shows that the check works, and no figure",
                  "here says anything about a GPU.**", ""]
    lines += [f"    {check.facts['command']}", ""]
    lines += [f"* {label}: {text}" for label, text in machine]
    lines += [f"* {seconds:.0f} s in all; raw logs: `raw/`", "", "## What failed", ""]
    failures = [f"* **{name}**: {text}" for name, section in done.items() for text in section["failures"]]
    lines += failures or ["Nothing."]
    lines += ["", "| section | result | time |", "| --- | --- | --- |"]
    lines += [f"| {section['title']} | {'failed' if section['failures'] else 'passed'} | "
              f"{section['seconds']:.0f} s |" for section in done.values()]
    for section in done.values():
        lines += ["", f"## {section['title']}", ""]
        lines += ["\n\n".join(section["blocks"]) or "No figures."]
        if section["commands"]:
            lines += ["", *(f"    {command}" for command in section["commands"])]
    temporary = check.out / "report.md.part"
    temporary.write_text("\n".join(lines) + "\n")
    temporary.replace(check.out / "report.md")


def main():
    args = arguments()
    root = Path(__file__).resolve().parents[2]
    check = Check(root=root, out=Path(args.out).resolve(), device=args.device, quick=args.quick,
                  bundle=(root / "libexec").is_dir())
    check.facts["command"] = " ".join(["scripts/gpu_check.sh", *sys.argv[1:]])
    if (check.out / "report.md").exists():
        print(f"gpu_check: {check.out} holds a report already; choose another --out", file=sys.stderr)
        return 2
    if check.program("farspan") is None:
        print("gpu_check: farspan is not built here: cmake --preset cuda && cmake --build --preset cuda",
              file=sys.stderr)
        return 2
    check.raw.mkdir(parents=True, exist_ok=True)
    machine = hardware(check)
    done, begin = {}, time.monotonic()
    chosen = args.sections.split(",")
    try:
        if "loss" in chosen:
            training.start_cpu_curve(check)  # beside the tests, where nothing is timed
        for name, (title, limit, section) in SECTIONS.items():
            if name not in chosen:
                continue
            check.failures, check.commands, check.blocks = [], [], []
            began = time.monotonic()
            check.deadline = began + limit
            print(f"gpu_check: {title} (at most {limit} s)", flush=True)
            try:
                section(check)
            except Failure as failure:
                check.fail(str(failure))
            except Exception:  # a bug of the check's own must not lose the other sections
                check.fail("the check itself broke: " + traceback.format_exc().splitlines()[-1])
                (check.raw / f"{name}.traceback").write_text(traceback.format_exc())
            done[name] = {"title": title, "failures": check.failures, "blocks": check.blocks,
                          "commands": check.commands, "seconds": time.monotonic() - began}
            for text in check.failures:
                print(f"gpu_check:   failed: {text}", flush=True)
            write_report(check, machine, done, time.monotonic() - begin)
    finally:
        for process in check.background:
            if process.poll() is None:
                check.kill(process)
        shutil.rmtree(check.out / "work", ignore_errors=True)  # stores and run folders: gigabytes
    failed = [name for name, section in done.items() if section["failures"]]
    print(f"gpu_check: {check.out / 'report.md'}: {len(done) - len(failed)} of {len(done)} sections passed, "
          f"{time.monotonic() - begin:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
