#!/bin/sh
# Open MPI's mpirun as it lies in this bundle; options as mpirun --help says. Runs as root too, and
# with more ranks than cores (unless the caller's environment says otherwise).
set -u
bundle=$(CDPATH='' cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
. "$bundle/libexec/environment.sh"
if [ "$(id -u)" = 0 ]; then
  OMPI_ALLOW_RUN_AS_ROOT=1
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM
fi
: "${OMPI_MCA_rmaps_base_oversubscribe:=1}"
export OMPI_MCA_rmaps_base_oversubscribe
# Without a remote shell (a container, say) mpirun would refuse to start even here: this machine alone.
if ! command -v ssh >/dev/null && ! command -v rsh >/dev/null && ! command -v srun >/dev/null; then
  : "${OMPI_MCA_plm:=isolated}"
  export OMPI_MCA_plm
fi
exec "$bundle/bin/orterun" "$@"
