#!/usr/bin/env bash
# Everything a change must pass, from a bare clone: set-up, build, tests (fast ones first, then the
# slow), and a build of the CUDA preset where nvcc is installed.
#
#   scripts/test.sh               all of it
#   scripts/test.sh --fast        without the tests labelled slow and without CUDA
#   scripts/test.sh --no-cuda     without the CUDA preset
set -euo pipefail
cd "$(dirname "$0")/.."

slow=yes cuda=yes
for argument in "$@"; do
  case "$argument" in
    --fast) slow=no cuda=no ;;
    --no-cuda) cuda=no ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "test: unknown option '$argument' (see --help)" >&2
      exit 2
      ;;
  esac
done

jobs="$(nproc)"
began=$SECONDS
say() { echo "test: $* ($((SECONDS - began)) s)"; }

scripts/setup.sh

say "building preset cpu"
mkdir -p build
cmake --preset cpu >build/configure.log 2>&1 || {
  cat build/configure.log
  rm -f build/configure.log
  exit 1
}
rm -f build/configure.log
cmake --build --preset cpu -- -j "$jobs"

say "fast tests"
ctest --preset cpu
if [ "$slow" = yes ]; then
  say "slow tests"
  # One at a time: they measure, kill and race, and start ranks of their own.
  ctest --preset cpu-all --label-regex '^slow$'
fi

cuda_result="not built (--no-cuda or --fast)"
if [ "$cuda" = yes ]; then
  PATH="$PATH:/usr/local/cuda/bin"
  if command -v nvcc >/dev/null; then
    say "building preset cuda"
    cmake --preset cuda
    # What differs from the cpu preset: the program with its CUDA parts, and their tests.
    cmake --build --preset cuda --target farspan tests/kernels/cuda/all comm_nccl_test -- -j "$jobs"
    cuda_result="built"
    if nvidia-smi --list-gpus >/dev/null 2>&1; then
      say "tests on the GPU"
      ctest --preset cuda --label-regex '^gpu$'
      cuda_result="built and tested"
    fi
  else
    cuda_result="not built: no nvcc"
  fi
fi

say "passed: cpu preset built and tested$([ "$slow" = yes ] || echo ' (fast tests only)'); cuda preset $cuda_result"
