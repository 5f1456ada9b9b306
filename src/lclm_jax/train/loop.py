"""The loop of one stage: batches in, steps, metrics and checkpoints out. The only place with clocks and signals."""

import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lclm_jax import __version__
from lclm_jax.config import config_hash
from lclm_jax.data.loader import Loader, Position
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import use_mesh
from lclm_jax.train.checkpoint import CheckpointError, Checkpoints, DamagedCheckpoint
from lclm_jax.train.events import Events
from lclm_jax.train.feeder import Feeder
from lclm_jax.train.local_copies import LocalCopies
from lclm_jax.train.metrics import MetricsLog
from lclm_jax.train.optimizer import Optimizer, make_optimizer
from lclm_jax.train.probing import Prober
from lclm_jax.train.profiling import Profile, memory_advice
from lclm_jax.train.provenance import check_provenance, checkpoints_folder, provenance
from lclm_jax.train.records import read_metrics
from lclm_jax.train.rewinds import Rewind, add_rewind, read_rewinds, with_skips
from lclm_jax.train.saving import Saver
from lclm_jax.train.slices import SavedParams
from lclm_jax.train.state import TrainState, abstract_state, fresh_state, with_fresh_lora, without_missing_lora
from lclm_jax.train.step import make_train_step, put_batch
from lclm_jax.train.stopping import StopRequest, stop_requests
from lclm_jax.train.watchdog import EXIT_RETRY, Watchdog
from lclm_jax.train.watching import StageRun, TrainingDiverged, Watch

logger = logging.getLogger(__name__)

_PATIENCE = 4.0
"""Restoring and compiling may take so many times ``train.watchdog_seconds``."""


class Interrupted(SystemExit):
    """Training saved a checkpoint and stopped because it was asked to; ends the process with status 75."""

    def __init__(self, stage: str, step: int):
        super().__init__(EXIT_RETRY)
        self.stage, self.step = stage, step


def run_stage(run: StageRun) -> None:
    """Train one stage to its end, from its newest intact checkpoint if it has one.

    Raises:
        CheckpointError: no checkpoint can be written, read or trusted, or its data are others.
        ChangedConfigError: the stage's checkpoint was made with other settings.
        TrainingDiverged: ``train.max_nonfinite_steps`` updates in a row were not finite, or more loss spikes than
            ``train.spike.max_rewinds`` were undone.
        DataStalled: the loader gave nothing in time, several times in a row.
        Interrupted: the run was asked to stop; the state was saved.
    """
    while True:
        try:
            return _run_once(run)
        except Rewind as rewind:
            _prepare_rewind(run, rewind)


def _run_once(run: StageRun) -> None:
    train, opened = run.config.train, time.time()
    first_process = jax.process_index() == 0
    events = Events(run.folder, writes=first_process)
    local = Path(train.checkpoint.local_dir) / run.config.name / run.stage if train.checkpoint.local_dir else None
    stacks = run.folder / f"stacks-process-{jax.process_index()}.txt"
    with (
        use_mesh(run.mesh),
        Watchdog(train.watchdog_seconds, stacks) as watchdog,
        Checkpoints(checkpoints_folder(run.config, run.stage), train.checkpoint) as checkpoints,
    ):
        watchdog.beat("restoring", _PATIENCE)
        optimizer = make_optimizer(train.optimizer, run.config.stages[run.stage], abstract_params(run.config.model))
        copies = LocalCopies(local)
        state, meta = _begin(run, optimizer, checkpoints, copies)
        first, rows = (meta["step"] if meta else 0), run.config.stages[run.stage].batch_rows
        start = Position.from_state(meta) if meta else Position()
        with (
            Feeder(run.open_loader, start, rows, train.data_timeout_seconds) as feeder,
            stop_requests(train.stop) as stop,
        ):
            forced = _check_rows(run, checkpoints, meta, feeder.loader)
            _note_beginning(run, events, first, opened)
            if forced:
                logger.warning("%s: going on although settings changed (%s)", run.stage, "; ".join(forced))
                events.write("forced", step=first, differences=forced)
            writer = MetricsLog(run.folder / "metrics.jsonl", first, first_process)
            run.reporter.start(run.stage, first, run.config.stages[run.stage].steps)
            saver = Saver(checkpoints, train.checkpoint, events)
            watch = Watch(run, writer, events, checkpoints, feeder.loader)
            prober = Prober(run.probe, train.probe.every_steps, run.folder, first, events, run.reporter)
            tools = _Tools(feeder, checkpoints, saver, copies, watch, watchdog, stop, events, prober, start, forced)
            config = with_skips(run.config, run.stage, read_rewinds(run.folder))
            try:
                _loop(run, state, make_train_step(config, run.stage, optimizer, run.mesh), tools)
            finally:
                run.reporter.finish()
                prober.close()
                writer.close()
                copies.wait()


