"""Evaluation during training: a hook that measures the parameters and writes what it finds."""

import logging
import time
from typing import Self

import jax

from lclm_jax.parallel import broadcast_from_process_0
from lclm_jax.train.core.hooks import Hook, Pause, StepInfo
from lclm_jax.train.core.stage_run import StageRun
from lclm_jax.train.logging.events import Events
from lclm_jax.train.logging.metrics import MetricsLog
from lclm_jax.train.logging.records import read_metrics

logger = logging.getLogger(__name__)

NAME = "probes.jsonl"


class InTrainingEval:
    """Runs the probe of ``run`` every ``train.probe.every_steps`` steps and at the end; writes ``probes.jsonl``.

    Args:
        run: the stage; without a probe nothing is ever due.
        first_step: updates made before; later lines of the file are cut off.
        pause: counts the time of an evaluation.
        events: the time is also noted here.
    """

    def __init__(self, run: StageRun, first_step: int, pause: Pause, events: Events):
        self._run, self._pause, self._events = run, pause, events
        writes = run.probe is not None and jax.process_index() == 0
        self._log = MetricsLog(run.folder / NAME, first_step + 1, writes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def hooks(self) -> list[Hook]:
        """The evaluation as a hook; none without a probe."""
        if self._run.probe is None:
            return []
        return [Hook(self._run.config.train.probe.every_steps, self._measure, at_end=True)]

    def catch_up(self, info: StepInfo) -> None:
        """Evaluate the state that is resumed from if that is due and was not done: a request to stop came first.

        All processes call it; the first one's file counts.
        """
        for hook in self.hooks():
            done = any(record["step"] == info.step for record in read_metrics(self._run.folder / NAME))
            if not broadcast_from_process_0(f"evaluated {info.stage}", done) and info.step and hook.is_due(info):
                self._measure(info)

    def _measure(self, info: StepInfo) -> None:
        assert self._run.probe is not None
        with self._pause("evaluation", f"evaluating after step {info.step}"):
            began = time.perf_counter()
            values = self._run.probe(info.params)
            seconds = time.perf_counter() - began
            self._log.write({"step": info.step, "unix_seconds": time.time(), "evaluation_seconds": seconds, **values})
            self._log.flush()
            self._events.write("probe", step=info.step, seconds=seconds, final=info.is_last)
            self._run.reporter.probe(info.step, values)
