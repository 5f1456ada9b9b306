"""The chain of stages: each starts from the last one's final parameters with a fresh optimizer and schedule."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from lclm_jax.config import Config, RunPaths
from lclm_jax.config.base import suggestion
from lclm_jax.data.loading.index_summary import summarize
from lclm_jax.data.loading.loader import make_loader
from lclm_jax.data.loading.position import BatchLoader, Position
from lclm_jax.errors import LclmError
from lclm_jax.parallel import broadcast_from_process_0, make_mesh, row_parts, validate_mesh
from lclm_jax.text.run_tokenizers import load_tokenizers, resolve
from lclm_jax.text.tokenizer import Tokenizers
from lclm_jax.train.checkpoints.checkpoint import Checkpoints, DamagedCheckpoint
from lclm_jax.train.checkpoints.emergency_checkpoint import emergency_checkpoints
from lclm_jax.train.checkpoints.provenance import (
    check_provenance,
    checkpoints_folder,
    parent_of,
)
from lclm_jax.train.core.hooks import Hook
from lclm_jax.train.core.loop import run_stage
from lclm_jax.train.core.stage_run import MakeStep, Probe, StageRun
from lclm_jax.train.core.starting_params import ReadImports, Start, check_taught, starting_params, teacher_params
from lclm_jax.train.core.step import make_train_step
from lclm_jax.train.logging.progress import Reporter, make_reporter
from lclm_jax.train.logging.trackers import Reporters, open_trackers
from lclm_jax.train.supervise.preemption import own_deadline
from lclm_jax.types import Params

logger = logging.getLogger(__name__)


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
    own_deadline()  # a wrong one is refused before anything is opened
    tokenizers = load_tokenizers(config)
    config = resolve(config, tokenizers)
    mesh = make_mesh(config.mesh)
    validate_mesh(config, mesh, [only_stage] if only_stage else None)
    keep_compiled(config)
    trackers = open_trackers(config)
    reporter = Reporters([make_reporter(config.train.log_every), *trackers])
    try:
        start = Start(mesh, tokenizers, read_imports)
        shared = _Shared(start, reporter, make_probe, force, hooks, make_step)
        _train_stages(config, only_stage, shared)
    finally:
        for tracker in trackers:
            tracker.close()


def keep_compiled(config: Config) -> None:
    """Let JAX store compiled programs where a restart finds them (``train.compilation_cache``).

    Nothing is changed where it has a place already, by its variable or by who called. On CPUs the place has to be
    named: a program compiled for one CPU may not run on another that finds it.
    """
    place = config.train.compilation_cache
    if jax.config.values["jax_compilation_cache_dir"] is not None or place is None:
        return
    if place == "auto":
        if jax.default_backend() == "cpu":
            return
        place = str(RunPaths(config).root / "compiled")
    jax.config.update("jax_compilation_cache_dir", place)
    logger.debug("compiled programs are kept in %s", place)


class _Shared(NamedTuple):
    """What all stages of a call are trained with."""

    start: Start
    reporter: Reporter
    make_probe: MakeProbe | None
    force: bool
    hooks: Sequence[Hook]
    make_step: MakeStep


def _train_stages(config: Config, only_stage: str | None, shared: _Shared) -> None:
    for stage in [only_stage] if only_stage else config.stages:
        if finished(config, stage, shared.force):
            logger.info("%s: finished before", stage)
            emergency_checkpoints(config, stage).delete_all()  # a crash may have come before the end did it
            continue
        parent = parent_of(config, stage)
        if parent is not None and not finished(config, parent, shared.force):
            raise LclmError(f"stage {stage} starts from {parent}, which is not finished; train {parent} first")
        run_stage(_stage_run(config, stage, shared))


def finished(config: Config, stage: str, force: bool = False) -> bool:
    """Whether ``stage`` has its final checkpoint; ``force``: be it of other settings.

    A newest checkpoint that is damaged is none: ``run_stage`` sets it aside and resumes from the one before.

    Raises:
        ChangedConfigError: it has, and was trained with other settings than ``config`` says.
    """
    with Checkpoints(checkpoints_folder(config, stage)) as checkpoints:
        latest = checkpoints.latest()
        if latest is None:
            return False
        try:
            meta = checkpoints.meta(latest)
        except DamagedCheckpoint as fault:
            logger.warning("%s: %s", stage, fault)
            return False
    check_provenance(resolve(config), stage, meta["provenance"], force)
    return latest == config.stages[stage].steps


def _stage_run(config: Config, stage: str, shared: _Shared) -> StageRun:
    mesh, tokenizers, make_probe = shared.start.mesh, shared.start.tokenizers, shared.make_probe

    def initial_params() -> Params:
        return starting_params(config, stage, shared.start)

    def teacher() -> Params:
        return teacher_params(config, stage, shared.start)

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
        check_taught(config, stage)
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
        teacher=teacher if config.stages[stage].teacher_copied else None,
        probe=probe,
        hooks=shared.hooks,
        force=shared.force,
    )
