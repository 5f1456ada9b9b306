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
#   TPU_BUCKET                   bucket that every worker mounts at /runs (with gcsfuse, which is installed if it is missing)
#   TPU_RUNS                     instead: where the workers have shared storage mounted already (Filestore, Lustre)
#                                neither if the arguments hold run_dir=gs://...
#   TPU_SERVICE_ACCOUNT          whose rights the workers have, for the bucket and the registry; default: the project's
#   LCLM_MAX_RESTARTS            default 100; LCLM_PREFLIGHT=1: check devices, links and storage first
# The workers log in to the registry of IMAGE with their service account. After a preemption the run's folder has to hold the
# run (lclm train --resume); LCLM_RESUME=required demands it from the first start on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
need JOB_NAME lclm-16x
need IMAGE REGION-docker.pkg.dev/PROJECT/lclm/lclm-tpu:TAG
need TPU_ZONE us-east5-a
need TPU_TYPE v5p-128
need_number LCLM_MAX_RESTARTS
need_label JOB_NAME 63 letter
resume_setting
[[ -z ${TPU_BUCKET:-} || -z ${TPU_RUNS:-} ]] || die "TPU_BUCKET and TPU_RUNS are both set; unset one, /runs is one of them"
if [[ -z ${TPU_BUCKET:-}${TPU_RUNS:-} ]] && ! on_bucket "${arguments[@]}"; then
  die "TPU_BUCKET is not set; for example: export TPU_BUCKET=BUCKET (or TPU_RUNS, or run_dir=gs://...): the workers' own disks go with them"
fi
TPU_BUCKET=${TPU_BUCKET:-} TPU_BUCKET=${TPU_BUCKET#gs://}
need_program gcloud "install the Google Cloud CLI"

gcloud_tpu() { run gcloud compute tpus "$@" --zone="$TPU_ZONE"; }
state() { # ACTIVE, SUSPENDED, ...; empty: there is none. Fails if Google Cloud gives no answer, several times.
  local try said
  for ((try = 1; ; try++)); do
    if said=$(gcloud compute tpus queued-resources describe "$JOB_NAME" --zone="$TPU_ZONE" --format='value(state.state)' 2>&1); then
      printf '%s\n' "${said##*$'\n'}" # warnings come before it
      return
    fi
    ! grep -qiE 'not_found|not found' <<<"$said" || return 0
    printf '%s\n' "$said" >&2
    ((try < tries)) || die "cannot tell whether $JOB_NAME runs; rerun the same command when Google Cloud answers"
    pause "$try"
  done
}

request_slice() {
  local spot=()
  [[ -z ${TPU_SPOT:-} ]] || spot=(--spot)
  local create=(queued-resources create "$JOB_NAME" --node-id="$JOB_NAME" --accelerator-type="$TPU_TYPE"
    --runtime-version="${TPU_RUNTIME:-v2-alpha-tpuv5}" "${spot[@]}")
  [[ -z ${TPU_SERVICE_ACCOUNT:-} ]] || create+=("--service-account=$TPU_SERVICE_ACCOUNT")
  local try
  for ((try = 1; ; try++)); do
    ! gcloud_tpu "${create[@]}" || return 0
    [[ -z $(state) ]] || return 0 # it was taken, though the answer was lost
    ((try < tries)) || die "the slice $JOB_NAME was not granted: see the message above"
    pause "$try"
  done
}

wait_for_slice() {
  ((dry_run)) && return
  local now
  while now=$(state) || exit; [[ $now != ACTIVE ]]; do
    [[ -n $now && $now != FAILED && $now != SUSPENDED ]] || return 1
    echo "queued resource $JOB_NAME: ${now:-unknown}; checking again in 60 s" >&2
    sleep 60
  done
}

delete_slice() { gcloud_tpu queued-resources delete "$JOB_NAME" --force --quiet || true; }

# What every worker does; libtpu tells each its index. A container that still exists is replaced. Storage that is not
# mounted, or another one, must not look like an empty folder of a new run: exit status 2 ends everything.
# shellcheck disable=SC2016 # expanded on the worker
remote() {
  local mount=() runs=${TPU_RUNS:-} registry=${IMAGE%%/*}
  if [[ $registry == *.pkg.dev || $registry == *gcr.io ]]; then # a helper asks for a token each time; none is stored
    printf 'sudo gcloud auth configure-docker %q --quiet >/dev/null 2>&1 || { echo "$(hostname): no login to the registry" >&2; exit 2; }; ' "$registry"
  fi
  if [[ -n $TPU_BUCKET ]]; then
    runs=/mnt/lclm-runs
    printf '%s; ' 'command -v gcsfuse >/dev/null || { sudo apt-get update -q && sudo apt-get install -qy gcsfuse; } >/dev/null 2>&1'
    printf 'sudo mkdir -p %q; mountpoint -q %q || sudo gcsfuse --implicit-dirs -o allow_other %q %q >/dev/null; ' "$runs" "$runs" "$TPU_BUCKET" "$runs"
  fi
  if [[ -n $runs ]]; then
    printf 'mountpoint -q %q || { echo "$(hostname): %q is not mounted, so the run would start anew there" >&2; exit 2; }; ' "$runs" "$runs"
    mount=("--volume=$runs:/runs" --workdir=/runs)
  fi
  printf 'sudo docker rm -f lclm >/dev/null 2>&1; '
  printf '%q ' sudo docker run --name=lclm --privileged --net=host --shm-size=16g --ulimit=memlock=-1 "${mount[@]}" \
    "--env=LCLM_RESTARTS=$begun" "--env=LCLM_RESUME=$LCLM_RESUME" "--env=LCLM_PREFLIGHT=$LCLM_PREFLIGHT" \
    "$IMAGE" train "${arguments[@]}"
}

begun=0 # times that the workers were started
for ((restart = 0; restart <= ${LCLM_MAX_RESTARTS:-100}; restart++)); do
  now=
  ((dry_run)) || now=$(state)
  [[ -n $now ]] || request_slice
  status=75
  if wait_for_slice; then
    status=0
    gcloud_tpu tpu-vm ssh "$JOB_NAME" --worker=all --command="$(remote)" || status=$?
    begun=$((begun + 1))
  fi
  if ((status == 0 || dry_run)); then
    delete_slice
    exit 0
  fi
  # ssh reports a lost worker as 255; a slice that is gone was preempted. Anything else is an error of the run itself.
  now=$(state) # stops here if nobody can tell: a slice that runs must not be deleted
  if ((status != 75 && status != 255)) && [[ $now == ACTIVE ]]; then
    echo "the run failed with status $status; the slice $JOB_NAME is kept" >&2
    exit "$status"
  fi
  [[ $now == ACTIVE ]] || delete_slice
  echo "stopped with status $status; restarting ($((restart + 1)))" >&2
done
die "gave up after ${LCLM_MAX_RESTARTS:-100} restarts"
