"""The loop of one stage: batches in, steps, metrics and checkpoints out. The only place with clocks and signals."""

import logging
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lclm_jax import __version__
from lclm_jax.config import StageConfig, config_hash
from lclm_jax.data.loading.position import Position
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import use_mesh
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.checkpoints.emergency_checkpoint import EmergencyCheckpoints
from lclm_jax.train.checkpoints.provenance import checkpoints_folder, provenance
from lclm_jax.train.checkpoints.restore import check_rows, set_aside, starting_state
from lclm_jax.train.checkpoints.saver import CheckpointPolicy
from lclm_jax.train.core.in_training_eval import InTrainingEval
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.stage_run import StageRun, TrainingDiverged
from lclm_jax.train.core.state import TrainState
from lclm_jax.train.core.step import make_train_step, put_batch, ratio_of
from lclm_jax.train.logging.events import Events
from lclm_jax.train.logging.metrics import MetricsLog
from lclm_jax.train.logging.profiling import StepProfiler
from lclm_jax.train.logging.records import read_metrics
from lclm_jax.train.supervise.out_of_memory import memory_advice
from lclm_jax.train.supervise.preemption import StopRequest, stop_requests
from lclm_jax.train.supervise.resilient_loader import ResilientLoader
from lclm_jax.train.supervise.rewinds import RewindRequested, add_rewind, read_rewinds, with_skips
from lclm_jax.train.supervise.step_monitor import StepMonitor
from lclm_jax.train.supervise.watchdog import EXIT_RETRY, Watchdog

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
        except RewindRequested as rewind:
            _prepare_rewind(run, rewind)


def _run_once(run: StageRun) -> None:
    opened, first_process = time.time(), jax.process_index() == 0
    train, stage = run.config.train, run.config.stages[run.stage]
    events = Events(run.folder, writes=first_process)
    stacks = run.folder / f"stacks-process-{jax.process_index()}.txt"
    with ExitStack() as opening:
        opening.enter_context(use_mesh(run.mesh))
        watchdog = opening.enter_context(Watchdog(train.watchdog_seconds, stacks))
        folder = checkpoints_folder(run.config, run.stage)
        checkpoints = opening.enter_context(Checkpoints(folder, train.checkpoint))
        watchdog.beat("restoring", _PATIENCE)
        optimizer = make_optimizer(train.optimizer, stage, abstract_params(run.config.model))
        copies = _local_copies(run)
        opening.callback(copies.wait)
        with memory_advice(run.config, run.stage, run.mesh):
            state, meta = starting_state(run, optimizer, checkpoints, copies)
        first = meta["step"] if meta else 0
        start = Position.from_state(meta) if meta else Position()
        feeder = opening.enter_context(
            ResilientLoader(run.open_loader, start, stage.batch_rows, train.data_timeout_seconds)
        )
        stop = opening.enter_context(stop_requests(train.stop))
        forced = check_rows(run, checkpoints, meta, feeder.loader)
        _note_beginning(run, events, first, opened, forced)
        writer = opening.enter_context(closing(MetricsLog(run.folder / "metrics.jsonl", first, first_process)))
        prober = InTrainingEval(run.probe, train.probe.every_steps, run.folder, first, events, run.reporter)
        opening.enter_context(closing(prober))
        run.reporter.start(run.stage, first, stage.steps)
        opening.callback(run.reporter.finish)
        skipping = with_skips(run.config, run.stage, read_rewinds(run.folder))
        train_step = make_train_step(skipping, run.stage, optimizer, run.mesh)
        _Loop(
            run=run,
            state=state,
            train_step=train_step,
            first=first,
            start=start,
            forced=forced,
            feeder=feeder,
            checkpoints=checkpoints,
            saver=CheckpointPolicy(checkpoints, train.checkpoint, events),
            copies=copies,
            watch=StepMonitor(run, writer, events, checkpoints, feeder.loader, start.rows - first * stage.batch_rows),
            watchdog=watchdog,
            stop=stop,
            events=events,
            prober=prober,
        ).go()


def _local_copies(run: StageRun) -> EmergencyCheckpoints:
    local = run.config.train.checkpoint.local_dir
    return EmergencyCheckpoints(Path(local) / run.config.name / run.stage if local else None)


def _note_beginning(run: StageRun, events: Events, first: int, opened: float, forced: list[str]) -> None:
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
    if forced:
        logger.warning("%s: going on although settings changed (%s)", run.stage, "; ".join(forced))
        events.write("forced", step=first, differences=forced)


