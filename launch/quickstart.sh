#!/usr/bin/env bash
# From a bare clone to a trained model: installs what is missing, builds Farspan, makes the data,
# trains a small model on two ranks with ring attention, and says what came of it. Interrupt it and
# start it again: it goes on where it was.
#
#   launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/quickstart
say() { printf '\n== %s\n' "$*"; }

say "1/4  packages"
scripts/setup.sh

say "2/4  building build/cpu/farspan (minutes the first time, seconds after)"
mkdir -p build
if ! cmake --preset cpu >build/configure.log 2>&1; then
  cat build/configure.log
  exit 2
fi
cmake --build --preset cpu --target farspan

say "3/4  data"
scripts/make_kjv.sh

say "4/4  training on two ranks: mpirun -np 2 build/cpu/farspan train configs/quickstart.yaml"
if grep -qs '"status": "finished"' "$run/summary.json"; then
  echo "$run holds a finished run: nothing is left to train. To start anew: rm -r $run"
fi
status=0
launch/mpirun.sh 2 configs/quickstart.yaml || status=$?
if [ "$status" = 75 ]; then
  say "stopped with a checkpoint; start $0 again to go on from there"
  exit 75
elif [ "$status" != 0 ]; then
  say "training ended with exit code $status; its message is above, and in $run/run.log"
  exit "$status"
fi

python3 - "$run" <<'PYTHON'
import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
s = json.loads((run / "summary.json").read_text())


def show(label, text):
    print(f"  {label:<18}{text}")


def loss(nats, bits):
    if nats is None:
        return "unknown"
    return f"{nats:.3f} nats" + (f" = {bits:.3f} bits per byte" if bits is not None else "")


print(f"\n== Done: {s['steps']} steps, {s['tokens']:,} tokens, {s['parameters']:,} parameters\n")
show("loss at start", loss(s["loss_first"], s["bits_per_byte_first"]))
show("loss at end", loss(s["loss_last"], s["bits_per_byte_last"]))
show("held-out loss", loss(s["eval_loss_last"], s["eval_bits_per_byte_last"]))
if s["tokens_per_second"] is not None:
    show("speed", f"{s['tokens_per_second']:,.0f} tokens/s on {s['ranks']} ranks "
                  f"({s['context']} share each sequence)")
if s["device"]:
    show("each rank", s["device"])
if s["sample"]:
    print("\nWhat the model writes (it has seen few tokens: expect letters, not sense):\n")
    for line in s["sample"].splitlines():
        print(f"  | {line}")
print("\nWhere everything is:\n")
show("loss curve", s["plot"] or "not drawn (apt-get install gnuplot-nox)")
show("metrics", run / "metrics.jsonl")
show("TensorBoard", f"tensorboard --logdir {run}")
show("checkpoints", s["checkpoint"] or run / "checkpoints")
show("configuration", run / "config.resolved.yaml")
show("log", run / "run.log")
cpus = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " \
       "OMPI_MCA_rmaps_base_oversubscribe=1"
print(f"""
What to try next:

  longer           launch/mpirun.sh 2 configs/quickstart.yaml train.steps=300
  four ranks       launch/mpirun.sh 4 configs/quickstart.yaml parallel.context=4 output_dir=runs/four
  no MPI           build/cpu/farspan train configs/quickstart.yaml --local-ranks 2 output_dir=runs/threads
  what it needs    build/cpu/farspan train configs/quickstart.yaml --dry-run --ranks 8
  what is inside   build/cpu/farspan inspect {s['checkpoint'] or run}
  every key        build/cpu/farspan config configs/quickstart.yaml --resolved --show-origin

Plain mpirun as root, or with more ranks than cores, needs
  {cpus}
""")
PYTHON
