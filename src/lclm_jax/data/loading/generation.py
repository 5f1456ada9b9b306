"""Which part of a prepared corpus that has grown a stage reads: a stage that began keeps its rows."""

import logging

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.loading.row_index import index_digests, is_stored, joint_digest
from lclm_jax.data.packing.mixture import RatioSchedule
from lclm_jax.data.packing.sources import make_sources
from lclm_jax.data.store.shards import generation_keys, holds_collections, read_manifest, shard_cache
from lclm_jax.data.store.storage import Storage
from lclm_jax.text.tokenizer import Tokenizers

logger = logging.getLogger(__name__)


def stage_generation(config: Config, stage: str, tokenizers: Tokenizers, index_digest: str | None = None) -> int:
    """The generation of the prepared corpus that the rows of ``stage`` are made of, from 0.

    It is the one that the stage's row index was planned for, or that a checkpoint belongs to; for a new stage the
    latest.

    Args:
        config: The run.
        stage: Name of a stage.
        tokenizers: The run's tokenizers.
        index_digest: Of the row index, from a checkpoint; None: there is none.

    Raises:
        PreparedError: Nothing is prepared.
    """
    manifest = read_manifest(Storage(RunPaths(config).prepared, shard_cache(config)))
    latest = len(generation_keys(manifest)) - 1
    wanted = {config.data.sources[name].collection for name in config.stages[stage].sources}
    for generation in range(latest, -1, -1) if latest else ():
        if not holds_collections(manifest, generation, wanted):
            break
        if _began(config, stage, tokenizers, generation, index_digest):
            if generation < latest:
                logger.info("%s: it began before the corpus grew, and goes on with the rows of then", stage)
            return generation
    return latest


def _began(config: Config, stage: str, tokenizers: Tokenizers, generation: int, index_digest: str | None) -> bool:
    """Whether ``stage`` began with the rows of ``generation``."""
    schedule, digests, stored = RatioSchedule(config, stage), [], []
    for number, ratio in enumerate(schedule.ratios):
        own, part = at_ratio(config, ratio), (number, len(schedule.ratios))
        sources = make_sources(own, stage, tokenizers, part=part, generation=generation)
        digests.append(index_digests(own, stage, sources))
        name = f"index/ratio-{ratio}" if schedule.listed else "index"
        folders = {RunPaths(config).local_stage(stage), RunPaths(config).stage(stage)}
        stored.append(any(is_stored(folder / name, digests[-1]) for folder in folders))
    joint = {joint_digest(one, schedule) for one in zip(*digests, strict=True)}
    return all(stored) or index_digest in joint


def at_ratio(config: Config, ratio: int) -> Config:
    """``config`` with the compression ratio ``ratio``."""
    return config.model_copy(update={"model": config.model.model_copy(update={"ratio": ratio})})
