#!/usr/bin/env bash
# Start a training run as a managed job of SkyPilot (https://docs.skypilot.co), on TPUs or GPUs.
#
#   launch/skypilot.sh [--dry-run] tpu|gpu CONFIG [arguments of lclm train]
#
# CONFIG is a path in the image (/opt/lclm/configs/...). Variables:
#   JOB_NAME IMAGE       name of the job; image built from launch/docker
#   SKY_ACCELERATORS     tpu-v5p-128, or H100:8
#   SKY_BUCKET           bucket mounted at /runs, the working folder: gs://BUCKET, s3://BUCKET; not needed if run_dir=gs://...
#   SKY_SPOT             1 (default): spot machines; 0: on demand
#   SKY_INFRA            where: aws, gcp/us-east5, k8s ...; default: wherever it is cheapest (tpu: gcp)
#   SKY_NETWORK          gpu: best (default: EFA, GPUDirect, InfiniBand) or standard
#   SKY_RUNTIME          tpu: runtime of the TPU VMs, default v2-alpha-tpuv5
#   SKY_NODES            gpu: nodes, default 1
#   LCLM_PREFLIGHT=1     check devices, links and storage first; LCLM_RESUME: see lclm train --resume
#   LCLM_VERB            command of lclm, default train; a job of a study: LCLM_VERB=ablate ... STUDY --job NUMBER
# Credentials are those of the clouds' own logins. A dry run prints the task.
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
need SKY_ACCELERATORS H100:8
export SKY_BUCKET=${SKY_BUCKET:-}
[[ -n $SKY_BUCKET ]] || on_bucket "${arguments[@]}" || die "SKY_BUCKET is not set; for example: export SKY_BUCKET=gs://BUCKET (or run_dir=gs://...)"
resume_setting
export SKY_SPOT=${SKY_SPOT:-1} SKY_NETWORK=${SKY_NETWORK:-best} SKY_INFRA=${SKY_INFRA:-}
case $SKY_SPOT in 0) SKY_USE_SPOT=false ;; 1) SKY_USE_SPOT=true ;; *) die "SKY_SPOT=$SKY_SPOT is neither 0 nor 1" ;; esac
case $SKY_NETWORK in best | standard) ;; *) die "SKY_NETWORK=$SKY_NETWORK is neither best nor standard" ;; esac
[[ $kind != tpu || -n $SKY_INFRA ]] || SKY_INFRA=gcp
export SKY_USE_SPOT
need_number SKY_NODES
need_program python3 "install it"
need_program sky "pip install skypilot, in an environment of its own"
[[ $JOB_NAME =~ ^[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$ ]] ||
  die "JOB_NAME=$JOB_NAME is not a name that SkyPilot takes: use letters, digits and -_., begin with a letter, end with one or a digit"
export SKY_NODES=${SKY_NODES:-1} SKY_RUNTIME=${SKY_RUNTIME:-v2-alpha-tpuv5} LCLM_VERB=${LCLM_VERB:-train}
[[ $LCLM_VERB =~ ^[a-z]+$ ]] || die "LCLM_VERB=$LCLM_VERB is not a command of lclm"
LCLM_COMMAND=$(printf '%q ' "${arguments[@]:1}")
export LCLM_COMMAND=${LCLM_COMMAND% }

task=$(python3 "$here/render.py" "$here/skypilot/$kind.yaml")
if ((dry_run)); then
  printf '%s\n' "$task"
else
  file=$(mktemp --suffix=.yaml)
  trap 'rm -f "$file"' EXIT
  printf '%s\n' "$task" >"$file"
  # Only where the server was not reached: a job that was taken must not be launched twice.
  retry 'connection refused|could not connect|failed to connect|name or service not known|no route to host' \
    sky jobs launch --yes --name "$JOB_NAME" "$file"
fi
