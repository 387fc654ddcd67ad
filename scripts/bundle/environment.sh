# shellcheck shell=sh
# Sourced by the bundle's programs with $bundle set: where Open MPI finds its parts. Its libraries
# have other folders compiled in.
OPAL_PREFIX="${bundle:?}"
OPAL_SYSCONFDIR="$bundle/etc/openmpi"
PMIX_PREFIX="$bundle"
export OPAL_PREFIX OPAL_SYSCONFDIR PMIX_PREFIX
