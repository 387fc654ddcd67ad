"""Killed at random moments and started again, a run ends as if nothing had happened.

  kill_resume_test.py [--kills N] [--seed S] [--mpi]
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time

from farspan_cli import (ENVIRONMENT, Workspace, command, digest, metrics, train)


def start(workspace, name, steps, ranks, mpi, *more):
    words = command("train", workspace.config, f"output_dir={workspace.run_folder(name)}",
                    f"train.steps={steps}", "checkpoint.every=2", "checkpoint.keep_last=2",
                    "--quiet", *more, ranks=ranks, mpi=mpi)
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, start_new_session=True)


def victims(process, mpi):
    """The processes that a kill may hit: all of the job, or one rank of it."""
    if not mpi:
        return [process.pid]
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True,
                              check=False).stdout.split()
    return [process.pid, *map(int, children)]


def remove_folder(folder):
    """A rank whose mpirun was killed may write into the folder for a moment longer."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{folder} does not go away")


def run_with_kills(workspace, name, steps, ranks, mpi, kills, rng, whole_run_seconds):
    killed = starts = 0
    while True:
        starts += 1
        assert starts < 4 * kills + 20, "the run makes no progress"
        process = start(workspace, name, steps, ranks, mpi)
        if killed < kills:
            time.sleep(rng.uniform(0.0, 1.1) * whole_run_seconds)
            if process.poll() is None:
                try:
                    os.kill(rng.choice(victims(process, mpi)), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    pass
        output, _ = process.communicate(timeout=240)
        try:
            os.killpg(process.pid, signal.SIGKILL)  # ranks that outlived a killed mpirun
        except ProcessLookupError:
            pass
        if process.returncode == 0:
            if killed >= kills:
                return killed, starts
            # Finished before the next kill was due: go on with a longer run of the same course is
            # not the same run, so begin anew in the same folder.
            remove_folder(workspace.run_folder(name))
            continue
        assert process.returncode in (-9, 137, 1, 6), f"exit {process.returncode}\n{output}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--mpi", action="store_true")
    args = parser.parse_args()
    print(f"seed {args.seed}, {args.kills} kills, {'mpirun' if args.mpi else 'threads'}")
    rng = random.Random(args.seed)
    workspace = Workspace()
    try:
        begin = time.time()
        train(workspace, "unbroken", f"train.steps={args.steps}", "checkpoint.every=2",
              "checkpoint.keep_last=2", ranks=2, mpi=args.mpi)
        seconds = time.time() - begin
        killed, starts = run_with_kills(workspace, "killed", args.steps, 2, args.mpi, args.kills, rng,
                                        seconds)
        expected = digest(workspace.run_folder("unbroken"))
        found = digest(workspace.run_folder("killed"))
        steps = [row["step"] for row in metrics(workspace.run_folder("killed"))]
        print(f"{killed} kills, {starts} starts; unbroken run {seconds:.1f} s")
        print(f"unbroken {expected}\nkilled   {found}")
        assert found == expected, "the weights differ"
        assert steps == list(range(1, args.steps + 1)), f"metrics hold the steps {steps}"
        losses = [[row["loss"] for row in metrics(workspace.run_folder(n))]
                  for n in ("unbroken", "killed")]
        assert losses[0] == losses[1], "the losses differ"
        print("passed")
    finally:
        workspace.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
