#!/usr/bin/env bash
# Five ways from 256 tokens of context to 2048 on a small model: what each retrieves and how well it
# predicts text, against length. Writes docs/experiments/context_extension.md with its plots.
#
#   scripts/experiments/context_extension.sh            three seeds
#   scripts/experiments/context_extension.sh --quick    one seed, shorter, in under five minutes;
#                                                       writes runs/experiments/context_extension_quick/
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 scripts/experiments/context_extension.py "$@"
