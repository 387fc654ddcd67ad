#!/usr/bin/env bash
# GrowLength against fixed length, at equal tokens and at equal time, and the time a token takes at
# each length against a model of matmul and attention. Writes docs/experiments/growlength.md.
#
#   scripts/experiments/growlength.sh            three seeds
#   scripts/experiments/growlength.sh --quick    one seed, shorter; writes runs/experiments/growlength_quick/
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 scripts/experiments/growlength.py "$@"
