#!/bin/sh
# A program of Farspan's bundle, started from anywhere: bin/NAME runs libexec/NAME.
#
# CUDA's libraries are no part of the bundle. They are looked for in LD_LIBRARY_PATH and the system's
# folders, below /usr/local/cuda*, and in the packages nvidia-* of the python3 on PATH (those that
# PyTorch brings). What cannot be found is named, with exit code 2.
set -u
bundle=$(CDPATH='' cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
program="$bundle/libexec/$(basename "$0")"
. "$bundle/libexec/environment.sh"

needs() { # each library that the program is linked with and that is in none of the loader's folders
  LD_TRACE_LOADED_OBJECTS=1 "$program" | sed -n 's/^[[:space:]]*\(lib[^[:space:]]*\).*not found.*/\1/p' | sort -u
}

python_folders() {
  command -v python3 >/dev/null || return 0
  python3 -c 'import glob, sys
for folder in sys.path:
    for found in sorted(glob.glob(glob.escape(folder) + "/nvidia/*/lib")):
        print(found)' 2>/dev/null
}

if LD_TRACE_LOADED_OBJECTS=1 "$program" | grep -q 'libcublasLt\|libnccl' && [ -z "${FARSPAN_CUDA_FOUND:-}" ]; then
  # cuDNN is loaded when the program asks for it, so the loader does not miss it.
  wanted="$(needs) libcudnn.so.9"
  folders="$(ls -d /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib /usr/local/cuda-*/lib64 2>/dev/null)"
  folders="$folders $(python_folders)"
  for library in $wanted; do
    for folder in $folders; do
      [ -e "$folder/$library" ] || continue
      case ":${LD_LIBRARY_PATH:-}:" in
        *":$folder:"*) ;;
        *) LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder" ;;
      esac
      break
    done
  done
  export LD_LIBRARY_PATH
  lacking="$(needs | tr '\n' ' ')"
  if [ -n "$lacking" ]; then
    echo "error: $(basename "$0") needs ${lacking}which this machine does not show" >&2
    echo "    fix: install CUDA's runtime libraries and NCCL (or: pip install nvidia-cublas nvidia-nccl-cu13)," >&2
    echo "         or name their folders in LD_LIBRARY_PATH" >&2
    exit 2
  fi
  FARSPAN_CUDA_FOUND=1 # ranks that mpirun starts need not look again
  export FARSPAN_CUDA_FOUND
fi
exec "$program" "$@"
