"""Preparation on datatrove's executors (extra ``[prepare]``): processes, SLURM job arrays, Ray clusters.

Tasks share the parts of the plan among each other; a last task writes the manifest. A part that is made is never made
again, so a job that died is simply started again.
"""

from dataclasses import dataclass

from lclm_jax.data.prepare.datatrove_engine import Stage, run_stages
from lclm_jax.data.prepare.deduplication import dedup_stages
from lclm_jax.data.prepare.planning import Plan
from lclm_jax.data.prepare.run import finish, make_parts
from lclm_jax.types import ReadOnlyJson


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


def run_on(executor: str, plan: Plan, tasks: int, options: ReadOnlyJson, strict: bool = False) -> None:
    """Prepare ``plan`` in ``tasks`` tasks; SLURM returns once the jobs are submitted, the others when all is done.

    Args:
        executor: a name of ``EXECUTORS``.
        plan: what to prepare.
        tasks: tasks of the longest stages; at most as many as there are parts.
        options: arguments of datatrove's executor, such as ``time`` and ``partition`` for SLURM.
        strict: refuse bad rows.

    Raises:
        LclmError: an unknown executor, wrong options, or the extra is not installed.
    """
    tasks = min(tasks, len(plan.parts))
    stages = [
        *dedup_stages(plan.config, plan.parts, plan.storage, plan.key),
        Stage("parts", [_MakeShare(plan, strict)], tasks),
        Stage("manifest", [_Finish(plan)], 1),
    ]
    run_stages(executor, stages, plan.storage.shown(f"logs/{plan.key[:16]}"), options)
