#!/usr/bin/env bash
# Ties a rank to the cores and the memory beside its GPU, then runs the program. mpirun runs it once
# per rank; launch/mpirun.sh does so for runs on GPUs.
#
#   mpirun -np 8 --bind-to none launch/bind_gpu.sh build/cuda/farspan train CONFIG.yaml
#
# Rank i of a machine uses GPU i, modulo the GPUs that it may use (CUDA_VISIBLE_DEVICES), as farspan
# itself chooses. Ranks whose GPUs hang on one NUMA node share its cores evenly. Where that cannot be
# told (one node, no nvidia-smi, cores confined by a batch system) the rank runs unbound.
#
# Environment: FARSPAN_BIND=no leaves ranks unbound; FARSPAN_BIND=show only prints what would be done.
set -euo pipefail

if [ "$#" -lt 1 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
sys="${FARSPAN_SYSFS:-/sys}" # for tests: another tree
rank="${OMPI_COMM_WORLD_LOCAL_RANK:-${SLURM_LOCALID:-0}}"
ranks="${OMPI_COMM_WORLD_LOCAL_SIZE:-${SLURM_NTASKS_PER_NODE:-1}}"

unbound() { # with the reason
  if [ "${FARSPAN_BIND:-}" = show ]; then
    echo "rank $rank: unbound: $1"
    exit 0
  fi
  exec "${command[@]}"
}
command=("$@")

# PCI addresses of the GPUs that this process may use, in CUDA's order, one a line.
gpus() {
  local -A address=()
  local index uuid bus wanted
  while IFS=', ' read -r index uuid bus; do
    address[$index]=$bus address[$uuid]=$bus
  done < <(nvidia-smi --query-gpu=index,uuid,pci.bus_id --format=csv,noheader 2>/dev/null)
  if [ -z "${CUDA_VISIBLE_DEVICES+set}" ]; then
    for ((index = 0; index < ${#address[@]} / 2; ++index)); do echo "${address[$index]}"; done
    return
  fi
  for wanted in ${CUDA_VISIBLE_DEVICES//,/ }; do
    # CUDA stops at the first that it does not know.
    [ -n "${address[$wanted]:-}" ] || return 0
    echo "${address[$wanted]}"
  done
}

# "0-3,8" -> 0 1 2 3 8, one a line.
cores_of() {
  local part
  for part in ${1//,/ }; do seq "${part%-*}" "${part#*-}"; done
}

node_of() { # of the GPU at a PCI address as nvidia-smi writes it: 8 digits of domain, upper case
  local bus="${1,,}"
  cat "$sys/bus/pci/devices/${bus: -12}/numa_node" 2>/dev/null || echo -1
}

[ "${FARSPAN_BIND:-}" != no ] || unbound "FARSPAN_BIND=no"
command -v nvidia-smi >/dev/null || unbound "no nvidia-smi"
command -v taskset >/dev/null || unbound "no taskset"
mapfile -t buses < <(gpus)
[ "${#buses[@]}" -gt 0 ] || unbound "no GPU"
node="$(node_of "${buses[rank % ${#buses[@]}]}")"
[ "$node" -ge 0 ] || unbound "the GPU's NUMA node is unknown"
list="$(cat "$sys/devices/system/node/node$node/cpulist" 2>/dev/null)" || unbound "no cores of node $node"
# Not outside what a batch system gave; nproc counts that.
[ "$(nproc)" = "$(nproc --all)" ] || [ -n "${FARSPAN_SYSFS:-}" ] || unbound "the cores are confined already"

# This rank's place among those of the same node, and how many they are.
place=0 sharers=0
for ((other = 0; other < ranks; ++other)); do
  [ "$(node_of "${buses[other % ${#buses[@]}]}")" = "$node" ] || continue
  [ "$other" -ge "$rank" ] || place=$((place + 1))
  sharers=$((sharers + 1))
done
mapfile -t cores < <(cores_of "$list")
sharers=$((sharers > 0 ? sharers : 1))
first=$((${#cores[@]} * place / sharers)) last=$((${#cores[@]} * (place + 1) / sharers))
[ "$last" -gt "$first" ] || { first=0 last=${#cores[@]}; } # more ranks than cores: all of the node
mine="$(IFS=,; echo "${cores[*]:first:last-first}")"

binding=(taskset --cpu-list "$mine")
if command -v numactl >/dev/null; then binding=(numactl "--physcpubind=$mine" "--preferred=$node"); fi
if [ "${FARSPAN_BIND:-}" = show ]; then
  echo "rank $rank: GPU ${buses[rank % ${#buses[@]}]}, node $node, cores $mine"
  exit 0
fi
exec "${binding[@]}" "${command[@]}"
