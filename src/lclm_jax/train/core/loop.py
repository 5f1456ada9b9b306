"""The loop of one stage: batches in, steps, hooks after each. The only place with clocks and signals.

What happens every so many steps is a hook: ``_hooks`` lists the built-in ones, ``StageRun.hooks`` those of the user.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import NoReturn

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lclm_jax.config import config_hash
from lclm_jax.data.loading.position import Position
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import broadcast_from_process_0, use_mesh
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.checkpoints.emergency_checkpoint import emergency_checkpoints
from lclm_jax.train.checkpoints.provenance import checkpoints_folder, provenance
from lclm_jax.train.checkpoints.restore import check_rows, set_aside, starting_state
from lclm_jax.train.checkpoints.saver import CheckpointPolicy, Saver
from lclm_jax.train.core.hooks import Hook, StepInfo
from lclm_jax.train.core.in_training_eval import InTrainingEval
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.stage_run import StageRun, StepFunction, TrainingDiverged
from lclm_jax.train.core.state import TrainState
from lclm_jax.train.core.step import put_batch, ratio_of
from lclm_jax.train.logging.events import Events
from lclm_jax.train.logging.profiling import StepProfiler
from lclm_jax.train.logging.records import NAME, read_metrics
from lclm_jax.train.supervise.loss_spikes import RewindRequested, add_rewind, read_rewinds, with_skips
from lclm_jax.train.supervise.out_of_memory import memory_advice
from lclm_jax.train.supervise.preemption import StopRequest, stop_requests
from lclm_jax.train.supervise.resilient_loader import ResilientLoader
from lclm_jax.train.supervise.step_monitor import PATIENCE, StepMonitor
from lclm_jax.train.supervise.watchdog import EXIT_RETRY, Watchdog
from lclm_jax.types import JsonObject
from lclm_jax.version import __version__

logger = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """Training saved a checkpoint and stopped because it was asked to; ends the process with status 75."""

    def __init__(self, stage: str, step: int):
        super().__init__(EXIT_RETRY)
        self.stage, self.step = stage, step


def run_stage(run: StageRun) -> None:
    """Train one stage to its end, from its newest intact checkpoint if it has one.

    Raises:
        CheckpointError: no checkpoint can be written, read or trusted, or it was made from other data.
        ChangedConfigError: the stage's checkpoint was made with other settings.
        TrainingDiverged: ``train.max_nonfinite_steps`` updates in a row were not finite, or more loss spikes than
            ``train.spike.max_rewinds`` were undone.
        DataStalled: the loader gave nothing in time, several times in a row.
        Interrupted: the run was asked to stop; the state was saved.
    """
    with ExitStack() as stack:

        @functools.cache
        def listen() -> StopRequest:  # a request that comes while a spike is undone is kept
            return stack.enter_context(stop_requests(run.config.train.stop))

        while True:
            try:
                return _run_once(run, listen)
            except RewindRequested as rewind:
                step = _prepare_rewind(run, rewind)
            if jax.process_count() == 1 and (reason := listen().reason) is not None:
                _stopped(run, step, reason, Events(run.folder))


def run_steps(
    run: StageRun,
    state: TrainState,
    steps: range,
    train_step: StepFunction,
    loader: ResilientLoader,
    monitor: StepMonitor,
    hooks: Sequence[Hook],
) -> None:
    """Make the updates ``steps`` of the stage, each from the next batch, and call the hooks that are due after it.

    Args:
        run: the stage.
        state: before the first of the steps; given up.
        steps: indices of the updates, from 0.
        train_step: the jitted step.
        loader: gives the batches in order.
        monitor: takes the metrics.
        hooks: in the order in which they are called.
    """
    profiler = StepProfiler(run.config.train.profile_steps, run.local_folder / "profile")
    compiled: set[int] = set()  # ratios: a stage with several compiles a step for each
    with jax.transfer_guard("disallow"), closing(profiler):
        for step in steps:
            monitor.beat(f"waiting for the batch of step {step}", patient=step == steps.start)
            waiting = time.perf_counter()
            host_batch, stats = next(loader)
            data_wait = time.perf_counter() - waiting
            compiles = ratio_of(host_batch) not in compiled
            compiled.add(ratio_of(host_batch))
            batch = put_batch(host_batch, run.mesh)
            monitor.beat(f"at step {step}", patient=compiles or step <= steps.start + 1)
            profiler.begin(step)
            with memory_advice(run.config, run.stage, run.mesh), monitor.spending("compile", compiles):
                state, metrics = train_step(state, batch)
            profiler.end(step, metrics)
            monitor.step(step, metrics, stats, data_wait)
            info = StepInfo(run.stage, step + 1, steps.stop, state, monitor.record)
            for hook in hooks:
                if hook.is_due(info):
                    hook.call(info)


def _run_once(run: StageRun, listen: Callable[[], StopRequest]) -> None:
    """Open what a stage needs, restore its state, and make the steps that are left.

    ``listen`` is called once there is something to save.
    """
    opened = time.time()
    train, stage = run.config.train, run.config.stages[run.stage]
    events = Events(run.folder, writes=jax.process_index() == 0)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(use_mesh(run.mesh))
        watchdog = enter(_watchdog(run))
        checkpoints = enter(Checkpoints(checkpoints_folder(run.config, run.stage), train.checkpoint))
        watchdog.beat("restoring", PATIENCE)
        emergency = enter(emergency_checkpoints(run.config, run.stage, begin=True))
        optimizer = make_optimizer(train.optimizer, stage, abstract_params(run.config.model))
        with memory_advice(run.config, run.stage, run.mesh):
            state, meta, kept = starting_state(run, optimizer, checkpoints, emergency)
        first = meta["step"] if meta else 0
        emergency.delete_after(first)
        start = Position.from_state(meta) if meta else Position()
        loader = enter(ResilientLoader(run.open_loader, start, stage.batch_rows, train.data_timeout_seconds))
        stop = listen()
        forced = check_rows(run, checkpoints, meta, loader.loader)
        _note_beginning(run, events, first, opened, forced)
        first_row = start.rows - first * stage.batch_rows
        monitor = enter(StepMonitor(run, first, first_row, loader.loader, checkpoints, watchdog, events))
        monitor.remember(meta or {})
        evaluation = enter(InTrainingEval(run, first, monitor.pause, events))

        def make_meta(done: int) -> JsonObject:
            data = loader.loader.state(first_row + done * stage.batch_rows)
            return _meta(run, done, {**data, **kept, **monitor.memory()}, forced)

        policy = CheckpointPolicy(checkpoints, train.checkpoint, events)
        saver = Saver(policy, emergency, train.checkpoint.local_every_steps, make_meta, monitor.pause)
        stopping = _stop_hook(run, stop, checkpoints, saver, events)
        users = (_users_hook(hook, monitor) for hook in run.hooks)
        hooks = [*users, stopping, *evaluation.hooks(), *saver.hooks()]
        rewinds = broadcast_from_process_0(f"rewinds of {run.stage}", read_rewinds(run.folder))
        train_step = run.make_step(with_skips(run.config, run.stage, rewinds), run.stage, optimizer, run.mesh)
        if run.teacher is not None:
            watchdog.beat("reading the teacher", PATIENCE)
            train_step = functools.partial(train_step, teacher=run.teacher())
        evaluation.catch_up(StepInfo(run.stage, first, stage.steps, state, monitor.record))
        run_steps(run, state, range(first, stage.steps), train_step, loader, monitor, hooks)
        emergency.delete_all()
        events.write("end", step=stage.steps)


def _watchdog(run: StageRun) -> Watchdog:
    stacks = run.local_folder / f"stacks-process-{jax.process_index()}.txt"
    return Watchdog(run.config.train.watchdog_seconds, stacks)


def _stop_hook(run: StageRun, stop: StopRequest, checkpoints: Checkpoints, saver: Saver, events: Events) -> Hook:
    """After every step: save and raise ``Interrupted`` if the run was asked to stop; the last step needs no stop."""

    def stop_if_asked(info: StepInfo) -> None:
        if not _is_stop_due(stop, checkpoints, info.step) or info.is_last:
            return
        saver.save(info, final=True)
        _stopped(run, info.step, stop.reason or "another process was asked to", events)

    return Hook(1, stop_if_asked)


def _stopped(run: StageRun, step: int, reason: str, events: Events) -> NoReturn:
    """Leave training, as the state of ``step`` is saved."""
    events.write("stop", step=step, reason=reason)
    logger.warning("%s: stopped at step %d and saved; rerun the same command to resume", run.stage, step)
    raise Interrupted(run.stage, step)


def _is_stop_due(stop: StopRequest, checkpoints: Checkpoints, done: int) -> bool:
    """Whether all processes stop after ``done`` updates: with several, JAX's coordination service agrees on it."""
    return stop.reason is not None if jax.process_count() == 1 else checkpoints.reached_preemption(done)


