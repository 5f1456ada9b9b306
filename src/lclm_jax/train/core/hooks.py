"""Hooks: functions that the loop calls every so many steps. Saving, evaluation and stopping are hooks like a user's."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lclm_jax.train.core.state import TrainState
from lclm_jax.train.logging.records import Record
from lclm_jax.types import Params

Pause = Callable[[str, str], AbstractContextManager[None]]
"""(what the time is counted as, what is done) -> a context in which no step is made: ``StepMonitor.pause``."""


@dataclass(frozen=True)
class StepInfo:
    """What a hook is told of the step that was just made.

    Attributes:
        stage: name of the stage.
        step: updates made so far, this one included: 1 after the first. The checkpoint of this state has this number.
        steps: updates of the whole stage.
        state: parameters, optimizer state, step count and random key, sharded over the mesh. Its arrays are given up
            to the next step: a hook that keeps any of them has to copy it.
        record: waits for the step and gives its line of ``metrics.jsonl``.
    """

    stage: str
    step: int
    steps: int
    state: TrainState
    record: Callable[[], Record]

    @property
    def is_last(self) -> bool:
        """Whether the stage ends with this step."""
        return self.step == self.steps

    @property
    def params(self) -> Params:
        """Parameters after the step: a nested dict of sharded arrays in ``model.param_dtype``, to be read only."""
        return self.state.params

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of the step by name, such as ``loss_nats`` and ``grad_norm/encoder``; NaN where not finite.

        Training normally fetches them one step late, so that the device never waits for the host; reading them here
        waits until the step is done.
        """
        numbers = {name: value for name, value in self.record().items() if name != "step"}
        return {name: math.nan if value is None else float(value) for name, value in numbers.items()}


@dataclass(frozen=True)
class Hook:
    """A function that training calls after every ``every``-th step of a stage.

    It runs on every process of the run, between two steps, so training waits for it; the time is recorded as
    ``hooks_seconds``. What it raises ends training. Steps that are repeated after an interruption are told again.

    Attributes:
        every: steps between calls: 10 calls it after steps 10, 20, ...; None: only where ``at_end`` says so.
        call: the function; what it returns is ignored.
        at_end: also call it after the last step of the stage.

    Example:
        ``Hook(every=10, call=lambda step: print(step.step, step.metrics["loss_nats"]))``
    """

    every: int | None
    call: Callable[[StepInfo], object]
    at_end: bool = False

    def is_due(self, info: StepInfo) -> bool:
        """Whether to call it after this step."""
        return (self.every is not None and info.step % self.every == 0) or (self.at_end and info.is_last)
