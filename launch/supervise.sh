#!/usr/bin/env bash
# Keeps a training job alive: starts it, and starts it again when it fails, from its newest
# checkpoint.
#
#   launch/supervise.sh NP CONFIG.yaml [key=value ...]
#
# Not started again: 0 (done), 2 (usage or configuration) and 3 (bad data), and any failure after
# three starts in a row without a newer checkpoint. 75 (stopped on request) is started again at
# once, other failures after a pause that doubles from 5 s to 5 min. SIGTERM, SIGINT and SIGUSR1
# sent to this script stop the job with a checkpoint, and end it with 75.
#
# Environment: as launch/mpirun.sh, and SUPERVISE_PAUSE (first pause in seconds; default 5).
set -euo pipefail

readonly max_stalls=3 longest_pause=300
first_pause="${SUPERVISE_PAUSE:-5}"

if [ "$#" -lt 2 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here="$(dirname "$0")"
program="${FARSPAN:-}"  # only asked where the run lives, which every build knows
for candidate in "$here"/../build/{cpu,cuda}/farspan "$here/../bin/farspan"; do
  if [ -z "$program" ] && [ -x "$candidate" ]; then program="$candidate"; fi
done
: "${program:=$here/../build/cpu/farspan}"
ranks="$1"
shift

say() { echo "supervise: $(date '+%F %T') $*" >&2; }

# Where the run keeps its checkpoints: from the configuration as farspan resolves it.
if ! resolved="$("$program" config "$@" --resolved 2>/dev/null)"; then
  "$program" config "$@" --resolved >/dev/null  # once more for its message
  exit 2
fi
folder="$(sed -n 's/^output_dir: *"\{0,1\}\([^"#]*[^"# ]\).*/\1/p' <<<"$resolved")"
if [ -z "$folder" ]; then
  say "the configuration has no output_dir"
  exit 2
fi

newest_step() {  # of the newest committed checkpoint; -1 without one
  local step=-1 path name
  for path in "$folder"/checkpoints/step_*; do
    name="${path##*/step_}"
    [[ "$name" =~ ^[0-9]+$ ]] || continue
    if [ "$((10#$name))" -gt "$step" ]; then step="$((10#$name))"; fi
  done
  echo "$step"
}

job='' stopping=no
# shellcheck disable=SC2317  # called by the trap
stop() {
  stopping=yes
  if [ -n "$job" ]; then kill -TERM "$job" 2>/dev/null || true; fi
}
trap stop TERM INT USR1

run_once() {  # sets status
  "$here/mpirun.sh" "$ranks" "$@" &
  job=$!
  while :; do
    status=0
    wait "$job" || status=$?
    kill -0 "$job" 2>/dev/null || break
  done
  if [ "$stopping" = yes ]; then
    status=0
    wait "$job" 2>/dev/null || status=$?
  fi
  job=''
}

pause_for() {  # interruptible by the trap
  sleep "$1" &
  local sleeper=$!
  wait "$sleeper" || kill "$sleeper" 2>/dev/null || true
}

stalls=0 pause="$first_pause" status=0
while :; do
  before="$(newest_step)"
  run_once "$@"
  after="$(newest_step)"
  if [ "$stopping" = yes ]; then
    say "stopped on request at step $after (exit code $status)"
    exit "$status"
  fi
  case "$status" in
    0) exit 0 ;;
    2 | 3)
      say "exit code $status cannot be cured by starting again"
      exit "$status"
      ;;
  esac
  if [ "$after" -gt "$before" ]; then
    stalls=0 pause="$first_pause"
  else
    stalls=$((stalls + 1))
  fi
  if [ "$stalls" -ge "$max_stalls" ]; then
    say "exit code $status; $stalls starts without a checkpoint newer than step $after: giving up"
    exit "$status"
  fi
  if [ "$status" = 75 ]; then
    say "stopped at step $after; starting again"
    continue
  fi
  say "exit code $status at step $after; starting again in $pause s (try $((stalls + 1)) since the last progress)"
  pause_for "$pause"
  if [ "$stopping" = yes ]; then exit 75; fi
  pause=$((pause * 2 > longest_pause ? longest_pause : pause * 2))
done
