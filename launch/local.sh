#!/usr/bin/env bash
# Train on this machine, and resume after a preemption (exit status 75).
#
#   launch/local.sh [--dry-run] CONFIG [arguments of lclm train]
#
# Variables: LCLM_MAX_RESTARTS (default 20): restarts after exit status 75 before this gives up.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"

need_number LCLM_MAX_RESTARTS
need_program lclm "activate the environment that it is installed in"

asked=0
trap 'asked=1' TERM INT
for ((restart = 0; ; restart++)); do
  status=0
  export LCLM_RESTARTS=$restart # after a restart the run's folder has to be there, see lclm train --resume
  run lclm train "${arguments[@]}" || status=$?
  # A user who stops the run wants it stopped; any other exit with status 75 asks to be restarted.
  if ((status != 75 || asked || restart >= ${LCLM_MAX_RESTARTS:-20})); then
    exit "$status"
  fi
  echo "stopped with status 75; restarting ($((restart + 1)))" >&2
done
