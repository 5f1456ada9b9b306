#!/usr/bin/env bash
# Start a training run on GKE as a JobSet (https://jobset.sigs.k8s.io), on TPUs or GPUs.
#
#   launch/gke.sh [--dry-run] tpu|gpu CONFIG [arguments of lclm train]
#
# CONFIG is a path inside the image (configs/ is in /opt/lclm/configs). Variables:
#   JOB_NAME IMAGE            name of the job; image built from launch/docker
#   GKE_CLAIM or GKE_BUCKET   volume claim, or bucket (by Cloud Storage FUSE), mounted at /runs, the working folder;
#                             neither if the arguments hold run_dir=gs://...
#   GKE_HOSTS                 pods: nodes of 8 GPUs, or hosts of a slice (for TPUs it follows from the topology)
#   GKE_SERVICE_ACCOUNT       default: default. Permissions come from Workload Identity, secrets from the cluster, never from files
#   GKE_QUEUE                 local queue of Kueue; GKE_QUEUE_PRIORITY: its priority class (launch/gke/kueue.yaml)
#   GKE_PRIORITY              priority class of the pods; GKE_SPOT=1: spot nodes; GKE_RESERVATION: name of a reservation
#   GKE_LOCAL_DISK            folder of the node mounted at /local (1: the local SSDs), for train.checkpoint.local_dir=/local
#   GKE_HOST_NETWORK          1: the network of the host (TPU: default), 0: the pod's own (GPU: default)
#   GKE_SHM                   size of /dev/shm, default 16Gi (TPU), 64Gi (GPU)
#   LCLM_PREFLIGHT=1          check devices, links and storage first (lclm doctor); LCLM_RESUME: see lclm train --resume
#   LCLM_MAX_RESTARTS         restarts after crashes, default 10; preemptions and exit status 75 do not count
#   tpu: GKE_TPU_ACCELERATOR  tpu-v5-lite-podslice (v5e), tpu-v5p-slice, tpu-v6e-slice, tpu7x
#        GKE_TPU_TOPOLOGY     16x16, 4x4x4 ...; GKE_CHIPS_PER_HOST (4), GKE_SLICES (1)
#   gpu: GKE_GPU_ACCELERATOR  nvidia-h100-mega-80gb (A3 Mega), nvidia-h200-141gb (A3 Ultra), nvidia-b200 (A4)
#        GKE_NETWORK          tcpxo, gib or plain; default: what the accelerator has
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
need_number GKE_HOSTS
need_number GKE_CHIPS_PER_HOST
need_number GKE_SLICES
need_number LCLM_MAX_RESTARTS
need_program python3 "install it"
need_program kubectl "install the Google Cloud CLI and its component kubectl"
resume_setting

export GKE_STORAGE=mount GKE_WORKING_DIR=/runs GKE_CLAIM=${GKE_CLAIM:-} GKE_BUCKET=${GKE_BUCKET:-}
[[ -z $GKE_CLAIM || -z $GKE_BUCKET ]] || die "GKE_CLAIM and GKE_BUCKET are both set; unset one, /runs is one of them"
if [[ -z $GKE_CLAIM && -z $GKE_BUCKET ]]; then
  on_bucket "${arguments[@]}" || die "GKE_CLAIM is not set; for example: export GKE_CLAIM=lclm-runs (or GKE_BUCKET, or run_dir=gs://...)"
  GKE_STORAGE=none GKE_WORKING_DIR=/tmp
fi
export GKE_SERVICE_ACCOUNT=${GKE_SERVICE_ACCOUNT:-default} LCLM_MAX_RESTARTS=${LCLM_MAX_RESTARTS:-10}
[[ ${GKE_LOCAL_DISK:-} != 1 ]] || export GKE_LOCAL_DISK=/mnt/stateful_partition/kube-ephemeral-ssd/lclm

if [[ $kind == tpu ]]; then
  need GKE_TPU_ACCELERATOR tpu-v5p-slice
  need GKE_TPU_TOPOLOGY 4x4x4
  export GKE_CHIPS_PER_HOST=${GKE_CHIPS_PER_HOST:-4} GKE_SLICES=${GKE_SLICES:-1}
  export GKE_HOST_NETWORK=${GKE_HOST_NETWORK:-1} GKE_SHM=${GKE_SHM:-16Gi}
  [[ $GKE_TPU_TOPOLOGY =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "GKE_TPU_TOPOLOGY=$GKE_TPU_TOPOLOGY is not of the form 16x16 or 4x4x4"
  chips=$((${GKE_TPU_TOPOLOGY//x/*}))
  ((chips % GKE_CHIPS_PER_HOST == 0)) || die "GKE_TPU_TOPOLOGY=$GKE_TPU_TOPOLOGY has $chips chips, no multiple of GKE_CHIPS_PER_HOST=$GKE_CHIPS_PER_HOST"
  export GKE_HOSTS=${GKE_HOSTS:-$((chips / GKE_CHIPS_PER_HOST))}
  ((GKE_HOSTS * GKE_CHIPS_PER_HOST == chips)) ||
    die "GKE_TPU_TOPOLOGY=$GKE_TPU_TOPOLOGY has $chips chips: $((chips / GKE_CHIPS_PER_HOST)) hosts of $GKE_CHIPS_PER_HOST, not GKE_HOSTS=$GKE_HOSTS"
else
  need GKE_HOSTS 16
  need GKE_GPU_ACCELERATOR nvidia-h100-mega-80gb
  case $GKE_GPU_ACCELERATOR in
    nvidia-h100-mega-80gb) network=tcpxo ;;
    nvidia-h200-141gb | nvidia-b200) network=gib ;;
    *) network=plain ;;
  esac
  export GKE_NETWORK=${GKE_NETWORK:-$network} GKE_HOST_NETWORK=${GKE_HOST_NETWORK:-0} GKE_SHM=${GKE_SHM:-64Gi}
  case $GKE_NETWORK in tcpxo | gib | plain) ;; *) die "GKE_NETWORK=$GKE_NETWORK is none of tcpxo, gib, plain" ;; esac
  [[ $GKE_NETWORK != plain ]] || ((GKE_HOSTS == 1)) || echo "gke.sh: $GKE_HOSTS nodes on the pods' own network (GKE_NETWORK=plain): gradients will be slow" >&2
  # Pods on the network of the host see all interfaces; others are given them one by one.
  export GKE_POD_NETWORKS=$GKE_NETWORK
  [[ $GKE_HOST_NETWORK != 1 ]] || GKE_POD_NETWORKS=none
  # github.com/GoogleCloudPlatform/container-engine-accelerators, gpudirect-tcpxo: release of January 9, 2026.
  export GKE_TCPXO_DAEMON=${GKE_TCPXO_DAEMON:-us-docker.pkg.dev/gce-ai-infra/gpudirect-tcpxo/tcpgpudmarxd-dev:v1.0.21}
fi

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
