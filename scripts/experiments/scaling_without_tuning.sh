#!/usr/bin/env bash
# Linear interpolation, NTK and YaRN on a model that is not trained any further. Writes
# docs/experiments/scaling_without_tuning.md.
#
#   scripts/experiments/scaling_without_tuning.sh            three seeds
#   scripts/experiments/scaling_without_tuning.sh --quick    one seed, shorter
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 scripts/experiments/scaling_without_tuning.py "$@"
