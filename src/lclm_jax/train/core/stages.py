"""The chain of stages: each starts from the last one's final parameters with a fresh optimizer and schedule."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from lclm_jax.config import Config, RunPaths, load_config
from lclm_jax.config.base import suggestion
from lclm_jax.data.loading.index_summary import summarize
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.position import BatchLoader, Position
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import broadcast_from_process_0, make_mesh, row_parts, use_mesh, validate_mesh
from lclm_jax.text.tokenizer import Tokenizer, Tokenizers, check_vocabularies
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints
from lclm_jax.train.checkpoints.lazy_checkpoint import LazyCheckpoint
from lclm_jax.train.checkpoints.provenance import (
    check_provenance,
    checkpoints_folder,
    differing_keys,
    parent_of,
    starts_from_imports,
)
from lclm_jax.train.core.hooks import Hook
from lclm_jax.train.core.initial_state import params_shardings, random_params, with_fresh_lora, without_missing_lora
from lclm_jax.train.core.loop import run_stage
from lclm_jax.train.core.stage_run import MakeStep, Probe, StageRun
from lclm_jax.train.core.step import make_train_step
from lclm_jax.train.logging.progress import Reporter, make_reporter
from lclm_jax.train.logging.trackers import Reporters, open_trackers
from lclm_jax.types import JsonObject, Params, PyTree

logger = logging.getLogger(__name__)


ReadImports = Callable[[Config, Mesh], Params]
"""(config, mesh) -> sharded parameters from the folders of ``config.init``."""

MakeProbe = Callable[[Config, str, Tokenizers, Mesh], Probe]
"""(config, stage, tokenizers, mesh) -> what measures the stage's parameters."""


def train(
    config: Config,
    only_stage: str | None = None,
    read_imports: ReadImports | None = None,
    make_probe: MakeProbe | None = None,
    force: bool = False,
    hooks: Sequence[Hook] = (),
    make_step: MakeStep = make_train_step,
) -> None:
    """Train every stage of ``config`` that is not finished, or ``only_stage`` alone.

    An interrupted stage resumes from its newest checkpoint; its losses are those of an uninterrupted run.

    Args:
        config: the run.
        only_stage: None: all of them, in order.
        read_imports: reads ``config.init`` (``interop.init_from_hf.imported_params``; handed in, as interop builds on
            this module).
        make_probe: makes what ``train.probe`` measures with (``eval.probe.Probe``; handed in likewise).
        force: resume from checkpoints that were made with other settings or data.
        hooks: called after the steps that they ask for, before the stage saves or stops.
        make_step: makes the jitted step of a stage; fault injection wraps it.

    Raises:
        LclmError: unknown stage, the stage before is not finished, data are missing, settings have changed
            (``ChangedConfigError``), a checkpoint failed (``CheckpointError``), or training diverged.
        Interrupted: the process was asked to stop; the state was saved.
    """
    if only_stage is not None and only_stage not in config.stages:
        raise LclmError(f"stage {only_stage!r} is unknown; {suggestion(only_stage, config.stages)}")
    tokenizers = load_tokenizers(config)
    config = resolve(config, tokenizers)
    mesh = make_mesh(config.mesh)
    validate_mesh(config, mesh, [only_stage] if only_stage else None)
    trackers = open_trackers(config)
    reporter = Reporters([make_reporter(config.train.log_every), *trackers])
    try:
        shared = _Shared(mesh, tokenizers, reporter, read_imports, make_probe, force, hooks, make_step)
        _train_stages(config, only_stage, shared)
    finally:
        for tracker in trackers:
            tracker.close()


class _Shared(NamedTuple):
    """What all stages of a call are trained with."""

    mesh: Mesh
    tokenizers: Tokenizers
    reporter: Reporter
    read_imports: ReadImports | None
    make_probe: MakeProbe | None
    force: bool
    hooks: Sequence[Hook]
    make_step: MakeStep


def _train_stages(config: Config, only_stage: str | None, shared: _Shared) -> None:
    for stage in [only_stage] if only_stage else config.stages:
        if finished(config, stage, shared.force):
            logger.info("%s: finished before", stage)
            continue
        parent = parent_of(config, stage)
        if parent is not None and not finished(config, parent, shared.force):
            raise LclmError(f"stage {stage} starts from {parent}, which is not finished; train {parent} first")
        run_stage(_stage_run(config, stage, shared))


