#!/usr/bin/env bash
# Train on Cloud TPU VMs: request a slice as a queued resource, start on all its workers, request again after preemption.
#
#   launch/tpu_vm.sh [--dry-run] CONFIG [arguments of lclm train]
#
# CONFIG is a path in the container (/opt/lclm/configs/...). Variables:
#   JOB_NAME IMAGE               name of the slice; image built from launch/docker/tpu.Dockerfile
#   TPU_ZONE TPU_TYPE            us-east5-a, v5p-128
#   TPU_RUNTIME                  default: v2-alpha-tpuv5 (v5p); v5e: v2-alpha-tpuv5-lite; v6e: v2-alpha-tpuv6e
#   TPU_SPOT=1                   request spot capacity
#   TPU_RUNS                     folder of the workers mounted at /runs, default /mnt/runs; all workers must share it
#   LCLM_MAX_RESTARTS            default 100
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
need JOB_NAME lclm-16x
need IMAGE REGION-docker.pkg.dev/PROJECT/lclm/lclm-tpu:TAG
need TPU_ZONE us-east5-a
need TPU_TYPE v5p-128

gcloud_tpu() { run gcloud compute tpus "$@" --zone="$TPU_ZONE"; }
state() { # ACTIVE, SUSPENDED, ...; empty: there is none
  gcloud compute tpus queued-resources describe "$JOB_NAME" --zone="$TPU_ZONE" --format='value(state.state)' 2>/dev/null || true
}

request_slice() {
  local spot=()
  [[ -z ${TPU_SPOT:-} ]] || spot=(--spot)
  gcloud_tpu queued-resources create "$JOB_NAME" --node-id="$JOB_NAME" --accelerator-type="$TPU_TYPE" \
    --runtime-version="${TPU_RUNTIME:-v2-alpha-tpuv5}" "${spot[@]}"
}

wait_for_slice() {
  ((dry_run)) && return
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    [[ $now != FAILED && $now != SUSPENDED ]] || return 1
    echo "queued resource $JOB_NAME: ${now:-unknown}; checking again in 60 s" >&2
    sleep 60
  done
}

delete_slice() { gcloud_tpu queued-resources delete "$JOB_NAME" --force --quiet || true; }

# The same command on every worker; libtpu tells each its index. A container that still exists is replaced.
remote() {
  local folder=${TPU_RUNS:-/mnt/runs}
  printf 'sudo docker rm -f lclm >/dev/null 2>&1; '
  printf '%q ' sudo docker run --name=lclm --privileged --net=host --shm-size=16g "--volume=$folder:/runs" \
    --workdir=/runs "$IMAGE" train "${arguments[@]}"
}

for ((restart = 0; restart <= ${LCLM_MAX_RESTARTS:-100}; restart++)); do
  if ((dry_run)) || [[ -z $(state) ]]; then
    request_slice
  fi
  status=75
  if wait_for_slice; then
    status=0
    gcloud_tpu tpu-vm ssh "$JOB_NAME" --worker=all --command="$(remote)" || status=$?
  fi
  if ((status == 0 || dry_run)); then
    delete_slice
    exit 0
  fi
  # ssh reports a lost worker as 255; a slice that is gone was preempted. Anything else is an error of the run itself.
  if ((status != 75 && status != 255)) && [[ $(state) == ACTIVE ]]; then
    echo "the run failed with status $status; the slice $JOB_NAME is kept" >&2
    exit "$status"
  fi
  [[ $(state) == ACTIVE ]] || delete_slice
  echo "stopped with status $status; restarting ($((restart + 1)))" >&2
done
die "gave up after ${LCLM_MAX_RESTARTS:-100} restarts"
