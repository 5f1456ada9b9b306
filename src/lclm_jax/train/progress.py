"""What a user sees of training: a progress bar on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from typing import Any, Protocol

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from lclm_jax.train.records import Record, losses_by_objective

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Told of every step of a stage, in order, one step late."""

    def start(self, stage: str, first_step: int, steps: int) -> None:
        """A stage of ``steps`` begins, or goes on, at ``first_step``."""

    def step(self, record: Record) -> None:
        """A step is done."""

    def probe(self, done: int, values: dict[str, float]) -> None:
        """A probe measured the parameters after ``done`` updates of the stage."""

    def finish(self) -> None:
        """The stage is over or interrupted."""


class _Pace:
    """Means over the steps since it was last read."""

    def __init__(self) -> None:
        self._seconds = self._tokens = self._loss = self._fill = self._mfu = 0.0
        self._steps = self._losses = self._skipped = 0
        self._objectives: dict[str, tuple[float, float]] = {}

    def add(self, record: Record) -> None:
        self._seconds += record["wall_seconds"] - record.get("compile_seconds", 0.0)
        self._tokens += record["raw_tokens"]
        self._fill += record["decoder_fill"]
        self._mfu += record.get("mfu", 0.0)
        self._skipped += bool(record["skipped"] or record["nonfinite"])
        self._steps += 1
        if record["loss_nats"] is not None:
            self._loss += record["loss_nats"]
            self._losses += 1
        for name, loss, tokens in losses_by_objective(record):
            nats, count = self._objectives.get(name, (0.0, 0.0))
            self._objectives[name] = (nats + loss * tokens, count + tokens)

    def __len__(self) -> int:
        return self._steps

    def text(self, record: Record, steps: int) -> str:
        """Means of losses, raw tokens/s, MFU and fill; skipped steps, time left, rates; forgets what was added."""
        loss = f"{self._loss / self._losses:.4f} nats" if self._losses else "not finite"
        if len(self._objectives) > 1:
            parts = (f"{name} {nats / count:.4f}" for name, (nats, count) in self._objectives.items())
            loss += f" ({', '.join(parts)})"
        prefix = "learning_rate/"
        rates = {name.removeprefix(prefix): rate for name, rate in record.items() if name.startswith(prefix)}
        left = (steps - record["step"] - 1) * self._seconds / self._steps
        speed = f"{self._tokens / max(self._seconds, 1e-9):,.0f} raw tok/s"
        speed += f" | MFU {self._mfu / self._steps:.1%}" if self._mfu else ""
        fill = f"fill {self._fill / self._steps:.2f}" + (f" | {self._skipped} skipped" if self._skipped else "")
        self.__init__()  # type: ignore[misc]
        return f"loss {loss} | {speed} | {fill} | ETA {format_seconds(left)} | lr {_rates_text(rates)}"


def _probe_text(what: str, done: int, values: dict[str, float]) -> str:
    return f"{what} {done}, held out | " + " | ".join(f"{name} {value:.4f}" for name, value in values.items())


def _rates_text(rates: dict[str, float]) -> str:
    """``{"adapter": 1e-3, "decoder": 1e-5, "encoder": 1e-3}`` -> ``adapter,encoder=1.0e-03 decoder=1.0e-05``."""
    parts: dict[str, list[str]] = {}
    for part, rate in rates.items():
        parts.setdefault(f"{rate:.1e}", []).append(part)
    if len(parts) == 1 and len(rates) > 1:
        return next(iter(parts))
    return " ".join(f"{','.join(names)}={rate}" for rate, names in parts.items())


class LineReporter:
    """A log line every ``every`` steps."""

    def __init__(self, every: int):
        self._every, self._pace = every, _Pace()
        self._stage, self._steps = "", 0

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102 - see Reporter
        self._stage, self._steps, self._pace = stage, steps, _Pace()
        going_on = f", from step {first_step}" if first_step else ""
        logger.info("%s: %d steps%s", stage, steps, going_on)

    def step(self, record: Record) -> None:  # noqa: D102
        self._pace.add(record)
        done = record["step"] + 1
        if done % self._every == 0 or done == self._steps:
            logger.info("%s %d/%d | %s", self._stage, done, self._steps, self._pace.text(record, self._steps))

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
        logger.info("%s", _probe_text(self._stage, done, values))

    def finish(self) -> None:  # noqa: D102
        pass


class BarReporter:
    """A progress bar on a terminal, refreshed a few times a second."""

    def __init__(self, console: Console, interval_seconds: float = 0.5):
        self._console, self._interval = console, interval_seconds
        self._bar: Progress | None = None
        self._task: Any = None
        self._steps, self._shown, self._pace = 0, 0.0, _Pace()

    def start(self, stage: str, first_step: int, steps: int) -> None:  # noqa: D102
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None, table_column=Column(max_width=20)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            # On a narrow terminal the bar gives way first, then this text takes a second line.
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=False)),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task(stage, total=steps, completed=first_step, text="compiling")
        self._steps, self._shown, self._pace = steps, 0.0, _Pace()
        self._bar.start()

    def step(self, record: Record) -> None:  # noqa: D102
        assert self._bar is not None, "start comes first"
        self._pace.add(record)
        now = time.monotonic()
        if now - self._shown >= self._interval or record["step"] + 1 == self._steps:
            self._shown = now
            self._bar.update(self._task, completed=record["step"] + 1, text=self._pace.text(record, self._steps))

    def probe(self, done: int, values: dict[str, float]) -> None:  # noqa: D102
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
        return BarReporter(Console(stderr=True))
    return LineReporter(log_every)


def format_seconds(seconds: float) -> str:
    """``3723.4`` -> ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
