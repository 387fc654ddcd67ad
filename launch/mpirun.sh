#!/usr/bin/env bash
# Starts farspan under Open MPI with what the situation needs: the switches for root and for more
# ranks than cores, binding, and signals that end a run with a checkpoint.
#
#   launch/mpirun.sh NP CONFIG.yaml [key=value ...]     farspan train, NP ranks
#   launch/mpirun.sh NP COMMAND [...]                   another command, such as eval
#
# SIGTERM, SIGINT and SIGUSR1 reach the ranks as SIGUSR1: they save a checkpoint and the job ends
# with 75. A second one stops at once. The exit status is farspan's own.
#
# A run with device: cuda uses build/cuda/farspan, and ties each rank to the cores beside its GPU
# (launch/bind_gpu.sh). launch/ and build/ may lie apart: a bundle has farspan in bin/.
#
# Environment: FARSPAN (the program; default build/cpu/farspan), MPIRUN_ARGS (more options for
# mpirun, such as --hostfile HOSTS), OMP_NUM_THREADS (CPU threads of a rank; default cores / ranks).
set -euo pipefail

if [ "$#" -lt 2 ] || ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
ranks="$1"
shift
case "$1" in
  *.yaml | *.yml) set -- train "$@" ;;
esac

# Whether the run asks for GPUs: the last override, else the configuration's own line.
on_gpus() {
  local argument device=''
  for argument in "$@"; do
    case "$argument" in
      *.yaml | *.yml)
        if [ -z "$device" ] && [ -r "$argument" ]; then
          device="$(sed -n 's/^device: *\([a-z]*\).*/\1/p' "$argument" | tail -n 1)"
        fi
        ;;
      device=*) device="${argument#device=}" ;;
    esac
  done
  [ "$device" = cuda ]
}

here="$(cd "$(dirname "$0")" && pwd)"
preset=cpu
binding=()
if on_gpus "$@"; then
  preset=cuda
  binding=("$here/bind_gpu.sh")
fi
program="${FARSPAN:-}"
for candidate in "$here/../build/$preset/farspan" "$here/../bin/farspan"; do
  if [ -z "$program" ] && [ -x "$candidate" ]; then program="$candidate"; fi
done
if ! [ -x "${program:=$here/../build/$preset/farspan}" ]; then
  if [ "$preset" = cuda ]; then
    echo "mpirun.sh: $program is not there; build it with cmake --preset cuda && cmake --build --preset cuda, or set device=cpu" >&2
  else
    echo "mpirun.sh: $program is not there; build it with ./launch/quickstart.sh or ./scripts/test.sh" >&2
  fi
  exit 2
fi
mpirun="$here/../bin/mpirun" # of a bundle
[ -x "$mpirun" ] || mpirun=mpirun
if ! command -v "$mpirun" >/dev/null; then
  echo "mpirun.sh: no mpirun on PATH; run scripts/setup.sh" >&2
  exit 2
fi

read -r -a options <<<"${MPIRUN_ARGS:-}"
options+=(-np "$ranks")
if [ "$(id -u)" = 0 ]; then options+=(--allow-run-as-root); fi

if [ -z "${MPIRUN_ARGS:-}" ]; then
  # Farspan's own message says why a run ended; mpirun's would follow it with a page of its own.
  options+=(-q)
  # One machine. Open MPI counts cores, not hardware threads, as places for ranks.
  cores="$(lscpu -p=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l)"
  nodes="$(find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' 2>/dev/null | wc -l)"
  if [ "$preset" = cuda ]; then
    options+=(--oversubscribe --bind-to none) # bind_gpu.sh binds
  elif [ "$ranks" -gt "$cores" ] || [ "$ranks" -gt "$(nproc)" ]; then
    options+=(--oversubscribe --bind-to none)
  elif [ "$nodes" -gt 1 ] && [ $((ranks % nodes)) = 0 ] && [ "$(nproc)" = "$(nproc --all)" ]; then
    # A rank's memory stays beside its cores.
    options+=(--map-by "ppr:$((ranks / nodes)):numa" --bind-to numa)
  else
    # Not mpirun's own choice: it ties each of two ranks to a single core.
    options+=(--bind-to none)
  fi
fi

# A process group of its own: a Ctrl-C of the terminal must reach mpirun through the trap only, or
# it would kill the ranks before they have saved.
set -m
"$mpirun" "${options[@]}" "${binding[@]}" "$program" "$@" </dev/null &
job=$!
set +m

asked_at=''
# shellcheck disable=SC2317  # called by the trap
stop() {
  if [ -z "$asked_at" ]; then
    asked_at=$SECONDS
    echo "mpirun.sh: asking the ranks to save a checkpoint and stop; once more stops at once" >&2
    kill -USR1 "$job" 2>/dev/null || true
  elif [ $((SECONDS - asked_at)) -ge 2 ]; then
    # Not sooner: a launcher above and the terminal may both pass on one and the same request.
    kill -TERM "$job" 2>/dev/null || true
  fi
}
trap stop TERM INT USR1

status=0
while :; do
  status=0
  wait "$job" || status=$?
  # wait also returns when a trap has run; only a job that is gone has a status of its own.
  kill -0 "$job" 2>/dev/null || break
done
# The status above may be the trap's, if the job ended meanwhile.
if [ -n "$asked_at" ]; then
  status=0
  wait "$job" 2>/dev/null || status=$?
fi
case "$status" in
  [0-8] | 75) ;;
  *) echo "mpirun.sh: mpirun ended with $status, which is no exit code of farspan; MPIRUN_ARGS=--bind-to\ none shows what mpirun has to say" >&2 ;;
esac
exit "$status"
