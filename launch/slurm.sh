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

read -ra options <<<"${SBATCH_ARGS:-}"
run sbatch "${options[@]}" "$here/lclm.sbatch" "${arguments[@]}"
