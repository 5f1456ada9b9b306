"""Runs a study: first the shared data, then baseline and pilot, the check of its size, and the other variants."""

import logging
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lclm_jax.ablate.cost import measure_cost
from lclm_jax.ablate.jobs import Job, collect, done, jobs_of, open_jobs
from lclm_jax.ablate.measure import Measurer
from lclm_jax.ablate.results import VariantResult
from lclm_jax.ablate.statistics import detectable, diverged, sd_of_pilot_bound, seeds_needed
from lclm_jax.ablate.train_seeds import Progress, Trained, train_single, train_vmapped
from lclm_jax.ablate.variants import BASELINE, expand, pilot_of, shared_config, variant_config, variant_hash
from lclm_jax.config import Config, StudyConfig
from lclm_jax.data.prepare.run import prepare_data
from lclm_jax.errors import LclmError
from lclm_jax.machine import cores
from lclm_jax.ops.run_folder import own_run
from lclm_jax.parallel import make_mesh
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.version import __version__

logger = logging.getLogger(__name__)

_CURVE_POINTS = 100


class StudyTooSmall(LclmError):
    """The study cannot detect the effect that it was designed for; the message says how many seeds could."""


def run_study(study: StudyConfig, command: Sequence[str], anyway: bool = False) -> None:
    """Run every job that is not done, each in a process of its own.

    Args:
        study: the study.
        command: what runs one job, given its number as a last argument.
        anyway: run the variants even if baseline and pilot show that the study is too small.

    Raises:
        StudyTooSmall: the smallest effect is below what the seeds can detect.
        LclmError: a job failed; finished jobs are kept, and the same call resumes with the others.
    """
    prepare(study)
    total, begun = len(jobs_of(study)), time.monotonic()
    first = (BASELINE, pilot_of(study))
    left = sorted(open_jobs(study), key=lambda one: one[1].variant.name not in first)
    for ran, (number, job) in enumerate(left):
        if job.variant.name not in first and not anyway:
            check_size(study)
        rest = (time.monotonic() - begun) / ran * (len(left) - ran) if ran else None
        eta = "" if rest is None else f", about {rest / 60:.0f} min left"
        logger.info("[%d/%d] %s, seeds %s%s", number + 1, total, job.variant.name, _list(job.seeds), eta)
        finished = subprocess.run([*command, str(number)], check=False)
        if finished.returncode:
            raise LclmError(
                f"job {number} ({job.variant.name}, seeds {_list(job.seeds)}) exited with status {finished.returncode};"
                " finished jobs are kept: fix the cause and rerun the same command to resume"
            )


def prepare(study: StudyConfig) -> None:
    """Prepare the corpus that all variants share, unless the base configuration names one that is prepared."""
    config = shared_config(study)
    if config.data.prepared is None:
        with own_run(config):
            prepare_data(config)


def check_size(study: StudyConfig) -> None:
    """Raise ``StudyTooSmall`` if the paired differences of baseline and pilot show that the study could only tie."""
    results = collect(study)
    base, pilot = (
        dict(zip(results[name].seeds, results[name].measures[study.primary], strict=True))
        for name in (BASELINE, pilot_of(study))
    )
    if lost := diverged(base) or diverged(pilot):
        raise StudyTooSmall(f"seeds {_list(lost)} of baseline or pilot diverged; lower the learning rate")
    sd = sd_of_pilot_bound(base, pilot)
    found = detectable(sd, len(study.seeds), study.confidence, study.power)
    if found > study.smallest_effect:
        needed = seeds_needed(study.smallest_effect, sd, study.confidence, study.power)
        raise StudyTooSmall(
            f"with {len(study.seeds)} seeds, {study.name} can detect differences in {study.primary} of {found:.4f} or"
            f" more (standard deviation of {pilot_of(study)} minus baseline: at most {sd:.4f});"
            f" smallest_effect={study.smallest_effect} needs {needed} seeds: add seeds, train longer, or pass --anyway"
        )


def run_job(study: StudyConfig, job: Job, progress: Progress) -> None:
    """Train and measure the runs of ``job`` in this process and write its result, unless that is done."""
    if done(study, job) is not None:
        logger.info("%s, seeds %s: already done", job.variant.name, _list(job.seeds))
        return
    configs = [variant_config(study, job.variant, seed) for seed in job.seeds]
    tokenizers = load_tokenizers(configs[0])
    configs = [resolve(config, tokenizers) for config in configs]
    mesh = make_mesh(configs[0].mesh)
    trained = _trained(study, configs, tokenizers, mesh, progress)
    measuring = time.perf_counter()
    base = resolve(variant_config(study, expand(study)[0], job.seeds[0]), tokenizers)
    measurer = Measurer(configs[0], base, tokenizers, mesh)
    measured = [measurer(params) for params in trained.params]
    if jax.process_index():
        return
    measures = {name: [values[name] for values, _ in measured] for name in measured[0][0]}
    measures["train_loss"] = trained.losses[:, -max(1, trained.losses.shape[1] // 20) :].mean(axis=1).tolist()
    every = max(1, trained.losses.shape[1] // _CURVE_POINTS)
    VariantResult(
        variant=job.variant.name,
        overrides=job.variant.overrides,
        config_hash=variant_hash(study, job.variant),
        seeds=job.seeds,
        measures=measures,
        curves={"steps": [_thinned(np.array(trained.steps), every)], "train_loss": _curves(trained, every)},
        verbatim_by_depth=[depths for _, depths in measured],
        cost=measure_cost(configs[0], tokenizers, trained.raw_tokens / max(trained.step_seconds, 1e-9)),
        seconds={
            "train": trained.step_seconds,
            "compile": trained.compile_seconds,
            "evaluate": time.perf_counter() - measuring,
        },
        environment=_environment(),
    ).write(job.path)


def _trained(
    study: StudyConfig, configs: Sequence[Config], tokenizers: Tokenizers, mesh: Mesh, progress: Progress
) -> Trained:
    if not study.together:
        return train_single(configs[0])
    # Steps of several ratios have no common program over the seeds: each seed draws its own.
    one_by_one = any(stage.ratios for stage in configs[0].stages.values())
    groups = [[config] for config in configs] if one_by_one else [list(configs)]
    return Trained.joined([train_vmapped(group, tokenizers, mesh, progress) for group in groups])


def _curves(trained: Trained, every: int) -> list[list[float]]:
    """[seed][point]: means over ``every`` steps."""
    return [_thinned(losses, every) for losses in trained.losses]


def _thinned(values: np.ndarray, every: int) -> list[float]:
    points = values.size // every
    return values[: points * every].reshape(points, every).mean(axis=1).tolist()


def _environment() -> dict[str, str]:
    device = jax.devices()[0]
    kind = f"{jax.device_count()} x {device.device_kind}"
    if device.platform == "cpu":
        count = cores()
        kind = f"CPU, {count} core{'s' if count > 1 else ''}"
    python = ".".join(map(str, sys.version_info[:3]))
    return {"lclm_jax": __version__, "jax": jax.__version__, "python": python, "devices": kind}


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
