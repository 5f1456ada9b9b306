"""What a user sees of training: a progress bar on a terminal, some lines now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from lclm_jax.train.logging.log_summary import LogSummary
from lclm_jax.train.logging.records import Record

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Told of every step of a stage, in order, one step late."""

    def start(self, stage: str, first_step: int, steps: int) -> None:
        """A stage of ``steps`` starts, or resumes, at ``first_step``."""

    def step(self, record: Record) -> None:
        """A step is done."""

    def probe(self, done: int, values: dict[str, float]) -> None:
        """A probe measured the parameters after ``done`` updates of the stage."""

    def finish(self) -> None:
        """The stage is over or interrupted."""


def _probe_text(what: str, done: int, values: dict[str, float]) -> str:
    return f"{what} {done}, held out | " + " | ".join(f"{name} {value:.4f}" for name, value in values.items())


class LogReporter:
    """Three lines of the log every ``every`` steps."""

    def __init__(self, every: int):
        self._every, self._pace = every, LogSummary()
        self._stage, self._steps = "", 0

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102 - see Reporter
        self._stage, self._steps, self._pace = stage, steps, LogSummary()
        going_on = f", from step {first_step}" if first_step else ""
        logger.info("%s: %d steps%s", stage, steps, going_on)

    def step(self, record: Record) -> None:  # noqa: D102
        self._pace.add(record)
        done = record["step"] + 1
        if done % self._every == 0 or done == self._steps:
            lines = "\n  ".join(self._pace.lines(record, self._steps))
            logger.info("%s %d/%d | %s", self._stage, done, self._steps, lines)

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
        self._pace.probed(values)
        logger.info("%s", _probe_text(self._stage, done, values))

    def finish(self) -> None:  # noqa: D102
        pass


class _Bar(Progress):
    """A bar with some lines of text below it."""

    below: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the text."""
        yield from super().get_renderables()
        yield from (Text(f"  {line}", style="dim") for line in self.below)


class ProgressBarReporter:
    """A progress bar on a terminal, refreshed a few times a second."""

    def __init__(self, console: Console, interval_seconds: float = 0.5):
        self._console, self._interval = console, interval_seconds
        self._bar: _Bar | None = None
        self._task = TaskID(0)
        self._steps, self._shown, self._pace = 0, 0.0, LogSummary()

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None, table_column=Column(max_width=20)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            # On a narrow terminal the bar gives way first, then this text takes a second line.
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=False)),
        )
        self._bar = _Bar(*columns, console=self._console)
        self._task = self._bar.add_task(stage, total=steps, completed=first_step, text="compiling")
        self._steps, self._shown, self._pace = steps, 0.0, LogSummary()
        self._bar.start()

    def step(self, record: Record) -> None:  # noqa: D102
        assert self._bar is not None, "start comes first"
        self._pace.add(record)
        now = time.monotonic()
        if now - self._shown >= self._interval or record["step"] + 1 == self._steps:
            self._shown = now
            loss, *self._bar.below = self._pace.lines(record, self._steps)
            self._bar.update(self._task, completed=record["step"] + 1, text=loss)

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
        self._pace.probed(values)
        self._console.print(_probe_text("probe", done, values), markup=False, highlight=False)

    def finish(self) -> None:  # noqa: D102
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class SilentReporter:
    """Reports nothing: every process but the first."""

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102
        pass

    def step(self, record: Record) -> None:  # noqa: D102
        pass

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
        pass

    def finish(self) -> None:  # noqa: D102
        pass


def make_reporter(log_every: int) -> Reporter:
    """The reporter for this process: a bar if standard error is a terminal, else lines every ``log_every`` steps."""
    if jax.process_index() != 0:
        return SilentReporter()
    if sys.stderr.isatty():
        return ProgressBarReporter(Console(stderr=True))
    return LogReporter(log_every)
