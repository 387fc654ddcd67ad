#!/usr/bin/env bash
# Installs what Farspan is built and run with, from Debian's packages. Run it as often as you like:
# what is there already is left alone, and then no network is needed.
#
#   scripts/setup.sh            everything for building, testing and the quickstart
#   scripts/setup.sh --bench    also PyTorch and numpy, in a virtual environment outside the repository
#   scripts/setup.sh --check    install nothing; exit 1 and name what is missing
set -euo pipefail

required=(g++ cmake ninja-build ccache git pkg-config python3
  libcli11-dev libfmt-dev libspdlog-dev nlohmann-json3-dev libyaml-cpp-dev libhdf5-dev
  libprotobuf-dev protobuf-compiler libdnnl-dev libxxhash-dev libopenmpi-dev openmpi-bin
  libgtest-dev libgmock-dev libbenchmark-dev)
# Without these the build and the training work; pictures, the quickstart's text or the checks of
# style do not.
optional=(gnuplot-nox fonts-dejavu-core bible-kjv bible-kjv-text clang-format shellcheck)

bench=no check=no
for argument in "$@"; do
  case "$argument" in
    --bench) bench=yes ;;
    --check) check=yes ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "setup: unknown option '$argument' (see --help)" >&2
      exit 2
      ;;
  esac
done

say() { echo "setup: $*"; }

missing() {  # the packages among the arguments that are not installed
  local package
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || echo "$package"
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    say "need root to install packages, and there is no sudo. Run as root: $*" >&2
    exit 2
  fi
}

updated=no
install() {
  if [ "$updated" = no ]; then
    say "apt-get update"
    as_root apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
    updated=yes
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

need_dpkg() {
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null && return
  say "this is not a Debian or Ubuntu system. Install the equivalents of: ${required[*]}" >&2
  exit 2
}

install_packages() {
  local wanted extra package
  mapfile -t wanted < <(missing "${required[@]}")
  mapfile -t extra < <(missing "${optional[@]}")
  if [ "${#wanted[@]}" = 0 ] && [ "${#extra[@]}" = 0 ]; then
    say "all $((${#required[@]} + ${#optional[@]})) packages are installed"
    return
  fi
  if [ "$check" = yes ]; then
    say "missing: ${wanted[*]:-} (optional: ${extra[*]:-none})"
    [ "${#wanted[@]}" = 0 ] && return
    exit 1
  fi
  if [ "${#wanted[@]}" != 0 ]; then
    say "installing ${wanted[*]}"
    if ! install "${wanted[@]}"; then
      say "apt-get could not install these packages; its message is above. They are in Debian 12 main." >&2
      exit 2
    fi
  fi
  # One by one: one that cannot be had must not keep the others away.
  for package in "${extra[@]}"; do
    say "installing $package (optional)"
    install "$package" || say "warning: $package cannot be had; going on without it"
  done
}

have_nvcc() { command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }

report_cuda() {
  if have_nvcc; then
    say "nvcc found: the cuda preset can be built (cmake --preset cuda)"
  else
    say "no nvcc on PATH or in /usr/local/cuda/bin: the cuda preset is skipped (the CPU build needs none)"
  fi
}

# The headers of NVIDIA's cuDNN frontend (MIT and Apache 2.0), which the cuda preset compiles attention
# through cuDNN with. They come in a Python wheel; its other contents are left out. Any Python does.
# The version is that of scripts/cmake/cuda.cmake.
cudnn_frontend_version=1.32.0
install_cudnn_frontend() {
  local folder="${XDG_CACHE_HOME:-$HOME/.cache}/farspan/cudnn-frontend/$cudnn_frontend_version"
  have_nvcc || return 0
  if [ -f "$folder/include/cudnn_frontend.h" ]; then
    say "cuDNN's frontend headers $cudnn_frontend_version are in $folder"
    return
  fi
  if [ "$check" = yes ]; then
    say "missing (optional): cuDNN's frontend headers $cudnn_frontend_version; without them the cuda preset has its own attention kernels only"
    return
  fi
  python3 -m pip --version >/dev/null 2>&1 || install python3-pip
  say "fetching cuDNN's frontend headers $cudnn_frontend_version"
  local fresh
  mkdir -p "$folder"
  fresh=$(mktemp -d "$folder.XXXXXX")
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
      --python-version 3.11 --platform manylinux_2_28_x86_64 --dest "$fresh" \
      "nvidia-cudnn-frontend==$cudnn_frontend_version" &&
    python3 -c '
import glob, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel:
    wheel.extractall(sys.argv[1], [n for n in wheel.namelist()
                                   if n.startswith("include/") or "LICENSE" in n or "NOTICE" in n])
' "$fresh" && mv "$fresh/include" "$folder/"; then
    mv "$fresh"/*.dist-info "$folder/licenses" 2>/dev/null || true
  else
    say "warning: cuDNN's frontend headers cannot be had; the cuda preset then has its own attention kernels only"
  fi
  rm -rf "$fresh"
}

# clang-tidy that leaves system headers alone: less than half the time of Debian 12's. The version is
# that of scripts/check_tidy.py.
clang_tidy_version=23.1.4
install_clang_tidy() {
  local folder="${XDG_CACHE_HOME:-$HOME/.cache}/farspan/clang-tidy/$clang_tidy_version"
  if [ -x "$folder/bin/clang-tidy" ]; then
    say "clang-tidy $clang_tidy_version is in $folder"
    return
  fi
  if [ "$check" = yes ]; then
    say "missing (optional): clang-tidy $clang_tidy_version"
    return
  fi
  python3 -m pip --version >/dev/null 2>&1 || install python3-pip
  say "fetching clang-tidy $clang_tidy_version"
  local fresh
  mkdir -p "$(dirname "$folder")"
  fresh=$(mktemp -d "$folder.XXXXXX")
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
      --dest "$fresh" "clang-tidy==$clang_tidy_version" &&
    python3 -c '
import glob, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel:
    wheel.extractall(sys.argv[1], [n for n in wheel.namelist() if n.startswith("clang_tidy/data/")])
' "$fresh" && chmod +x "$fresh"/clang_tidy/data/bin/*; then
    mv -T "$fresh/clang_tidy/data" "$folder"
  else
    say "warning: clang-tidy $clang_tidy_version cannot be had; scripts/check_tidy.py needs it"
  fi
  rm -rf "$fresh"
}

install_bench() {
  local folder="${XDG_CACHE_HOME:-$HOME/.cache}/farspan/bench"
  if "$folder/bin/python" -c 'import torch, numpy' 2>/dev/null; then
    say "benchmark environment is ready in $folder"
    return
  fi
  if [ "$check" = yes ]; then
    say "missing: the benchmark environment in $folder"
    exit 1
  fi
  python3 -c 'import ensurepip' 2>/dev/null || install python3-venv
  say "installing PyTorch and numpy into $folder (several GB)"
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet torch numpy
}

need_dpkg
install_packages
report_cuda
install_cudnn_frontend
install_clang_tidy
if [ "$bench" = yes ]; then install_bench; fi
say "done"
