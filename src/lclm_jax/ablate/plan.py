"""What a study will cost, before it runs."""

import math
from typing import Any

import jax

from lclm_jax.ablate.jobs import done, jobs_of
from lclm_jax.ablate.variants import variant_config
from lclm_jax.config import Config, StudyConfig
from lclm_jax.model.flops import step_flops
from lclm_jax.model.lclm import abstract_params


def planned(study: StudyConfig) -> tuple[list[tuple[str, ...]], str]:
    """(job, variant, seeds, parameters, steps, FLOPs, done) of every job as text, and the totals as a sentence.

    Time left is that of the jobs done, by their FLOPs; of a study without any it is not known.
    """
    rows: list[tuple[str, ...]] = []
    flops_left, spent_flops, spent_seconds = 0.0, 0.0, 0.0
    for number, job in enumerate(jobs_of(study)):
        config = variant_config(study, job.variant, job.seeds[0])
        flops, result = train_flops(config) * len(job.seeds), done(study, job)
        if result is None:
            flops_left += flops
        else:
            spent_flops, spent_seconds = spent_flops + flops, spent_seconds + sum(result.seconds.values())
        steps = sum(stage.steps for stage in config.stages.values())
        state = "" if result is None else f"{sum(result.seconds.values()):.0f} s"
        seeds = ", ".join(map(str, job.seeds))
        size = parameter_count(abstract_params(config.model))
        rows.append((str(number), job.variant.name, seeds, f"{size:,}", f"{steps:,}", f"{flops:.2e}", state))
    left = f"{sum(not row[-1] for row in rows)} of {len(rows)} jobs to run, {flops_left:.2e} model FLOPs"
    if spent_flops and flops_left:
        left += f", about {spent_seconds * flops_left / spent_flops / 60:.0f} min at the speed of those done"
    return rows, left


def train_flops(config: Config) -> float:
    """Model FLOPs of a whole run, by formula, rows counted as full."""
    stages = config.stages.items()
    return sum(step_flops(config.model, stage, config.pack(name)).model * stage.steps for name, stage in stages)


def parameter_count(params: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