def _begin(
    run: StageRun, optimizer: Optimizer, checkpoints: Checkpoints, copies: LocalCopies
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state to go on from and the JSON stored with it; None for a stage that begins."""
    model = run.config.model
    abstract = abstract_state(model, optimizer, run.mesh)
    damaged: list[str] = []
    latest = checkpoints.latest()
    newer = copies.newest()
    if newer is not None and newer > (latest or 0) and (found := copies.restore(newer, abstract)) is not None:
        check_provenance(run.config, run.stage, found[1]["provenance"], run.force)
        logger.info("%s: going on from the local copy of step %d", run.stage, newer)
        return found
    while latest is not None:
        try:
            return _restore(run, abstract, checkpoints, latest)
        except DamagedCheckpoint as fault:
            aside = _set_aside(checkpoints, latest, "damaged")
            damaged.append(str(aside))
            latest = checkpoints.latest()
            next_best = f"step {latest}" if latest is not None else "none: there is no other"
            logger.warning("%s; it is kept as %s. Going on from %s", fault, aside, next_best)
    if damaged:
        raise CheckpointError(
            f"every checkpoint of stage {run.stage} is damaged ({', '.join(damaged)}); delete"
            f" {checkpoints.folder.parent} to train the stage again, or bring back a copy of one"
        )
    seed = run.config.seed + list(run.config.stages).index(run.stage)
    return fresh_state(run.initial_params(), model, optimizer, run.mesh, seed), None


def _restore(
    run: StageRun, abstract: TrainState, checkpoints: Checkpoints, step: int
) -> tuple[TrainState, dict[str, Any]]:
    """State and meta of the checkpoint of ``step``, whose files and values are checked."""
    _check_together(checkpoints, step)
    meta = checkpoints.meta(step)
    check_provenance(run.config, run.stage, meta["provenance"], run.force)
    model = run.config.model

    def stored() -> Collection[str]:
        return SavedParams(checkpoints.folder / str(step)).shapes

    params = without_missing_lora(abstract.params, model, stored)
    state = checkpoints.restore(step, abstract._replace(params=params))
    checkpoints.seal(step)
    return state._replace(params=with_fresh_lora(state.params, model, run.config.seed, run.mesh)), meta


def _check_together(checkpoints: Checkpoints, step: int) -> None:
    """Raise ``DamagedCheckpoint`` on all processes if the first one finds the files of ``step`` changed."""
    fault: DamagedCheckpoint | None = None
    if jax.process_index() == 0:
        try:
            checkpoints.check(step)
        except DamagedCheckpoint as found:
            fault = found
    if jax.process_count() > 1:
        with jax.transfer_guard("allow"):
            if bool(multihost_utils.broadcast_one_to_all(np.array(fault is not None))) and fault is None:
                fault = DamagedCheckpoint(f"checkpoint {checkpoints.folder / str(step)} is damaged")
    if fault is not None:
        raise fault


def _set_aside(checkpoints: Checkpoints, step: int, why: str) -> Path:
    aside = checkpoints.folder / f"{why}-{step}"
    if jax.process_index() == 0:
        aside = checkpoints.set_aside(step, why)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoint set aside")
    return aside


def _check_rows(run: StageRun, checkpoints: Checkpoints, meta: dict[str, Any] | None, loader: Loader) -> list[str]:
    """Refuse other rows than the checkpoint's; what differs in settings and rows where the run is forced to go on."""
    if not meta:
        return []
    forced = check_provenance(run.config, run.stage, meta["provenance"], run.force)
    if meta["index_digest"] == loader.digest:
        return forced
    rows = f"index {meta['index_digest'][:12]}, now {loader.digest[:12]}"
    if not run.force:
        raise CheckpointError(
            f"{checkpoints.folder} was trained on other rows ({rows}); bring the prepared data back, or delete"
            f" {checkpoints.folder.parent} to train the stage again"
        )
    return [*forced, f"rows: {rows}"]


def _note_beginning(run: StageRun, events: Events, first: int, opened: float) -> None:
    """Write that the stage begins or goes on, and which steps are made once more: the lines of these are cut off.

    ``opened``: when this process turned to the stage.
    """
    records = list(read_metrics(run.folder / "metrics.jsonl"))
    again = [record for record in records if record["step"] >= first]
    facts = {"redone_steps": len(again), "redone_seconds": sum(record["wall_seconds"] for record in again)}
    alive = records[-1].get("unix_seconds") if records else None
    facts |= {"alive_until": alive, "opened": opened, "processes": jax.process_count()}
    environment = {"lclm_jax": __version__, "jax": jax.__version__, "devices": _devices(run.mesh)}
    events.write("begin", step=first, **facts, environment=environment)


def _devices(mesh: Mesh) -> str:
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _prepare_rewind(run: StageRun, rewind: Rewind) -> None:
    """Set aside what was saved since the spike began, and remember to skip it."""
    limit = run.config.train.spike.max_rewinds
    if len(read_rewinds(run.folder)) >= limit:
        raise TrainingDiverged(
            f"stage {run.stage}: {rewind}, after {limit} rewinds (train.spike.max_rewinds); lower the learning rates"
        )
    with Checkpoints(checkpoints_folder(run.config, run.stage), run.config.train.checkpoint) as checkpoints:
        for step in [step for step in checkpoints.steps() if step > rewind.first]:
            _set_aside(checkpoints, step, "rewound")
        logger.warning(
            "stage %s: %s; going back to step %s and skipping them", run.stage, rewind, checkpoints.latest() or 0
        )
    if jax.process_index() == 0:
        add_rewind(run.folder, rewind)
        Events(run.folder).write("rewind", first=rewind.first, last=rewind.last)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rewind")


def _loop(run: StageRun, state: TrainState, train_step: Any, tools: "_Tools") -> None:
    feeder, checkpoints, saver, copies, watch, watchdog, stop, events, prober = tools[:9]
    config, stage = run.config, run.config.stages[run.stage]
    first, first_row = int(state.step), tools.start.rows
    profile = Profile(config.train.profile_steps, run.folder / "profile")

    def meta(done: int) -> dict[str, Any]:
        data = feeder.loader.state(first_row + (done - first) * stage.batch_rows)
        values = {"stage": run.stage, "step": done, **data, "provenance": provenance(config, run.stage)}
        values["forced"] = tools.forced
        return values | {"config_hash": config_hash(config), "config": config.model_dump(mode="json")}

    def save(done: int, final: bool = False) -> None:
        watch.catch_up()
        watchdog.beat(f"saving step {done}", _PATIENCE)
        with watch.spending("checkpoint"):
            saver.save(state, done, meta(done), final)

    with jax.transfer_guard("disallow"):
        for step in range(first, stage.steps):
            watchdog.beat(f"waiting for the batch of step {step}", _PATIENCE if step == first else 1.0)
            waiting = time.perf_counter()
            host_batch, stats = next(feeder)
            data_wait = time.perf_counter() - waiting
            batch = put_batch(host_batch, run.mesh)
            watchdog.beat(f"at step {step}", _PATIENCE if step <= first + 1 else 1.0)
            profile.begin(step)
            dispatched = time.perf_counter()
            with memory_advice(config, run.stage):
                state, metrics = train_step(state, batch)
            profile.end(step, metrics)
            compiling = time.perf_counter() - dispatched if step == first else 0.0
            watch.step(step, metrics, stats, data_wait, compiling)
            done = step + 1
            if stop_now(stop, checkpoints, done) and done < stage.steps:
                save(done, final=True)
                events.write("stop", step=done, reason=stop.reason or "another process was asked to")
                logger.warning("%s: stopped at step %d and saved; the same command goes on", run.stage, done)
                raise Interrupted(run.stage, done)
            if prober.due(done, stage.steps):
                watch.catch_up()
                watchdog.beat(f"probing step {done}", _PATIENCE)
                with watch.spending("evaluation"):
                    prober.measure(state.params, done, final=done == stage.steps)
            if saver.due(done, stage.steps):
                save(done, final=done == stage.steps)
            elif copies.due(done, config.train.checkpoint.local_every_steps):
                with jax.transfer_guard("allow"), watch.spending("checkpoint"):
                    copies.save(state, done, meta(done))
    profile.close()
    events.write("end", step=stage.steps)


def stop_now(stop: StopRequest, checkpoints: Checkpoints, done: int) -> bool:
    """Whether all processes stop after ``done`` updates: with several, JAX's coordination service agrees on it."""
    return stop.reason is not None if jax.process_count() == 1 else checkpoints.reached_preemption(done)


class _Tools(NamedTuple):
    """What the loop works with."""

    feeder: Feeder
    checkpoints: Checkpoints
    saver: Saver
    copies: LocalCopies
    watch: Watch
    watchdog: Watchdog
    stop: StopRequest
    events: Events
    prober: Prober
    start: Position
    forced: list[str]
    """Settings that this process was forced to go on with, and that the checkpoint before it was not made with."""
