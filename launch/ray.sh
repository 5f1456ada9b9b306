#!/usr/bin/env bash
# Start a training run on a Ray cluster (https://docs.ray.io), or with KubeRay on Kubernetes.
#
#   launch/ray.sh [--dry-run] CONFIG [arguments of lclm train]
#
# CONFIG is a path on the hosts (in the image: /opt/lclm/configs/...). Variables:
#   JOB_NAME              name of the job; a name that the cluster knows already is refused
#   RAY_WORKERS           hosts: an actor and a process on each
#   RAY_GPUS or RAY_TPUS  GPUs (default 8), or chips of a TPU, of a host; RAY_CPUS: cores that a process is given (default 1)
#   RAY_ADDRESS           http://HEAD:8265, the dashboard of a cluster whose nodes have lclm; the job is submitted to it
#   RAY_KUBERNETES=1      instead: a RayJob of KubeRay, with its own cluster:
#     IMAGE               image built from launch/docker with --build-arg EXTRAS=cuda,ray (or tpu,ray)
#     RAY_NODE            LABEL=VALUE of its nodes; RAY_CLAIM: volume claim mounted at /runs, not needed if run_dir=gs://...
#     RAY_QUEUE (of Kueue), RAY_SERVICE_ACCOUNT (default), RAY_POD_CPUS (16), RAY_POD_MEMORY (200Gi), RAY_SHM (64Gi)
#   LCLM_VERB             command of lclm, default train
#   LCLM_MAX_RESTARTS     default 100; LCLM_PREFLIGHT=1: check devices, links and storage first
# A dry run prints the command, or the manifest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
need JOB_NAME lclm-16x
need RAY_WORKERS 4
for name in RAY_WORKERS RAY_GPUS RAY_TPUS LCLM_MAX_RESTARTS; do need_number "$name"; done
need_label JOB_NAME 40
need_program python3 "install it"
resume_setting
[[ -z ${RAY_GPUS:-} || -z ${RAY_TPUS:-} ]] || die "RAY_GPUS and RAY_TPUS are both set; unset one"
[[ ${LCLM_VERB:=train} =~ ^[a-z]+$ ]] || die "LCLM_VERB=$LCLM_VERB is not a command of lclm"
export RAY_TPUS=${RAY_TPUS:-}
export RAY_GPUS=${RAY_GPUS:-$([[ -n $RAY_TPUS ]] || echo 8)}

# One word of letters and digits: Ray and the shells on the way would change others.
encoded=$(python3 -c 'import base64, json, sys; print(base64.b64encode(json.dumps(sys.argv[1:]).encode()).decode())' \
  "${arguments[@]}") || die "an argument cannot be encoded"
driver=(--workers "$RAY_WORKERS" --cpus "${RAY_CPUS:-1}" --max-restarts "${LCLM_MAX_RESTARTS:-100}" --verb "$LCLM_VERB")
[[ -z $RAY_GPUS ]] || driver+=(--gpus "$RAY_GPUS")
[[ -z $RAY_TPUS ]] || driver+=(--tpus "$RAY_TPUS")
[[ -z ${RAY_STRATEGY:-} ]] || driver+=(--strategy "$RAY_STRATEGY") # PACK: a trial on one machine
driver+=("$encoded")

if [[ ${RAY_KUBERNETES:-} == 1 ]]; then
  need IMAGE "REGION-docker.pkg.dev/PROJECT/lclm/lclm-gpu:TAG"
  need RAY_NODE cloud.google.com/gke-accelerator=nvidia-h100-80gb
  [[ $RAY_NODE == *=* ]] || die "RAY_NODE=$RAY_NODE is not of the form LABEL=VALUE"
  need_program kubectl "install it"
  export RAY_CLAIM=${RAY_CLAIM:-}
  [[ -n $RAY_CLAIM ]] || on_bucket "${arguments[@]}" || die "RAY_CLAIM is not set; for example: export RAY_CLAIM=lclm-runs (or run_dir=gs://...)"
  export RAY_NODE_LABEL=${RAY_NODE%%=*} RAY_NODE_VALUE=${RAY_NODE#*=} RAY_SERVICE_ACCOUNT=${RAY_SERVICE_ACCOUNT:-default}
  export RAY_POD_CPUS=${RAY_POD_CPUS:-16} RAY_POD_MEMORY=${RAY_POD_MEMORY:-200Gi} RAY_SHM=${RAY_SHM:-64Gi}
  export RAY_ENTRYPOINT="python /opt/lclm/launch/ray/ray_job.py ${driver[*]}"
  manifest=$(python3 "$here/render.py" "$here/ray/rayjob.yaml")
  if ((dry_run)); then
    printf '%s\n' "$manifest"
    exit 0
  fi
  # shellcheck disable=SC2329 # called by retry
  apply() { kubectl apply -f - <<<"$manifest"; }
  retry 'unable to connect to the server|connection refused|connection reset|timed? ?out|service unavailable' apply
  exit
fi

need RAY_ADDRESS http://HEAD:8265
need_program ray "pip install 'ray[default]'"
variables=$(python3 -c 'import json, os; print(json.dumps({"env_vars": {n: os.environ[n] for n in ("LCLM_RESUME", "LCLM_PREFLIGHT") if os.environ.get(n)}}))')
submit=(ray job submit --address "$RAY_ADDRESS" --submission-id "$JOB_NAME" --working-dir "$here/ray" --no-wait
  --entrypoint-num-cpus 0 --runtime-env-json "$variables" -- python ray_job.py "${driver[@]}")
show "${submit[@]}"
((!dry_run)) || exit 0
# A name that the cluster knows is refused, so a job that was taken is not started twice, though the answer was lost.
away='connection refused|failed to connect|could not connect|timed out|temporarily unavailable|bad gateway'
for ((try = 1; ; try++)); do
  status=0
  said=$("${submit[@]}" 2>&1) || status=$?
  printf '%s\n' "$said"
  ((status)) || exit 0
  if ((try > 1)) && grep -qi 'already exists' <<<"$said"; then
    exit 0
  fi
  if ((try >= tries)) || ! grep -qiE "$away" <<<"$said"; then
    exit "$status"
  fi
  pause "$try"
done
