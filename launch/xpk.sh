#!/usr/bin/env bash
# Start a training run with xpk (https://github.com/AI-Hypercomputer/xpk) on one of its clusters.
#
#   launch/xpk.sh [--dry-run] CONFIG [arguments of lclm train]
#
# CONFIG is a path inside the image (/opt/lclm/configs/...). Variables:
#   JOB_NAME IMAGE            name of the workload; image built from launch/docker
#   XPK_CLUSTER XPK_TPU_TYPE  cluster made by `xpk cluster create`; type of its slices, for example v5p-128
#   XPK_SLICES (1), XPK_STORAGE (a storage attached with `xpk storage`), XPK_ARGS (further options, such as --project --zone)
# Exit status 75 (checkpoint saved) restarts the workload.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
need JOB_NAME lclm-16x
need IMAGE REGION-docker.pkg.dev/PROJECT/lclm/lclm-tpu:TAG
need XPK_CLUSTER CLUSTER
need XPK_TPU_TYPE v5p-128

need_number XPK_SLICES
need_label JOB_NAME 40 letter
need_program xpk "pip install xpk"

command=$(printf '%q ' lclm train "${arguments[@]}")
split "${XPK_ARGS:-}"
options=("${words[@]}")
[[ -z ${XPK_STORAGE:-} ]] || options+=("--storage=$XPK_STORAGE")
create=(xpk workload create "--workload=$JOB_NAME" "--cluster=$XPK_CLUSTER" "--tpu-type=$XPK_TPU_TYPE"
  "--num-slices=${XPK_SLICES:-1}" "--docker-image=$IMAGE" --max-restarts=100 --restart-on-exit-codes=75
  --termination-grace-period-seconds=600 "${options[@]}" "--command=${command% }")
show "${create[@]}"
((!dry_run)) || exit 0
# xpk refuses a second workload of the name, so one that was taken is not started twice.
retry 'unable to connect|connection refused|connection reset|timed out|service unavailable' "${create[@]}"
