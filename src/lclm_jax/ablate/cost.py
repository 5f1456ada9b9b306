"""What a study will cost, and what a variant cost: parameters, FLOPs by formula, memory of the process."""

import math
import resource
import sys

import jax
import numpy as np

from lclm_jax.ablate.jobs import done, jobs_of
from lclm_jax.ablate.results import Cost
from lclm_jax.ablate.variants import variant_config
from lclm_jax.batch import Batch
from lclm_jax.config import Config, StudyConfig
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.position import batch_stats
from lclm_jax.model.flops import step_flops
from lclm_jax.model.lclm import abstract_params
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.types import PyTree

_SAMPLE_BATCHES = 8


def planned(study: StudyConfig) -> tuple[list[tuple[str, ...]], str]:
    """(job, variant, seeds, parameters, steps, FLOPs, done) of every job as text, and the totals as a sentence.

    The time left is extrapolated from the jobs that are done, by FLOPs; it is left out if there are none.
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
        left += (
            f", about {spent_seconds * flops_left / spent_flops / 60:.0f} min at the speed of the jobs that are done"
        )
    return rows, left


def train_flops(config: Config) -> float:
    """Model FLOPs of a whole run, by formula, rows counted as full."""
    stages = config.stages.items()
    return sum(step_flops(config.model, stage, config.pack(name)).model * stage.steps for name, stage in stages)


def parameter_count(params: PyTree) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def measure_cost(config: Config, tokenizers: Tokenizers, raw_tokens_per_second: float) -> Cost:
    """The cost of the variant ``config``; FLOPs per raw token are those of the first batches of its last stage.

    The formula assumes full rows. It is scaled by the positions in use: all variants share a row layout, so some leave
    rows half empty, which must not count.
    """
    sizes = {part: parameter_count(tree) for part, tree in abstract_params(config.model).items()}
    stage = list(config.stages)[-1]
    pack, settings = config.pack(stage), config.stages[stage]
    flops = step_flops(config.model, settings, pack)
    rows = settings.batch_rows
    encoder_each = flops.encoder.forward / (rows * pack.encoder_rows * pack.encoder_row_length)
    latents_each = flops.adapter.forward / (rows * pack.encoder_rows * pack.encoder_row_length / config.model.ratio)
    decoder_each = (flops.decoder.forward + flops.head.forward) / (rows * pack.row_length)
    encoder, latents, decoder, raw = _positions(config, stage, tokenizers)
    return Cost(
        encoder_parameters=sizes["encoder"],
        adapter_parameters=sizes["adapter"],
        decoder_parameters=sizes["decoder"],
        encoder_flops=encoder_each * encoder / raw,
        decoder_flops=(decoder_each * decoder + latents_each * latents) / raw,
        train_flops=train_flops(config),
        raw_tokens_per_second=raw_tokens_per_second,
        peak_memory_bytes=peak_memory_bytes(),
        positions_per_raw_token=decoder / raw,
    )


def peak_memory_bytes() -> int:
    """Peak memory of the accelerator so far; of this process, where the accelerator does not report any."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _positions(config: Config, stage: str, tokenizers: Tokenizers) -> tuple[int, int, int, int]:
    """Encoder positions, latents, decoder positions and raw tokens of the first batches of ``stage``."""
    totals = np.zeros(4, np.int64)
    with make_loader(config, stage, tokenizers) as loader:
        for _ in range(min(_SAMPLE_BATCHES, len(loader))):
            batch, stats = next(loader)
            totals += [*_used(batch), stats.raw_tokens]
    encoder, latents, decoder, raw = totals.tolist()
    return encoder, latents, decoder, raw


def _used(batch: Batch) -> tuple[int, int, int]:
    stats = batch_stats(batch)
    return int(np.count_nonzero(batch.encoder_segments)), stats.latents, stats.decoder_tokens
