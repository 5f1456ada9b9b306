#!/usr/bin/env bash
# Start a training run on GKE as a JobSet (https://jobset.sigs.k8s.io), on TPUs or GPUs.
#
#   launch/gke.sh [--dry-run] tpu|gpu CONFIG [arguments of lclm train]
#
# CONFIG is a path inside the image (configs/ is in /opt/lclm/configs). Variables:
#   JOB_NAME IMAGE            name of the job; image built from launch/docker
#   GKE_HOSTS                 pods: hosts of a slice, or nodes of 8 GPUs
#   GKE_CLAIM                 persistent volume claim mounted at /runs, the working folder (Cloud Storage FUSE, Filestore)
#   GKE_SERVICE_ACCOUNT       default: default. Permissions come from Workload Identity, secrets from the cluster, never from files
#   tpu: GKE_TPU_ACCELERATOR (tpu-v5p-slice), GKE_TPU_TOPOLOGY (4x4x4), GKE_CHIPS_PER_HOST (4), GKE_SLICES (1)
#   gpu: GKE_GPU_ACCELERATOR (nvidia-h100-mega-80gb)
# A dry run prints the manifest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"

kind=${arguments[0]}
[[ $kind == tpu || $kind == gpu ]] || die "say tpu or gpu, not $kind"
((${#arguments[@]} > 1)) || die "name a configuration"
need JOB_NAME lclm-16x
need IMAGE "REGION-docker.pkg.dev/PROJECT/lclm/lclm-$kind:TAG"
need GKE_HOSTS 16
need GKE_CLAIM lclm-runs
need_number GKE_HOSTS
need_program python3 "install it"
need_program kubectl "install the Google Cloud CLI and its component kubectl"
export GKE_SERVICE_ACCOUNT=${GKE_SERVICE_ACCOUNT:-default}
if [[ $kind == tpu ]]; then
  need GKE_TPU_ACCELERATOR tpu-v5p-slice
  need GKE_TPU_TOPOLOGY 4x4x4
  export GKE_CHIPS_PER_HOST=${GKE_CHIPS_PER_HOST:-4} GKE_SLICES=${GKE_SLICES:-1}
else
  need GKE_GPU_ACCELERATOR nvidia-h100-mega-80gb
fi

need_number GKE_CHIPS_PER_HOST
need_number GKE_SLICES
# JobSet makes names of pods from it: NAME-slice-SLICE-HOST-abcde, 63 characters at most.
longest="-$([[ $kind == tpu ]] && echo slice || echo node)-$((${GKE_SLICES:-1} - 1))-$((GKE_HOSTS - 1))-abcde"
need_label JOB_NAME $((63 - ${#longest}))

manifest=$(python3 "$here/render.py" "$here/gke/$kind.yaml" train "${arguments[@]:1}")
if ((dry_run)); then
  printf '%s\n' "$manifest"
else
  apply() { kubectl apply -f - <<<"$manifest"; }
  # Applying twice what was taken already changes nothing.
  away='unable to connect to the server|connection refused|connection reset|timed? ?out|unexpected EOF|no route to host'
  retry "$away|too many requests|currently unable to handle|service unavailable|internal error|etcdserver" apply
fi
