"""When a checkpoint is written, and what happens when one cannot be."""

import logging
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from lclm_jax.config import CheckpointConfig
from lclm_jax.train.checkpoints.checkpoint import CheckpointError, Checkpoints
from lclm_jax.train.checkpoints.emergency_checkpoint import EmergencyCheckpoints
from lclm_jax.train.core.hooks import Hook, Pause, StepInfo
from lclm_jax.train.core.state import TrainState
from lclm_jax.train.logging.events import Events
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

_CLOCK_STEPS = 16
"""With several processes the first one's clock counts; the others ask it once in so many steps."""


class CheckpointPolicy:
    """Says when to save (by step, by time, after a failure); a failed save stops the run only if the settings say so.

    Args:
        checkpoints: where to.
        settings: the policy.
        events: what happens is noted here.
        clock: seconds; tests replace it.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        settings: CheckpointConfig,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._checkpoints, self._settings, self._events, self._clock = checkpoints, settings, events, clock
        self._last = clock()
        self._failures = 0
        self._retry_at: float | None = None

    def due(self, done: int, steps: int) -> bool:
        """Whether a checkpoint is to be written after ``done`` of ``steps`` updates; the same on all processes.

        Raises:
            CheckpointError: a save in the background failed, for the last time that the policy allows.
        """
        try:
            self._checkpoints.raise_failure()
        except CheckpointError as error:
            self._failed(error)
        return done == steps or done % self._settings.every_steps == 0 or self._overdue(done)

    def _overdue(self, done: int) -> bool:
        now, minutes = self._clock(), self._settings.every_minutes
        retry = self._retry_at is not None and now >= self._retry_at
        late = minutes is not None and now - self._last >= 60 * minutes
        if jax.process_count() == 1:
            return retry or late
        if minutes is None or done % _CLOCK_STEPS:
            return False
        with jax.transfer_guard("allow"):
            return bool(multihost_utils.broadcast_one_to_all(np.array(late)))

    def save(self, state: TrainState, done: int, meta: JsonObject, final: bool = False) -> None:
        """Write ``state``; ``final``: wait until it is sealed, and try again at once if it fails.

        Raises:
            CheckpointError: it failed for the last time that the policy allows (``final``: in any case).
        """
        began = self._clock()
        while True:
            try:
                with jax.transfer_guard("allow"):
                    self._checkpoints.save(state, done, meta)
                self._last, self._retry_at = self._clock(), None
                if final:
                    self._checkpoints.wait()
                self._failures = 0
                self._events.write("save", step=done, seconds=self._clock() - began, final=final)
                break
            except CheckpointError as error:
                self._failed(error, final)
                if not final:
                    break
                time.sleep(min(self._settings.retry_seconds, 10.0))

    def _failed(self, error: CheckpointError, final: bool = False) -> None:
        self._failures += 1
        self._events.write("save_failed", failures=self._failures, message=str(error))
        limit = self._settings.max_failed_saves
        if self._failures >= (limit or (3 if final else self._failures + 1)):
            raise error
        again = self._settings.retry_seconds
        logger.error("%s\nTraining continues (failed save %d of %s); next try in %g s", error, self._failures,
                     limit or "any number", again)  # fmt: skip
        self._retry_at = self._clock() + again


class Saver:
    """Saves the state of a stage: to its checkpoints when ``policy`` says so, in between to the machine's own disk.

    Args:
        policy: of the checkpoints.
        emergency: of the copies on the machine's own disk.
        emergency_steps: steps between these copies.
        make_meta: updates made -> the JSON that is stored with the state.
        pause: counts the time of a save.
    """

    def __init__(
        self,
        policy: CheckpointPolicy,
        emergency: EmergencyCheckpoints,
        emergency_steps: int,
        make_meta: Callable[[int], JsonObject],
        pause: Pause,
    ):
        self._policy, self._emergency, self._emergency_steps = policy, emergency, emergency_steps
        self._make_meta, self._pause = make_meta, pause

    def hooks(self) -> list[Hook]:
        """Saving as a hook. The policy looks at the clock, so it is asked after every step."""
        return [Hook(1, self._after_step)]

    def save(self, info: StepInfo, final: bool) -> None:
        """Write a checkpoint now; ``final``: wait until it is complete, as no step follows."""
        with self._pause("checkpoint", f"saving step {info.step}"):
            self._policy.save(info.state, info.step, self._make_meta(info.step), final)

    def _after_step(self, info: StepInfo) -> None:
        if self._policy.due(info.step, info.steps):
            self.save(info, final=info.is_last)
        elif self._emergency.due(info.step, self._emergency_steps):
            with self._pause("checkpoint", f"writing the emergency checkpoint of step {info.step}"):
                self._emergency.save(info.state, info.step, self._make_meta(info.step))