def finished(config: Config, stage: str, force: bool = False) -> bool:
    """Whether ``stage`` has its final checkpoint; ``force``: be it of other settings.

    Raises:
        ChangedConfigError: it has, and was trained with other settings than ``config`` says.
    """
    with Checkpoints(checkpoints_folder(config, stage)) as checkpoints:
        latest = checkpoints.latest()
        if latest is None:
            return False
        meta = checkpoints.meta(latest)
    check_provenance(resolve(config), stage, meta["provenance"], force)
    return latest == config.stages[stage].steps


def load_params(
    config: Config, stage: str | None = None, step: int | None = None, mesh: Mesh | None = None, ema: bool = False
) -> Params:
    """Parameters of a checkpoint in ``model.param_dtype``, for evaluation and generation.

    LoRA that the model got after that checkpoint was written is fresh: it changes nothing.

    Args:
        config: the run.
        stage: a stage; None: the last one that has a checkpoint.
        step: a step of the stage that has a checkpoint; None: the newest.
        mesh: where the arrays lie, sharded; None: NumPy arrays on the host.
        ema: read the averages of the parameters that the stage trained (``train.optimizer.ema_decay``).

    Raises:
        LclmError: there is no such checkpoint, it is damaged or has no averages (``CheckpointError``), or it is of
            another model.
    """
    stage, step = latest_checkpoint(config, stage, step)
    abstract = abstract_params(config.model)
    if mesh is not None:
        abstract = _placed(config, mesh)
    folder = checkpoints_folder(config, stage)
    with Checkpoints(folder) as checkpoints:
        _check_model(config, stage, checkpoints.meta(step))
        abstract = without_missing_lora(abstract, config.model, lambda: LazyCheckpoint(folder / str(step)).shapes)
        params = (
            LazyCheckpoint(folder / str(step), ema).placed(abstract)
            if ema
            else checkpoints.restore_params(step, abstract)
        )
    return with_fresh_lora(params, config.model, config.seed, mesh)


def open_params(config: Config, stage: str | None = None, step: int | None = None, ema: bool = False) -> LazyCheckpoint:
    """Parameters of a checkpoint to be read piece by piece; arguments and errors as ``load_params``."""
    stage, step = latest_checkpoint(config, stage, step)
    folder = checkpoints_folder(config, stage)
    with Checkpoints(folder) as checkpoints:
        _check_model(config, stage, checkpoints.meta(step))
    return LazyCheckpoint(folder / str(step), ema)


def latest_checkpoint(config: Config, stage: str | None = None, step: int | None = None) -> tuple[str, int]:
    """(stage, step) of the checkpoint that ``load_params`` reads; raises ``LclmError`` if there is none."""
    if stage is not None and stage not in config.stages:
        raise LclmError(f"stage {stage!r} is unknown; {suggestion(stage, config.stages)}")
    for name in [stage] if stage else reversed(config.stages):
        with Checkpoints(checkpoints_folder(config, name)) as checkpoints:
            steps = checkpoints.steps()
        if step is not None and stage is not None and step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"stage {stage} has no checkpoint of step {step}; it has: {known}")
        if steps:
            return name, steps[-1] if step is None else step
    where = checkpoints_folder(config, stage) if stage else RunPaths(config).root
    raise CheckpointError(f"{where} has no checkpoint; train first")


def load_tokenizers(config: Config) -> Tokenizers:
    """The run's tokenizers; the same object twice where there is one folder."""
    paths = RunPaths(config)
    if config.tokenizer.decoder is None and not (paths.decoder_tokenizer / "tokenizer.json").exists():
        raise LclmError(f"{paths.root} has no tokenizer yet; run `lclm data prepare` or `lclm pipeline`")
    decoder = Tokenizer.from_folder(paths.decoder_tokenizer)
    same = paths.encoder_tokenizer == paths.decoder_tokenizer
    tokenizers = Tokenizers(decoder, decoder if same else Tokenizer.from_folder(paths.encoder_tokenizer))
    check_vocabularies(config.model.decoder.vocab_size, config.model.encoder.vocab_size, tokenizers)
    return tokenizers


def resolve(config: Config, tokenizers: Tokenizers | None = None) -> Config:
    """``config`` with the ids of the memory tokens filled in from the decoder's tokenizer (None: the run's)."""
    if config.model.memory_token_ids is not None:
        return config
    tokenizers = tokenizers or load_tokenizers(config)
    model = config.model.model_copy(update={"memory_token_ids": tuple(tokenizers.decoder.memory_ids)})
    return config.model_copy(update={"model": model})


