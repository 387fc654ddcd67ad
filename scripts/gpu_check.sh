#!/usr/bin/env bash
# What a GPU says about Farspan, in under 8 minutes: tests, speeds beside PyTorch's, training steps
# with their memory, the loss curve beside the CPU's, and NCCL. Writes one report in Markdown, fit for
# docs/benchmarks, and raw logs beside it. Runs in a source tree with build/cuda, and in a bundle.
#
#   scripts/gpu_check.sh [--out DIR]            all sections; the report goes to DIR, or below runs/gpu_check
#   scripts/gpu_check.sh --out DIR --sections tests,attention
#   scripts/gpu_check.sh --out DIR --quick      the same at smaller sizes, about 2 minutes
#   scripts/gpu_check.sh --list                 the sections and their limits
#   scripts/gpu_check.sh --out DIR --device cpu rehearsal without a GPU: tiny sizes, nothing measured
#
# A section that fails or runs out of time is reported as failed, and the next one starts. Needs
# python3; PyTorch, where it can be imported, is measured beside Farspan.
# Exit status: 0 all sections passed, 1 one failed, 2 no GPU, no programs or wrong usage.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
  sed -n '2,15s/^# \{0,1\}//p' "$0"
  exit
fi
device=cuda previous=''
for argument in "$@"; do
  case "$argument" in
    --device=*) device="${argument#*=}" ;;
    --list) device=none ;;
    *) if [ "$previous" = --device ]; then device="$argument"; fi ;;
  esac
  previous="$argument"
done
if [ "$device" = cuda ] && ! nvidia-smi --list-gpus 2>/dev/null | grep -q .; then
  echo "gpu_check: no GPU here (nvidia-smi lists none). Run it on a machine with an NVIDIA GPU and its driver;" >&2
  echo "           --device cpu rehearses the check without one" >&2
  exit 2
fi
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
exec python3 "$here/gpu_check/main.py" "$@"
