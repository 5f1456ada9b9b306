"""The monitor of a stage's steps: metrics fetched one step late, logged, and acted on."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, Self

import jax
import numpy as np

from lclm_jax.data.loading.position import BatchLoader, BatchStats
from lclm_jax.parallel import row_parts
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.core.stage_run import StageRun, TrainingDiverged
from lclm_jax.train.logging.events import Events
from lclm_jax.train.logging.metrics import MetricsLog, make_record
from lclm_jax.train.logging.records import NAME, Record, working_seconds
from lclm_jax.train.logging.utilisation import make_utilisation, memory_bytes
from lclm_jax.train.supervise.loss_spikes import RewindRequested, SpikeDetector
from lclm_jax.train.supervise.nonfinite import NonfiniteSteps
from lclm_jax.train.supervise.out_of_memory import memory_advice
from lclm_jax.train.supervise.stragglers import StragglerMonitor
from lclm_jax.train.supervise.watchdog import Watchdog
from lclm_jax.types import JsonObject, ReadOnlyJson

logger = logging.getLogger(__name__)


PATIENCE = 4.0
"""Restoring, compiling, saving and evaluating may take this many times ``train.watchdog_seconds``."""


class _Pending(NamedTuple):
    """A step that was dispatched and whose metrics are still on the devices."""

    step: int
    metrics: Mapping[str, jax.Array]
    stats: BatchStats
    data_wait: float


class StepMonitor:
    """Fetches metrics one step late, so that the device never waits for the host; logs them and acts on them.

    Args:
        run: the stage.
        first_step: updates made before; later lines of ``metrics.jsonl`` are cut off.
        first_row: row of step 0, had all steps ``batch_rows``.
        loader: names the rows of steps whose loss was not finite.
        checkpoints: of the stage, named in errors.
        watchdog: told what training does.
        events: spikes and stragglers are noted here.
    """

    def __init__(
        self,
        run: StageRun,
        first_step: int,
        first_row: int,
        loader: BatchLoader,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        events: Events,
    ):
        self._run, self._events, self._checkpoints, self._watchdog = run, events, checkpoints, watchdog
        self._first_step = first_step
        self._pending: _Pending | None = None
        self._record: Record = {}
        self._last = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._log = MetricsLog(run.folder / NAME, first_step, jax.process_index() == 0)
        self._stragglers = StragglerMonitor(run.stage, events)
        self._utilisation = make_utilisation(run.config, run.stage, run.mesh)
        self._spikes = SpikeDetector(run.config.train.spike)
        self._nonfinite = NonfiniteSteps(run.folder, loader, run.config.stages[run.stage].batch_rows, first_row)

    def __enter__(self) -> Self:
        run = self._run
        run.reporter.start(run.stage, self._first_step, run.config.stages[run.stage].steps)
        return self

    def __exit__(self, *_: object) -> None:
        self._run.reporter.finish()
        self._log.close()

    def memory(self) -> JsonObject:
        """What a checkpoint stores, so that a restart watches on as if there had been none."""
        return {"watched": {**self._spikes.history(), "nonfinite": self._nonfinite.in_a_row}}

    def remember(self, meta: ReadOnlyJson) -> None:
        """Watch on from ``memory`` in the JSON of a checkpoint; those of earlier versions have none."""
        watched = meta.get("watched", {})
        self._spikes.recall(watched)
        self._nonfinite.in_a_row = watched.get("nonfinite", 0)

    def beat(self, doing: str, patient: bool = False) -> None:
        """Tell the watchdog what comes next; ``patient``: it may take ``PATIENCE`` times as long."""
        self._watchdog.beat(doing, PATIENCE if patient else 1.0)

    def step(self, step: int, metrics: Mapping[str, jax.Array], stats: BatchStats, data_wait: float) -> None:
        """Take the metrics of a step that was just dispatched; fetch those of the step before."""
        self.catch_up()
        self._pending = _Pending(step, metrics, stats, data_wait)

    def record(self) -> Record:
        """The record of the newest step; waits for it."""
        self.catch_up()
        return self._record

    def catch_up(self) -> None:
        """Wait for the pending step, write its record, and stop a run that no longer updates."""
        if self._pending is None:
            return
        step, metrics, stats, data_wait = self._pending
        self._pending = None
        asked = time.perf_counter()
        run = self._run
        with memory_advice(run.config, run.stage, run.mesh):  # dispatch does not wait to see whether there is room
            values = jax.device_get(metrics)
        finite_rows = values.pop("finite_rows")
        now = time.perf_counter()
        seconds = {"wall": now - self._last, "data_wait": data_wait, **self._spent}
        self._last, self._spent = now, {}
        parts, count = row_parts(run.mesh)
        record = make_record(step, values, stats, count // len(parts), seconds)
        record |= self._utilisation(working_seconds(record))
        self._stragglers.add(working_seconds(record), now - asked, data_wait)
        if (step + 1) % run.config.train.log_every == 0:
            record |= {"memory_bytes": memory_bytes(), **self._stragglers.compare()}
        with self.spending("logging"):
            self._log.write(record)
            run.reporter.step(record)
        self._record = record
        self._act(step, record, finite_rows)

    @contextmanager
    def spending(self, what: str, counted: bool = True) -> Iterator[None]:
        """Count the time inside as spent on ``what`` (if ``counted``), in the record of the step fetched next."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if counted:  # what passed before metrics were fetched inside is in the record before
                self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - max(began, self._last)

    @contextmanager
    def pause(self, what: str, doing: str) -> Iterator[None]:
        """No step is made inside: metrics are fetched first, transfers are allowed, and the watchdog has patience.

        ``what``: the time is counted as such; ``doing``: the watchdog names this if it takes too long.
        """
        self.catch_up()
        self.beat(doing, patient=True)
        with self.spending(what), jax.transfer_guard("allow"):
            if what == "checkpoint":  # a run that resumes from it has the lines up to it
                self._log.flush()
            yield

    def _act(self, step: int, record: Record, finite_rows: np.ndarray) -> None:
        train = self._run.config.train
        if record["skipped"]:
            return
        bad = self._nonfinite.step(step, record, finite_rows)
        if bad >= train.max_nonfinite_steps:
            self._checkpoints.wait()
            before = [done for done in self._checkpoints.steps() if done <= step + 1 - bad]
            raise TrainingDiverged(
                f"stage {self._run.stage}: loss or gradient was not finite in the last {bad} steps (to step {step});"
                f" the last checkpoint before is that of step {max(before, default=0)}, the rows are in"
                f" {self._nonfinite.folder}; lower the learning rates or lengthen the warm-up"
                " (train.max_nonfinite_steps is the limit)"
            )
        if record["loss_nats"] is None:
            return
        spike = self._spikes.step(step, record["loss_nats"])
        if spike is None:
            return
        self._events.write("spike", first=spike[0], last=spike[1], loss_nats=record["loss_nats"])
        logger.warning("%s: loss spike in steps %d to %d (%.3f nats)", self._run.stage, *spike, record["loss_nats"])
        if train.spike.rewind:
            raise RewindRequested(*spike)
