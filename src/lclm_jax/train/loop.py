"""The loop of one stage: batches in, steps, metrics and checkpoints out. The only place with clocks and signals."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from lclm_jax.config import Config, RunPaths, config_hash
from lclm_jax.data.loader import BatchStats, Loader
from lclm_jax.model.lclm import abstract_params
from lclm_jax.parallel import use_mesh
from lclm_jax.train.checkpoint import CheckpointError, Checkpoints
from lclm_jax.train.metrics import MetricsLog, make_record
from lclm_jax.train.optimizer import Optimizer, make_optimizer
from lclm_jax.train.progress import Reporter
from lclm_jax.train.provenance import check_provenance, checkpoints_folder, provenance
from lclm_jax.train.slices import SavedParams
from lclm_jax.train.state import TrainState, abstract_state, fresh_state, with_fresh_lora, without_missing_lora
from lclm_jax.train.step import make_train_step, put_batch

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
"""Exit status of a run that saved and stopped on SIGTERM or SIGINT: call it again to go on (EX_TEMPFAIL)."""


class Interrupted(SystemExit):
    """Training saved a checkpoint and stopped because it was asked to; ends the process with status 75."""

    def __init__(self, stage: str, step: int):
        super().__init__(EXIT_INTERRUPTED)
        self.stage, self.step = stage, step


class TrainingDiverged(ValueError):
    """Too many updates in a row were not finite."""


@dataclass(frozen=True)
class StageRun:
    """What a stage needs beside its configuration.

    Attributes:
        config: the run, with ``model.memory_token_ids`` set.
        stage: name of the stage.
        mesh: devices.
        open_loader: rows consumed -> the loader of the rest of the stage.
        initial_params: makes the sharded parameters that the stage begins with.
        reporter: is told of every step.
    """

    config: Config
    stage: str
    mesh: Mesh
    open_loader: Callable[[int], Loader]
    initial_params: Callable[[], Any]
    reporter: Reporter


def run_stage(run: StageRun) -> None:
    """Train one stage to its end, from its newest checkpoint if it has one.

    Raises:
        CheckpointError: a checkpoint cannot be written, read or trusted, or its data are others.
        ChangedConfigError: the stage's checkpoint was made with other settings.
        TrainingDiverged: ``train.max_nonfinite_steps`` updates in a row were not finite.
        Interrupted: SIGTERM or SIGINT came; the state was saved.
    """
    config, stage = run.config, run.config.stages[run.stage]
    folder = checkpoints_folder(config, run.stage)
    with use_mesh(run.mesh), Checkpoints(folder, config.train.checkpoint) as checkpoints:
        optimizer = make_optimizer(config.train.optimizer, stage, abstract_params(config.model))
        state, meta = _begin(run, optimizer, checkpoints)
        first = meta["step"] if meta else 0
        with run.open_loader(first * stage.batch_rows) as loader, _stop_signals() as stop:
            if meta and meta["index_digest"] != loader.index.digest:
                raise CheckpointError(
                    f"{folder} was trained on other rows (index {meta['index_digest'][:12]}, now"
                    f" {loader.index.digest[:12]}); bring the prepared data back, or delete {folder.parent} to train"
                    " the stage again"
                )
            writer = MetricsLog(RunPaths(config).stage(run.stage) / "metrics.jsonl", first, jax.process_index() == 0)
            run.reporter.start(run.stage, first, stage.steps)
            tools = _Tools(loader, checkpoints, _Watch(run, writer), stop)
            try:
                _loop(run, state, make_train_step(config, run.stage, optimizer, run.mesh), tools)
            finally:
                run.reporter.finish()
                writer.close()


def _begin(run: StageRun, optimizer: Optimizer, checkpoints: Checkpoints) -> tuple[TrainState, dict[str, Any] | None]:
    """The state to go on from and the JSON stored with it; None for a stage that begins."""
    latest = checkpoints.latest()
    if latest is None:
        seed = run.config.seed + list(run.config.stages).index(run.stage)
        return fresh_state(run.initial_params(), run.config.model, optimizer, run.mesh, seed), None
    meta = checkpoints.meta(latest)
    check_provenance(run.config, run.stage, meta["provenance"])
    model, abstract = run.config.model, abstract_state(run.config.model, optimizer, run.mesh)

    def stored() -> Collection[str]:
        return SavedParams(checkpoints.folder / str(latest)).shapes

    params = without_missing_lora(abstract.params, model, stored)
    state = checkpoints.restore(latest, abstract._replace(params=params))
    return state._replace(params=with_fresh_lora(state.params, model, run.config.seed, run.mesh)), meta


def _loop(run: StageRun, state: TrainState, train_step: Any, tools: "_Tools") -> None:
    loader, checkpoints, watch, stop = tools
    config, stage = run.config, run.config.stages[run.stage]
    first = int(state.step)

    def save(done: int) -> None:
        watch.catch_up()
        meta = {"stage": run.stage, "step": done, **loader.state(), "provenance": provenance(config, run.stage)}
        meta |= {"config_hash": config_hash(config), "config": config.model_dump(mode="json")}
        with jax.transfer_guard("allow"):
            checkpoints.save(state, done, meta)

    with jax.transfer_guard("disallow"):
        for step in range(first, stage.steps):
            waiting = time.perf_counter()
            host_batch, stats = next(loader)
            data_wait = time.perf_counter() - waiting
            batch = put_batch(host_batch, run.mesh)
            dispatched = time.perf_counter()
            state, metrics = train_step(state, batch)
            compiling = time.perf_counter() - dispatched if step == first else 0.0
            watch.step(step, metrics, stats, data_wait, compiling)
            done = step + 1
            if done == stage.steps or done % config.train.checkpoint.every_steps == 0:
                save(done)
            elif stop(done, checkpoints):
                save(done)
                checkpoints.wait()
                logger.warning("%s: stopped at step %d and saved; the same command goes on", run.stage, done)
                raise Interrupted(run.stage, done)
    checkpoints.wait()


class _Watch:
    """Fetches metrics one step late, so that the device never waits for the host, and passes them on."""

    def __init__(self, run: StageRun, writer: MetricsLog):
        self._run, self._writer = run, writer
        self._pending: tuple[int, Any, BatchStats, float, float] | None = None
        self._last = time.perf_counter()
        self._bad_steps = 0

    def step(self, step: int, metrics: Any, stats: BatchStats, data_wait: float, compiling: float) -> None:
        """Take the metrics of a step that was just dispatched; fetch those of the step before."""
        self.catch_up()
        self._pending = (step, metrics, stats, data_wait, compiling)

    def catch_up(self) -> None:
        """Wait for the pending step, write its record, and stop a run that no longer updates."""
        if self._pending is None:
            return
        step, metrics, stats, data_wait, compiling = self._pending
        self._pending = None
        values = jax.device_get(metrics)
        now = time.perf_counter()
        seconds = {"wall": now - self._last, "data_wait": data_wait, "compile": compiling}
        self._last = now
        record = make_record(step, values, stats, jax.process_count(), seconds)
        self._writer.write(record)
        self._run.reporter.step(record)
        self._bad_steps = self._bad_steps + 1 if record["nonfinite"] else 0
        limit = self._run.config.train.max_nonfinite_steps
        if self._bad_steps >= limit:
            raise TrainingDiverged(
                f"stage {self._run.stage}: loss or gradient was not finite in the last {limit} steps (to step {step});"
                " lower the learning rates or lengthen the warm-up; train.max_nonfinite_steps is the limit"
            )


class _Tools(NamedTuple):
    """What the loop works with."""

    loader: Loader
    checkpoints: Checkpoints
    watch: _Watch
    stop: Callable[[int, Checkpoints], bool]


@contextmanager
def _stop_signals() -> Iterator[Callable[[int, Checkpoints], bool]]:
    """Note SIGTERM and SIGINT instead of dying of them; a second one kills. Yields: was one seen, by all processes?"""
    seen = threading.Event()
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        seen.set()
        signal.signal(number, previous[number])

    # (With several processes JAX's own handler of SIGTERM must stay: it tells the others.)
    if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(done: int, checkpoints: Checkpoints) -> bool:
        # With several processes all must stop at the same step: JAX's coordination service agrees on it.
        return seen.is_set() if jax.process_count() == 1 else checkpoints.reached_preemption(done)

    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