def _stage_run(config: Config, stage: str, shared: _Shared) -> StageRun:
    mesh, tokenizers, read_imports, make_probe = shared.mesh, shared.tokenizers, shared.read_imports, shared.make_probe
    parent = parent_of(config, stage)

    def initial_params() -> Params:
        if starts_from_imports(config, stage) and config.init.run:
            return _params_of_run(config, tokenizers, mesh)
        if starts_from_imports(config, stage):
            if read_imports is None:
                raise LclmError("config.init names imported weights and no reader was given; pass read_imports")
            plain = config.model_copy(update={"model": config.model.plain})
            return with_fresh_lora(read_imports(plain, mesh), config.model, config.seed, mesh)
        if parent is None:
            return random_params(config.model, config.seed, mesh)
        return load_params(config, parent, config.stages[parent].steps, mesh)

    @functools.cache
    def wait_for_index() -> None:
        """Let process 0 build the row index; the others then find it."""
        if jax.process_count() > 1:
            if jax.process_index() == 0:
                with make_loader(config, stage, tokenizers) as loader:
                    loader.info(config.stages[stage])
            broadcast_from_process_0(f"index of {stage}", None)

    def open_loader(start: Position) -> BatchLoader:
        wait_for_index()
        loader = make_loader(config, stage, tokenizers, start, row_parts(mesh))
        logger.info("%s: %s", stage, summarize(loader.info(config.stages[stage])))
        return loader

    probe = None
    if config.train.probe.every_steps is not None:
        if make_probe is None:
            raise LclmError("train.probe is set and nothing that measures was given; pass make_probe")
        probe = make_probe(config, stage, tokenizers, mesh)
    return StageRun(
        config=config,
        stage=stage,
        mesh=mesh,
        open_loader=open_loader,
        initial_params=initial_params,
        make_step=shared.make_step,
        reporter=shared.reporter,
        probe=probe,
        hooks=shared.hooks,
        force=shared.force,
    )


def _params_of_run(config: Config, tokenizers: Tokenizers, mesh: Mesh) -> Params:
    """Parameters of the checkpoint that ``config.init.run`` names, for the model and the tokenizers of ``config``."""
    folder, _, place = (config.init.run or "").partition("@")
    stage, _, step = place.partition("@")
    if step and not step.isdigit():
        raise LclmError(f"init.run={config.init.run!r}: {step!r} is no step; write FOLDER@STAGE@STEP")
    other = load_config(Path(folder) / "config.yaml").model_copy(update={"run_dir": folder})
    theirs = load_tokenizers(other)
    for role in Tokenizers._fields:
        if getattr(theirs, role).digest != getattr(tokenizers, role).digest:
            raise LclmError(f"init.run={config.init.run!r} has another {role} tokenizer; set tokenizer.{role} to its")
    found = latest_checkpoint(other, stage or None, int(step) if step else None)
    logger.info("starting from %s, %s step %d", folder, *found)
    return load_params(other.model_copy(update={"model": config.model}), *found, mesh)


def _placed(config: Config, mesh: Mesh) -> PyTree:
    """Shapes of the parameters with their shardings on ``mesh``."""
    with use_mesh(mesh):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_params(config.model),
            params_shardings(config.model, mesh),
        )


def _check_model(config: Config, stage: str, meta: JsonObject) -> None:
    stored = {
        name: value for name, value in meta["config"]["model"].items() if name in ("encoder", "decoder", "adapter")
    }
    now = config.model.model_dump(mode="json")
    # LoRA may be added to a model; what it drops in training is no part of its shape.
    loras = {tower: lora for tower, lora in meta["config"]["model"].get("lora", {}).items() if lora}
    stored["lora"] = {tower: lora | {"dropout": None} for tower, lora in loras.items()}
    now["lora"] = {tower: now["lora"][tower] and now["lora"][tower] | {"dropout": None} for tower in loras}
    differences = list(differing_keys(stored, {name: now[name] for name in stored}))
    if differences:
        key, old, new = differences[0]
        raise CheckpointError(
            f"the checkpoints of stage {stage} are of another model (model.{key}: {old!r}, now {new!r}); use the run's"
            f" own configuration, {RunPaths(config).resolved_config}"
        )
