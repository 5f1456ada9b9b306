#!/usr/bin/env bash
# Submit a training run to SLURM; it requeues itself after preemption and near its time limit.
#
#   launch/slurm.sh [--dry-run] CONFIG [arguments of lclm train]
#
# Shape and limits of the job are sbatch's own variables and options:
#   LCLM_NODES=32 SBATCH_ARGS="--time=24:00:00"                      whole nodes, a process on each, which drives its 8 GPUs
#   LCLM_NODES=32 SBATCH_ARGS="--ntasks-per-node=8 --time=24:00:00"  a process for each GPU
#   LCLM_VERB=ablate SBATCH_ARGS="--array=0-26 --gpus=1 ..."         the jobs of an ablation study, one a task
# Variables:
#   LCLM_NODES         nodes for this job alone, with all their memory: --nodes --exclusive --mem=0 --gpus-per-node
#   LCLM_GPUS          GPUs of a node with LCLM_NODES, default 8
#   LCLM_CONTAINER     image of the run (pyxis): a .sqsh file that enroot made, or REGISTRY#IMAGE:TAG; LCLM_MOUNTS: what it
#                      sees of the machine, /shared:/shared,/local:/local
#   LCLM_SETUP         shell file sourced on every node: modules, virtual environment; launch/setup has files for AWS, Azure, AMD
#   LCLM_SRUN_ARGS     further options of srun
#   LCLM_PREFLIGHT=1   check the nodes first: nvidia-smi on each, then what lclm doctor checks
#   LCLM_MAX_RESTARTS  default 100; LCLM_RESUME: see lclm train --resume; LCLM_VERB: command of lclm, default train
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
for file in "${arguments[0]}" "${LCLM_SETUP:-/dev/null}"; do # better now than after a day in the queue
  [[ -r $file ]] || die "cannot read $file; name an existing file, by a path that the nodes see"
done

need_program sbatch "run this on a login node of the cluster"
for name in LCLM_MAX_RESTARTS LCLM_NODES LCLM_GPUS; do need_number "$name"; done
resume_setting
if [[ ${LCLM_CONTAINER:-} == *.sqsh && ! -r $LCLM_CONTAINER ]]; then
  die "cannot read LCLM_CONTAINER=$LCLM_CONTAINER; make it with: enroot import -o $LCLM_CONTAINER docker://REGISTRY#IMAGE:TAG"
fi
split "${LCLM_SRUN_ARGS:-}" # refused now if a quote is not closed
split "${SBATCH_ARGS:-}"
shape=()
[[ -z ${LCLM_NODES:-} ]] || shape=("--nodes=$LCLM_NODES" --exclusive --mem=0 "--gpus-per-node=${LCLM_GPUS:-8}")
command=(sbatch "${shape[@]}" "${words[@]}" "$here/lclm.sbatch" "${arguments[@]}")
show "${command[@]}"
((!dry_run)) || exit 0

# Whether a job of this script was taken since second $1 of the epoch; stops if nobody can tell.
was_taken() {
  local jobs id time script
  jobs=$(retry . squeue --me --noheader --format='%i %V %o') ||
    die "the controller did not answer and may have taken the job; look with squeue --me before you submit again"
  while read -r id time script; do
    if [[ $script == "$here/lclm.sbatch"* ]] && (($(date -d "$time" +%s 2>/dev/null || echo 0) >= $1 - 5)); then # clocks differ a little
      echo "Submitted batch job $id"
      return 0
    fi
  done <<<"$jobs"
  return 1
}

# A controller that was not reached has not taken the job; one that was silent may have, and a job must not run twice.
away='unable to contact slurm controller|connection refused|standby mode|temporarily unable'
silent='timed out|zero bytes were transmitted|transport endpoint'
began=$(date +%s)
for ((try = 1; ; try++)); do
  status=0
  { said=$("${command[@]}" 2>&1 >&3) || status=$?; } 3>&1
  [[ -z $said ]] || printf '%s\n' "$said" >&2
  ((status)) || exit 0
  if grep -qiE "$silent" <<<"$said" && was_taken "$began"; then
    exit 0
  fi
  if ((try >= tries)) || ! grep -qiE "$away|$silent" <<<"$said"; then
    exit "$status"
  fi
  pause "$try"
done
