"""Evaluation in the middle of training: when, and where its results go. What is measured is handed in."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lclm_jax.train.logging.events import Events
from lclm_jax.train.logging.metrics import MetricsLog
from lclm_jax.train.logging.progress import Reporter

logger = logging.getLogger(__name__)

NAME = "probes.jsonl"

Probe = Callable[[Any], dict[str, float]]
"""Sharded parameters, which it only reads -> measurements by name."""


class InTrainingEval:
    """Runs a probe every ``every_steps`` steps and at the end of the stage; ``probes.jsonl`` holds what it found.

    Args:
        probe: None: nothing is ever due.
        every_steps: steps between probes; None: only at the end.
        folder: of the stage.
        first_step: the stage goes on after so many updates; later lines are cut off.
        events: time is noted here.
        reporter: is told the results.
    """

    def __init__(
        self,
        probe: Probe | None,
        every_steps: int | None,
        folder: Path,
        first_step: int,
        events: Events,
        reporter: Reporter,
    ):
        self._probe, self._every, self._events, self._reporter = probe, every_steps, events, reporter
        writes = probe is not None and jax.process_index() == 0
        self._log = MetricsLog(folder / NAME, first_step + 1, writes)

    def due(self, done: int, steps: int) -> bool:
        """Whether to measure after ``done`` of ``steps`` updates."""
        return self._probe is not None and (done == steps or (self._every is not None and done % self._every == 0))

    def measure(self, params: Any, done: int, final: bool) -> None:
        """Measure ``params`` after ``done`` updates; ``final``: no step follows."""
        assert self._probe is not None
        began = time.perf_counter()
        with jax.transfer_guard("allow"):
            values = self._probe(params)
        seconds = time.perf_counter() - began
        self._log.write({"step": done, "unix_seconds": time.time(), "evaluation_seconds": seconds, **values})
        self._events.write("probe", step=done, seconds=seconds, final=final)
        self._reporter.probe(done, values)

    def close(self) -> None:
        """Close the file."""
        self._log.close()