def _users_hook(hook: Hook, monitor: StepMonitor) -> Hook:
    """``hook`` with its time counted and transfers allowed. Metrics are fetched only if it reads them."""

    def call(info: StepInfo) -> None:
        monitor.beat(f"in a hook after step {info.step}", patient=True)
        with monitor.spending("hooks"), jax.transfer_guard("allow"):
            hook.call(info)

    return replace(hook, call=call)


def _meta(run: StageRun, done: int, data: JsonObject, forced: Iterable[str]) -> JsonObject:
    """What is stored with the state after ``done`` updates; ``data``: where the loader is."""
    config = run.config
    values = {"stage": run.stage, "step": done, **data, "provenance": provenance(config, run.stage)}
    values |= {"forced": list(forced), "config_hash": config_hash(config), "config": config.model_dump(mode="json")}
    return values


def _note_beginning(run: StageRun, events: Events, first: int, opened: float, forced: list[str]) -> None:
    """Write that the stage starts or resumes, and which steps are repeated: their lines are cut off.

    ``opened``: when this process turned to the stage.
    """
    records = list(read_metrics(run.folder / NAME))
    again = [record for record in records if record["step"] >= first]
    facts = {"redone_steps": len(again), "redone_seconds": sum(record["wall_seconds"] for record in again)}
    alive = records[-1].get("unix_seconds") if records else None
    facts |= {"alive_until": alive, "opened": opened, "processes": jax.process_count()}
    environment = {"lclm_jax": __version__, "jax": jax.__version__, "devices": _devices(run.mesh)}
    events.write("begin", step=first, **facts, environment=environment)
    if forced:
        logger.warning("%s: resuming although settings changed (%s)", run.stage, "; ".join(forced))
        events.write("forced", step=first, differences=forced)


