"""Experiment trackers by name; each is one more ``Reporter``, and is imported only when it is asked for."""

import hashlib
import importlib
import math
import queue
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import jax

from lclm_jax.config import Config, RunPaths
from lclm_jax.errors import LclmError
from lclm_jax.train.logging.progress import Reporter
from lclm_jax.train.logging.records import Record
from lclm_jax.types import PyTree

_PATIENCE_SECONDS = 60.0


class TrackerError(LclmError):
    """A tracker that is not installed."""


Write = Callable[[int, dict[str, float]], None]
"""(global step, values by name) -> None."""


class Tracker:
    """Hands every step's numbers on; steps are counted over all stages, so that a chart shows them one after another.

    A thread does it: training waits neither for a slow tracker nor ends with one that fails, whose error is printed.

    Args:
        name: of the tracker.
        first_steps: stage -> updates made before it begins.
        write: takes a global step and values.
        close: ends the tracker; called when the process leaves training.
    """

    def __init__(self, name: str, first_steps: dict[str, int], write: Write, close: Callable[[], None]):
        self._first_steps, self._write, self._close = first_steps, write, close
        self._stage = ""
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._hand_on, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102 - see Reporter
        self._stage = stage

    def step(self, record: Record) -> None:  # noqa: D102
        values = {f"train/{name}": value for name, value in record.items() if name != "step" and _is_number(value)}
        self._put(self._first_steps[self._stage] + record["step"], values)

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
        # The step that was made last, so that steps never go backwards, which wandb would refuse.
        self._put(self._first_steps[self._stage] + done - 1, {f"probe/{name}": value for name, value in values.items()})

    def finish(self) -> None:  # noqa: D102
        pass

    def close(self) -> None:
        """Hand on what waits, for so long as that may take at most, and end the tracker."""
        self._waiting.put(None)
        self._thread.join(_PATIENCE_SECONDS)
        self._close()

    def _put(self, step: int, values: dict[str, float]) -> None:
        if self._thread.is_alive():
            self._waiting.put((step, values))

    def _hand_on(self) -> None:
        while (entry := self._waiting.get()) is not None:
            self._write(*entry)


class Reporters:
    """Several reporters as one."""

    def __init__(self, reporters: Sequence[Reporter]):
        self._reporters = reporters

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102 - see Reporter
        for reporter in self._reporters:
            reporter.start(stage, first_step, steps)

    def step(self, record: Record) -> None:  # noqa: D102
        for reporter in self._reporters:
            reporter.step(record)

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
        for reporter in self._reporters:
            reporter.probe(done, values)

    def finish(self) -> None:  # noqa: D102
        for reporter in self._reporters:
            reporter.finish()


def open_trackers(config: Config) -> list[Tracker]:
    """The trackers of ``train.trackers``, in the first process; none in the others.

    Raises:
        TrackerError: one of them is not installed.
    """
    if jax.process_index() != 0:
        return []
    first, total = {}, 0
    for name, stage in config.stages.items():
        first[name], total = total, total + stage.steps
    return [Tracker(name, first, *_OPEN[name](config)) for name in config.train.trackers]


def _tensorboard(config: Config) -> tuple[Write, Callable[[], None]]:
    # tensorboardX writes event files without TensorFlow or TensorBoard itself, which only the reader needs.
    writer = _imported("tensorboardX", "tensorboard").SummaryWriter(str(RunPaths(config).local_root / "tensorboard"))

    def write(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def _wandb(config: Config) -> tuple[Write, Callable[[], None]]:
    wandb = _imported("wandb", "wandb")
    run = wandb.init(
        project="lclm",
        name=config.name,
        id=_run_id(config),
        resume="allow",
        dir=str(RunPaths(config).local_root),  # it makes a folder wandb there
        config=config.model_dump(mode="json"),
    )

    def write(step: int, values: dict[str, float]) -> None:
        run.log(values, step=step)

    return write, run.finish


def _trackio(config: Config) -> tuple[Write, Callable[[], None]]:
    trackio = _imported("trackio", "trackio")
    run = trackio.init(project="lclm", name=config.name, resume="allow", config=config.model_dump(mode="json"))

    def write(step: int, values: dict[str, float]) -> None:
        run.log(values, step=step)

    return write, run.finish


def _ml_goodput(config: Config) -> tuple[Write, Callable[[], None]]:
    """Goodput in Google Cloud: the library writes times of job and steps to Cloud Logging, and computes from them."""
    goodput = _imported("ml_goodput_measurement.goodput", "ml_goodput")
    recorder = goodput.GoodputRecorder(config.name, f"goodput_{config.name}", True)
    recorder.record_job_start_time()

    def write(step: int, values: dict[str, float]) -> None:
        if "train/unix_seconds" in values:  # when the step was over
            began = values["train/unix_seconds"] - values["train/wall_seconds"]
            recorder.record_step_start_time(step, datetime.fromtimestamp(began, UTC))

    return write, recorder.record_job_end_time


_OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "ml_goodput": _ml_goodput}


def _imported(module: str, extra: str) -> PyTree:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise TrackerError(
            f"train.trackers names {extra}, which is not installed; pip install 'lclm-jax[{extra}]', or leave it out"
        ) from None


def _run_id(config: Config) -> str:
    """The same at every restart, so that a resumed run is one run in the tracker, too."""
    return hashlib.sha256(f"{config.name} {RunPaths(config).root.absolute()}".encode()).hexdigest()[:16]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
