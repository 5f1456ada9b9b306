"""The jobs of a study: what one process trains and measures, which jobs are done, and their joined results.

A job is a variant with all its seeds where they train together, else one run. Each writes one file under
``results/VARIANT/``; it counts while the variant's configuration hashes to what the file says.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lclm_jax.ablate.results import VariantResult
from lclm_jax.ablate.variants import Variant, expand, slug, variant_hash
from lclm_jax.config import ConfigError, StudyConfig

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """What one process does."""

    variant: Variant
    seeds: tuple[int, ...]
    path: Path
    """Its result."""


def jobs_of(study: StudyConfig) -> list[Job]:
    """All jobs of ``study``, those of the baseline first; their order is the numbering of ``--job``."""

    def of(variant: Variant, seeds: tuple[int, ...]) -> Job:
        name = "-".join(map(str, seeds))
        return Job(variant, seeds, Path(study.run_dir) / "results" / slug(variant.name) / f"seeds-{name}.json")

    groups = [study.seeds] if study.together else [(seed,) for seed in study.seeds]
    variants = expand(study)
    check_names(variants)
    return [of(variant, seeds) for variant in variants for seeds in groups]


def done(study: StudyConfig, job: Job) -> VariantResult | None:
    """The stored result of ``job``; None if it has none, or one of another configuration."""
    if not job.path.exists():
        return None
    result = VariantResult.read(job.path)
    if result.config_hash != variant_hash(study, job.variant):
        logger.info("%s: its configuration has changed since %s was written; it runs again", job.variant.name, job.path)
        return None
    return result


def collect(study: StudyConfig) -> dict[str, VariantResult]:
    """Variant -> its results over the seeds that are done, in the order of the study; those without any are absent."""
    found: dict[str, list[VariantResult]] = {}
    for job in jobs_of(study):
        if (result := done(study, job)) is not None:
            found.setdefault(job.variant.name, []).append(result)
    return {name: joined(results) for name, results in found.items()}


def joined(results: Sequence[VariantResult]) -> VariantResult:
    """Results of one variant over different seeds as one; speed is their mean, memory the largest, times add up."""
    first = results[0]
    if len(results) == 1:
        return first
    costs = [one.cost for one in results]
    return replace(
        first,
        seeds=[seed for one in results for seed in one.seeds],
        measures={name: [value for one in results for value in one.measures[name]] for name in first.measures},
        curves={**first.curves, "train_loss": [curve for one in results for curve in one.curves["train_loss"]]},
        verbatim_by_depth=[depths for one in results for depths in one.verbatim_by_depth],
        cost=replace(
            first.cost,
            raw_tokens_per_second=float(np.mean([cost.raw_tokens_per_second for cost in costs])),
            peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        ),
        seconds=_added([one.seconds for one in results]),
    )


def check_names(variants: Sequence[Variant]) -> None:
    """Raise ``ConfigError`` if two variants would write to one folder."""
    slugs = [slug(variant.name) for variant in variants]
    for variant, own in zip(variants, slugs, strict=True):
        if slugs.count(own) > 1:
            raise ConfigError(f"variant {variant.name!r} and another variant share the folder {own}; rename one")


def _added(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in times) for name in times[0]}


def open_jobs(study: StudyConfig) -> Iterator[tuple[int, Job]]:
    """(number, job) of every job that is not done."""
    for number, job in enumerate(jobs_of(study)):
        if done(study, job) is None:
            yield number, job
