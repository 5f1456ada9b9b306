"""``lclm data teach``: the largest logits of a teacher, stored once for all rows that a stage trains on."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch
from lclm_jax.config import Config, ModelConfig
from lclm_jax.config.base import suggestion
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.teacher_rows import TaughtRows, TeacherStore
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import logits, read_raw
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.progress import log_progress
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.train.core.loss import teacher_model
from lclm_jax.train.core.starting_params import ReadImports, Start, starting_params, teacher_origin, teacher_params
from lclm_jax.train.core.step import put_batch
from lclm_jax.types import Params

_SURE = -1e-6
"""Largest logarithm of a probability that is stored: 0 stands for none."""


class Taught(NamedTuple):
    """What was stored."""

    rows: int
    positions: int
    """Positions with a teacher, of the rows stored by this call."""
    bytes: int
    """Of these."""


def teach(
    config: Config,
    stage: str,
    read_imports: ReadImports | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Taught:
    """Store the ``distill.top_k`` largest logits of the teacher of ``stage`` in ``distill.offline``.

    Files that are there are kept, so that an interrupted call goes on. One process, all of its devices.

    Raises:
        LclmError: the stage is not distilled from stored logits, or draws ratios; the folder holds other logits; data
            or weights are missing.
    """
    distill = config.stages[stage].distill
    if distill is None or distill.offline is None or distill.top_k is None:
        raise LclmError(f"stage {stage} learns from no stored logits; set stages.{stage}.distill.offline and .top_k")
    tokenizers = load_tokenizers(config)
    config, mesh = resolve(config, tokenizers), make_mesh(config.mesh)
    settings, store, online = config.stages[stage], TeacherStore(Path(distill.offline)), _online(config, stage)
    missing = [number for number in range(settings.steps) if not store.has(number)]
    positions = size = 0
    with use_mesh(mesh), make_loader(online, stage, tokenizers) as loader:
        about = {"index_digest": loader.digest, "top_k": distill.top_k, "rows_per_file": settings.batch_rows}
        store.begin(about | {"teacher": teacher_origin(config, stage)})
        make_batch = loader.maker
        if missing:
            decoder = _decoder(online, stage, Start(mesh, tokenizers, read_imports))
            largest = jax.jit(functools.partial(_largest, teacher_model(config.model, distill), distill.top_k))
        for done, number in enumerate(missing, 1):
            batch, _ = make_batch(number)
            there_BS = (batch.loss_weights > 0) & (batch.twin_index >= 0)
            ids_BSK, logits_BSK = jax.device_get(largest(decoder, put_batch(batch, mesh)))
            rows = TaughtRows.of(there_BS, ids_BSK, logits_BSK, config.model.decoder.vocab_size)
            size += store.write(number, rows)
            positions += rows.places.size
            if progress is not None:
                progress(done, len(missing))
    return Taught(settings.steps * settings.batch_rows, positions, size)


def teach_stage(config: Config, stage: str | None, read_imports: ReadImports) -> str:
    """``teach`` with progress, of the first distilled stage if none is named; what was stored, in a line."""
    distilled = [name for name, settings in config.stages.items() if settings.distill is not None]
    if stage is None and not distilled:
        raise LclmError("no stage is distilled; set stages.NAME.distill")
    if stage is not None and stage not in config.stages:
        raise LclmError(f"stage {stage!r} is unknown; {suggestion(stage, config.stages)}")
    name = stage or distilled[0]
    taught = teach(config, name, read_imports, log_progress(unit="batches", scale=1))
    size = f", {taught.bytes / taught.positions:.0f} bytes each" if taught.positions else ""
    return f"{name}: {taught.rows:,} rows, {taught.positions:,} positions stored by this call{size}"


def _online(config: Config, stage: str) -> Config:
    """``config`` with the teacher of ``stage`` run in every step, not stored."""
    settings = config.stages[stage]
    assert settings.distill is not None
    distill = settings.distill.model_copy(update={"offline": None, "top_k": None})
    return config.model_copy(
        update={"stages": {**config.stages, stage: settings.model_copy(update={"distill": distill})}}
    )


def _decoder(config: Config, stage: str, start: Start) -> Params:
    """The teacher's decoder: where nothing is copied in training, the one that the stage begins with, too."""
    if config.stages[stage].teacher_copied:
        return teacher_params(config, stage, start)
    decoder: Params = starting_params(config, stage, start)["decoder"]
    return decoder


def _largest(model: ModelConfig, top_k: int, decoder: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(tokens int32, logarithms of their probabilities float32), both [B, S, K], at the twin of every position."""
    hidden_BSD = read_raw(decoder, model, batch).hidden_BSD
    rows, positions, width = hidden_BSD.shape
    count = _pieces(positions, max(1, model.loss_chunk // rows))

    def of_piece(hidden_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BSV = logits({"decoder": decoder}, model, hidden_BSD)
        largest_BSK, ids_BSK = jax.lax.top_k(logits_BSV, top_k)
        shares_BSK = largest_BSK - jax.nn.logsumexp(logits_BSV, axis=-1, keepdims=True)
        return ids_BSK, jnp.minimum(shares_BSK, _SURE)

    pieces = jnp.moveaxis(hidden_BSD.reshape(rows, count, positions // count, width), 1, 0)
    ids, shares = jax.lax.map(of_piece, pieces)
    ids_BSK, shares_BSK = (jnp.moveaxis(x, 0, 1).reshape(rows, positions, top_k) for x in (ids, shares))
    return ids_BSK, shares_BSK


def _pieces(positions: int, longest: int) -> int:
    """The fewest equal pieces of ``positions`` of which none is longer than ``longest``."""
    return next(count for count in range(1, positions + 1) if positions % count == 0 and positions // count <= longest)
