"""Preparation on datatrove's executors (extra ``[prepare]``): processes, SLURM job arrays, Ray clusters.

Tasks share the parts of the plan among each other; a last task writes the manifest. A part that is made is never made
again, so a job that died is simply started again.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lclm_jax.config.nearest import suggestion
from lclm_jax.data.duplicates import Stage, dedup_stages
from lclm_jax.data.filters import engine_module
from lclm_jax.data.prepare import Plan, finish, make_parts

EXECUTORS = {
    "local": ("datatrove.executor.local", "LocalPipelineExecutor"),
    "slurm": ("datatrove.executor.slurm", "SlurmPipelineExecutor"),
    "ray": ("datatrove.executor.ray", "RayPipelineExecutor"),
}


@dataclass(frozen=True, repr=False)
class _MakeShare:
    plan: Plan
    strict: bool

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        make_parts(self.plan, self.plan.parts[rank::world_size], strict=self.strict)


@dataclass(frozen=True, repr=False)
class _Finish:
    plan: Plan

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        finish(self.plan)


def run_on(executor: str, plan: Plan, tasks: int, options: Mapping[str, Any], strict: bool = False) -> None:
    """Prepare ``plan`` in ``tasks`` tasks; SLURM returns once the jobs are submitted, the others when all is done.

    Args:
        executor: a name of ``EXECUTORS``.
        plan: what to prepare.
        tasks: tasks of the longest stages; at most as many as there are parts.
        options: arguments of datatrove's executor, such as ``time`` and ``partition`` for SLURM.
        strict: refuse bad rows.

    Raises:
        ValueError: an unknown executor, wrong options, or the extra is not installed.
    """
    tasks = min(tasks, len(plan.parts))
    stages = [
        *dedup_stages(plan.config, plan.parts, plan.storage, plan.key),
        Stage("parts", [_MakeShare(plan, strict)], tasks),
        Stage("manifest", [_Finish(plan)], 1),
    ]
    run_stages(executor, stages, plan.storage.shown(f"logs/{plan.key[:16]}"), options)


def run_stages(executor: str, stages: Sequence[Stage], logs: str, options: Mapping[str, Any]) -> None:
    """Run ``stages`` one after the other; see ``run_on``."""
    if executor not in EXECUTORS:
        raise ValueError(f"executor {executor!r} is unknown; {suggestion(executor, EXECUTORS)}")
    module, name = EXECUTORS[executor]
    make, previous = getattr(engine_module(module), name), None
    for stage in stages:
        given = {"depends": previous, "skip_completed": False, "logging_dir": f"{logs}/{stage.name}", **options}
        if executor == "slurm":
            given.setdefault("job_name", f"lclm-{stage.name}")
        if executor == "local":
            given["workers"] = min(given.get("workers", 1), stage.tasks)
        try:
            previous = make(pipeline=stage.steps, tasks=stage.tasks, **given)
        except TypeError as error:
            raise ValueError(f"executor {executor} with {dict(options)}: {error}; give its arguments by -o") from None
    if previous is None:
        return
    try:
        previous.run()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:  # of sbatch, which has said why
        raise ValueError(
            f"executor {executor} with {dict(options)} cannot start its jobs: {error}; call it where sbatch can be"
            " called, with arguments that the cluster takes (-o)"
        ) from None
