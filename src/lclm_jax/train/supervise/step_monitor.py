"""What a stage needs to run, and the watch over its steps: metrics fetched one step late, and acted on."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from lclm_jax.data.loading.position import BatchLoader, BatchStats
from lclm_jax.parallel import row_parts
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.core.stage_run import StageRun, TrainingDiverged
from lclm_jax.train.logging.events import Events
from lclm_jax.train.logging.metrics import MetricsLog, make_record
from lclm_jax.train.logging.records import working_seconds
from lclm_jax.train.logging.utilisation import make_utilisation, memory_bytes
from lclm_jax.train.supervise.nonfinite import NonfiniteSteps
from lclm_jax.train.supervise.out_of_memory import memory_advice
from lclm_jax.train.supervise.rewinds import RewindRequested
from lclm_jax.train.supervise.spikes import SpikeDetector
from lclm_jax.train.supervise.stragglers import StragglerMonitor

logger = logging.getLogger(__name__)


class StepMonitor:
    """Fetches metrics one step late, so that the device never waits for the host, and acts on them."""

    def __init__(
        self,
        run: StageRun,
        writer: MetricsLog,
        events: Events,
        checkpoints: Checkpoints,
        loader: BatchLoader,
        first_row: int,
    ):
        self._run, self._writer, self._events, self._checkpoints = run, writer, events, checkpoints
        self._pending: tuple[int, Any, BatchStats, float] | None = None
        self._last = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._hosts = StragglerMonitor(run.stage, events)
        self._utilisation = make_utilisation(run.config, run.stage, run.mesh)
        self._spikes = SpikeDetector(run.config.train.spike)
        self._nonfinite = NonfiniteSteps(run.folder, loader, run.config.stages[run.stage].batch_rows, first_row)

    def step(self, step: int, metrics: Any, stats: BatchStats, data_wait: float) -> None:
        """Take the metrics of a step that was just dispatched; fetch those of the step before."""
        self.catch_up()
        self._pending = (step, metrics, stats, data_wait)

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
        parts, count = row_parts(self._run.mesh)
        record = make_record(step, values, stats, count // len(parts), seconds)
        record |= self._utilisation(working_seconds(record))
        self._hosts.add(working_seconds(record), now - asked, data_wait)
        if (step + 1) % self._run.config.train.log_every == 0:
            record |= {"memory_bytes": memory_bytes(), **self._hosts.compare()}
        with self.spending("logging"):
            self._writer.write(record)
            self._run.reporter.step(record)
        self._act(step, record, finite_rows)

    @contextmanager
    def spending(self, what: str, counted: bool = True) -> Iterator[None]:
        """Count the time inside as spent on ``what`` (if ``counted``), in the record of the step fetched next."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if counted:
                self._spent[what] = self._spent.get(what, 0.0) + time.perf_counter() - began

    def _act(self, step: int, record: dict[str, Any], finite_rows: np.ndarray) -> None:
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
