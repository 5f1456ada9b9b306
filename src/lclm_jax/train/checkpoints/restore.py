"""What a stage resumes from: its newest intact checkpoint of the same settings and rows, or fresh parameters."""

import logging
from collections.abc import Collection
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from lclm_jax.data.loading.position import BatchLoader
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from lclm_jax.train.checkpoints.emergency_checkpoint import EmergencyCheckpoints
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.checkpoints.provenance import check_provenance, checkpoints_folder, parent_of
from lclm_jax.train.core.initial_state import abstract_state, fresh_state, with_fresh_lora, without_missing_lora
from lclm_jax.train.core.optimizer import Optimizer
from lclm_jax.train.core.stage_run import StageRun
from lclm_jax.train.core.state import TrainState
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

_FOLDED = "folded"
"""The key of stage k is that of the seed with k folded in (k = 0: that of the seed)."""


def starting_state(
    run: StageRun, optimizer: Optimizer, checkpoints: Checkpoints, copies: EmergencyCheckpoints
) -> tuple[TrainState, JsonObject | None, JsonObject]:
    """The state to resume from, the JSON stored with it (None for a stage that starts), and what of it never changes.

    ``stage_keys`` says how the random key of the stage follows from the seed. Runs that were begun before it was stored
    go on as they did: stage k of seed s had the key of the seed s + k, which was also that of stage k - 1 of s + 1.
    """
    state, meta = _resumed(run, optimizer, checkpoints, copies)
    rule = _stage_keys(run) if meta is None else meta.get("stage_keys")
    if state is None:
        number, seed = list(run.config.stages).index(run.stage), run.config.seed
        place = (seed, number) if rule == _FOLDED else (seed + number, 0)
        state = fresh_state(run.initial_params(), run.config.model, optimizer, run.mesh, *place)
    return state, meta, {} if rule is None else {"stage_keys": rule}


def _stage_keys(run: StageRun) -> str | None:
    """The rule of a stage that starts: that of the stage before it."""
    parent = parent_of(run.config, run.stage)
    if parent is None:
        return _FOLDED
    with Checkpoints(checkpoints_folder(run.config, parent)) as checkpoints:
        latest = checkpoints.latest()
        return _FOLDED if latest is None else checkpoints.meta(latest).get("stage_keys")


def _resumed(
    run: StageRun, optimizer: Optimizer, checkpoints: Checkpoints, copies: EmergencyCheckpoints
) -> tuple[TrainState | None, JsonObject | None]:
    """The newest state that can be used, and the JSON stored with it; None if there is none."""
    model = run.config.model
    abstract = abstract_state(model, optimizer, run.mesh)
    damaged: list[str] = []
    latest = checkpoints.latest()
    newer = copies.newest(run.mesh)
    while newer is not None and newer > (latest or 0):
        if (found := copies.restore(newer, abstract)) is not None:
            check_provenance(run.config, run.stage, found[1]["provenance"], run.force)
            logger.info("%s: resuming from the emergency checkpoint of step %d", run.stage, newer)
            return found
        newer = copies.newest(run.mesh, below=newer)
    while latest is not None:
        try:
            return _restore(run, abstract, checkpoints, latest)
        except DamagedCheckpoint as fault:
            aside = set_aside(checkpoints, latest, "damaged")
            damaged.append(str(aside))
            latest = checkpoints.latest()
            next_best = f"step {latest}" if latest is not None else "none: there is no other"
            logger.warning("%s; it is kept as %s. Resuming from %s", fault, aside, next_best)
    if damaged:
        raise CheckpointError(
            f"every checkpoint of stage {run.stage} is damaged ({', '.join(damaged)}); delete"
            f" {checkpoints.folder.parent} to train the stage again, or restore a copy of one"
        )
    return None, None


def _restore(run: StageRun, abstract: TrainState, checkpoints: Checkpoints, step: int) -> tuple[TrainState, JsonObject]:
    """State and meta of the checkpoint of ``step``, whose files and values are checked."""
    checkpoints.check(step)
    meta = checkpoints.meta(step)
    check_provenance(run.config, run.stage, meta["provenance"], run.force)
    model = run.config.model

    def stored() -> Collection[str]:
        return LazyCheckpoint(checkpoints.folder / str(step)).shapes

    params = without_missing_lora(abstract.params, model, stored)
    state = checkpoints.restore(step, abstract._replace(params=params))
    checkpoints.seal(step)
    return state._replace(params=with_fresh_lora(state.params, model, run.config.seed, run.mesh)), meta


def set_aside(checkpoints: Checkpoints, step: int, why: str) -> Path:
    """Rename the checkpoint of ``step`` so that none takes it for one, on all processes together; its new folder."""
    aside = checkpoints.folder / f"{why}-{step}"
    if jax.process_index() == 0:
        aside = checkpoints.set_aside(step, why)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint set aside")
    return aside


def check_rows(run: StageRun, checkpoints: Checkpoints, meta: JsonObject | None, loader: BatchLoader) -> list[str]:
    """Refuse other rows than the checkpoint's; what differs in settings and rows where the run is forced to resume."""
    if not meta:
        return []
    forced = check_provenance(run.config, run.stage, meta["provenance"], run.force)
    if meta["index_digest"] == loader.digest:
        return forced
    rows = f"index {meta['index_digest'][:12]}, now {loader.digest[:12]}"
    if not run.force:
        raise CheckpointError(
            f"{checkpoints.folder} was trained on other rows ({rows}); restore the prepared data, or delete"
            f" {checkpoints.folder.parent} to train the stage again"
        )
    return [*forced, f"rows: {rows}"]
