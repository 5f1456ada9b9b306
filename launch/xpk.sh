#!/usr/bin/env bash
# Start a training run with xpk (https://github.com/AI-Hypercomputer/xpk) on one of its clusters.
#
#   launch/xpk.sh [--dry-run] CONFIG [arguments of lclm train]
#
# CONFIG is a path inside the image (/opt/lclm/configs/...). Variables:
#   JOB_NAME IMAGE            name of the workload; image built from launch/docker
#   XPK_CLUSTER               cluster made by `xpk cluster create`
#   XPK_TPU_TYPE              type of its slices, for example v5p-128; XPK_SLICES (1)
#   XPK_DEVICE_TYPE           instead, GPUs: h100-mega-80gb-8, h200-141gb-8, b200-8; XPK_NODES: nodes of 8
#   XPK_STORAGE               a storage attached with `xpk storage`; not needed if run_dir=gs://...
#   XPK_PRIORITY              priority of the workload: very-low, low, medium, high, very-high
#   XPK_ARGS                  further options, such as --project --zone
#   LCLM_MAX_RESTARTS         default 100; LCLM_PREFLIGHT=1: check devices, links and storage first
# Exit status 75 (checkpoint saved) restarts the workload.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
need JOB_NAME lclm-16x
need IMAGE REGION-docker.pkg.dev/PROJECT/lclm/lclm-tpu:TAG
need XPK_CLUSTER CLUSTER
[[ -z ${XPK_TPU_TYPE:-} || -z ${XPK_DEVICE_TYPE:-} ]] || die "XPK_TPU_TYPE and XPK_DEVICE_TYPE are both set; unset one"
[[ -n ${XPK_DEVICE_TYPE:-} ]] || need XPK_TPU_TYPE "v5p-128 (or XPK_DEVICE_TYPE=h100-mega-80gb-8)"
for name in XPK_SLICES XPK_NODES LCLM_MAX_RESTARTS; do need_number "$name"; done
resume_setting
need_label JOB_NAME 40 letter
need_program xpk "pip install xpk"

train=$(printf '%q ' lclm train "${arguments[@]}")
train=${train% }
split "${XPK_ARGS:-}"
options=("${words[@]}")
[[ -z ${XPK_STORAGE:-} ]] || options+=("--storage=$XPK_STORAGE")
[[ -z ${XPK_PRIORITY:-} ]] || options+=("--priority=$XPK_PRIORITY")
for name in LCLM_RESUME LCLM_PREFLIGHT; do
  [[ -z ${!name} ]] || options+=("--env=$name=${!name}")
done
if [[ -n ${XPK_DEVICE_TYPE:-} ]]; then
  need XPK_NODES 16
  shape=("--device-type=$XPK_DEVICE_TYPE" "--num-nodes=$XPK_NODES")
  # xpk gives host and port apart, and its nodes have NCCL's plugin with the settings that belong to it.
  # shellcheck disable=SC2016 # for the shell of the pod
  train='export JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT JAX_NUM_PROCESSES=$NNODES JAX_PROCESS_ID=$NODE_RANK;
for file in ${NCCL_LIB_DIR:-/usr/local/nvidia/lib64}/nccl-env-profile.sh /usr/local/gib/scripts/set_nccl_env.sh; do [ ! -r $file ] || . $file; done;
'"$train"
else
  shape=("--tpu-type=$XPK_TPU_TYPE" "--num-slices=${XPK_SLICES:-1}")
fi
create=(xpk workload create "--workload=$JOB_NAME" "--cluster=$XPK_CLUSTER" "${shape[@]}" "--docker-image=$IMAGE"
  "--max-restarts=${LCLM_MAX_RESTARTS:-100}" --restart-on-exit-codes=75
  --termination-grace-period-seconds=600 "${options[@]}" "--command=$train")
show "${create[@]}"
((!dry_run)) || exit 0
# xpk refuses a second workload of the name, so one that was taken is not started twice.
retry 'unable to connect|connection refused|connection reset|timed out|service unavailable' "${create[@]}"