def _devices(mesh: Mesh) -> str:
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _prepare_rewind(run: StageRun, rewind: RewindRequested) -> None:
    """Set aside what was saved since the spike began, and remember to skip it."""
    limit = run.config.train.spike.max_rewinds
    if len(read_rewinds(run.folder)) >= limit:
        raise TrainingDiverged(
            f"stage {run.stage}: {rewind}, after {limit} rewinds (train.spike.max_rewinds); lower the learning rates"
        )
    with Checkpoints(checkpoints_folder(run.config, run.stage), run.config.train.checkpoint) as checkpoints:
        for step in [step for step in checkpoints.steps() if step > rewind.first]:
            set_aside(checkpoints, step, "rewound")
        logger.warning(
            "stage %s: %s; going back to step %s and skipping them", run.stage, rewind, checkpoints.latest() or 0
        )
    if jax.process_index() == 0:
        add_rewind(run.folder, rewind)
        Events(run.folder).write("rewind", first=rewind.first, last=rewind.last)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("rewind")


@dataclass
class _Loop:
    """The steps of a stage and what comes between them."""

    run: StageRun
    state: TrainState
    train_step: Any
    first: int
    """Updates made before."""
    start: Position
    """Of the rows that come first."""
    forced: list[str]
    """Settings that this process was forced to go on with, and that the checkpoint before it was not made with."""
    feeder: ResilientLoader
    checkpoints: Checkpoints
    saver: CheckpointPolicy
    copies: EmergencyCheckpoints
    watch: StepMonitor
    watchdog: Watchdog
    stop: StopRequest
    events: Events
    prober: InTrainingEval
    compiled: set[int] = field(default_factory=set)
    """Ratios whose step has been compiled: a stage with several compiles one for each."""

    def go(self) -> None:
        """Make the steps that are left; raises ``Interrupted`` after saving if the run was asked to stop."""
        steps = self._stage.steps
        profile = StepProfiler(self.run.config.train.profile_steps, self.run.folder / "profile")
        with jax.transfer_guard("disallow"), closing(profile):
            for step in range(self.first, steps):
                self._step(step, profile)
                self._stop_if_asked(step + 1)
                self._measure_and_save(step + 1)
        self.events.write("end", step=steps)

    def _step(self, step: int, profile: StepProfiler) -> None:
        self.watchdog.beat(f"waiting for the batch of step {step}", _PATIENCE if step == self.first else 1.0)
        waiting = time.perf_counter()
        host_batch, stats = next(self.feeder)
        data_wait = time.perf_counter() - waiting
        ratio = ratio_of(host_batch)
        compiles = ratio not in self.compiled
        self.compiled.add(ratio)
        batch = put_batch(host_batch, self.run.mesh)
        self.watchdog.beat(f"at step {step}", _PATIENCE if compiles or step <= self.first + 1 else 1.0)
        profile.begin(step)
        advised = memory_advice(self.run.config, self.run.stage, self.run.mesh)
        with advised, self.watch.spending("compile", compiles):
            self.state, metrics = self.train_step(self.state, batch)
        profile.end(step, metrics)
        self.watch.step(step, metrics, stats, data_wait)

    def _stop_if_asked(self, done: int) -> None:
        if not stop_now(self.stop, self.checkpoints, done) or done == self._stage.steps:
            return
        self._save(done, final=True)
        self.events.write("stop", step=done, reason=self.stop.reason or "another process was asked to")
        logger.warning("%s: stopped at step %d and saved; the same command goes on", self.run.stage, done)
        raise Interrupted(self.run.stage, done)

    def _measure_and_save(self, done: int) -> None:
        last, settings = done == self._stage.steps, self.run.config.train.checkpoint
        if self.prober.due(done, self._stage.steps):
            self.watch.catch_up()
            self.watchdog.beat(f"probing step {done}", _PATIENCE)
            with self.watch.spending("evaluation"):
                self.prober.measure(self.state.params, done, final=last)
        if self.saver.due(done, self._stage.steps):
            self._save(done, final=last)
        elif self.copies.due(done, settings.local_every_steps):
            with jax.transfer_guard("allow"), self.watch.spending("checkpoint"):
                self.copies.save(self.state, done, self._meta(done))

    def _save(self, done: int, final: bool) -> None:
        self.watch.catch_up()
        self.watchdog.beat(f"saving step {done}", _PATIENCE)
        with self.watch.spending("checkpoint"):
            self.saver.save(self.state, done, self._meta(done), final)

    def _meta(self, done: int) -> dict[str, Any]:
        """What is stored with the state after ``done`` updates."""
        config, stage = self.run.config, self.run.stage
        data = self.feeder.loader.state(self.start.rows + (done - self.first) * self._stage.batch_rows)
        values = {"stage": stage, "step": done, **data, "provenance": provenance(config, stage), "forced": self.forced}
        return values | {"config_hash": config_hash(config), "config": config.model_dump(mode="json")}

    @property
    def _stage(self) -> StageConfig:
        return self.run.config.stages[self.run.stage]


def stop_now(stop: StopRequest, checkpoints: Checkpoints, done: int) -> bool:
    """Whether all processes stop after ``done`` updates: with several, JAX's coordination service agrees on it."""
    return stop.reason is not None if jax.process_count() == 1 else checkpoints.reached_preemption(done)