def _devices(mesh: Mesh) -> str:
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _prepare_rewind(run: StageRun, rewind: RewindRequested) -> int:
    """Set aside what was saved since the spike began, and remember to skip it; the step to resume from.

    Folders are read by the first process alone, so that all do the same. Should it be interrupted, the spike comes
    again from what is left.
    """
    limit = run.config.train.spike.max_rewinds
    with _watchdog(run) as watchdog:
        watchdog.beat("undoing a loss spike", PATIENCE)
        rewinds = broadcast_from_process_0(f"rewinds of {run.stage}", read_rewinds(run.folder))
        if len(rewinds) >= limit:
            raise TrainingDiverged(
                f"stage {run.stage}: {rewind}, after {limit} rewinds (train.spike.max_rewinds); lower the learning"
                " rates"
            )
        emergency_checkpoints(run.config, run.stage).delete_after(rewind.first)
        with Checkpoints(checkpoints_folder(run.config, run.stage), run.config.train.checkpoint) as checkpoints:
            newer = [step for step in checkpoints.steps() if step > rewind.first]
            for step in broadcast_from_process_0(f"rewound {run.stage}", newer):
                set_aside(checkpoints, step, "rewound")
            latest = checkpoints.latest() or 0
        logger.warning("stage %s: %s; resuming from step %s and skipping them", run.stage, rewind, latest)
        if jax.process_index() == 0:
            add_rewind(run.folder, rewind)
            Events(run.folder).write("rewind", first=rewind.first, last=rewind.last)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("rewind")
    return latest
