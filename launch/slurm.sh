#!/usr/bin/env bash
# Submit a training run to SLURM; it requeues itself after preemption and near its time limit.
#
#   launch/slurm.sh [--dry-run] CONFIG [arguments of lclm train]
#
# Shape and limits of the job are sbatch's own variables and options:
#   SBATCH_ARGS="--nodes=32 --gpus-per-node=8 --time=24:00:00"       one process per node, which drives its 8 GPUs
#   SBATCH_ARGS="--nodes=32 --ntasks-per-node=8 --gpus-per-task=1"   one process per GPU
#   LCLM_VERB=ablate SBATCH_ARGS="--array=0-26 ..."                  the jobs of an ablation study, one a task
# Variables: LCLM_SETUP (shell file sourced on every node: modules, virtual environment), LCLM_SRUN_ARGS (options of srun,
# such as --container-image=... --container-mounts=...), LCLM_MAX_RESTARTS (default 100),
# LCLM_VERB (the command of lclm that runs, default train).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
read_options "$@"
for file in "${arguments[0]}" "${LCLM_SETUP:-/dev/null}"; do # better now than after a day in the queue
  [[ -r $file ]] || die "cannot read $file; name an existing file, by a path that the nodes see"
done

need_program sbatch "run this on a login node of the cluster"
need_number LCLM_MAX_RESTARTS
split "${LCLM_SRUN_ARGS:-}" # refused now if a quote is not closed
split "${SBATCH_ARGS:-}"
command=(sbatch "${words[@]}" "$here/lclm.sbatch" "${arguments[@]}")
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
