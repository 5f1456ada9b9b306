"""Loss spikes: steps whose loss lies far above those before, and the record of those that were undone."""

import json
from collections import deque
from pathlib import Path

import numpy as np

from lclm_jax.config import Config
from lclm_jax.config.train import SpikeConfig
from lclm_jax.files import write_text
from lclm_jax.types import JsonObject, ReadOnlyJson

NAME = "rewinds.json"
"""Beside the checkpoints of a stage: the steps that it skips."""

_TO_SIGMA = 1.4826
"""Median absolute deviation of a normal distribution to its standard deviation."""


class SpikeDetector:
    """Told of every loss in order; says when ``patience`` losses in a row were spikes.

    The spread is the median absolute deviation over ``window`` ordinary steps, so that one spike does not hide the
    next. Nothing is a spike until half a window is known.
    """

    def __init__(self, settings: SpikeConfig):
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.window)
        self._run: list[int] = []

    def history(self) -> JsonObject:
        """Plain values to be stored with a checkpoint: the ordinary losses, and the steps of a spike so far."""
        return {"losses": list(self._losses), "spike": list(self._run)}

    def recall(self, history: ReadOnlyJson) -> None:
        """Go on from ``history``; an empty one (of an earlier version) is none."""
        self._losses.extend(history.get("losses", ()))
        self._run = list(history.get("spike", ()))

    def step(self, step: int, loss: float) -> tuple[int, int] | None:
        """(first, last) step of a spike that has just lasted long enough to count; else None."""
        limit = self.limit()
        if limit is None or loss <= limit:
            self._losses.append(loss)
            self._run.clear()
            return None
        self._run.append(step)
        if len(self._run) < self._settings.patience:
            return None
        first, last = self._run[0], step
        self._run.clear()
        return first, last

    def limit(self) -> float | None:
        """The loss above which a step counts as a spike now; None while too little is known or it is switched off."""
        if self._settings.deviations is None or 2 * len(self._losses) < self._settings.window:
            return None
        losses = np.array(self._losses)
        middle = float(np.median(losses))
        spread = _TO_SIGMA * float(np.median(np.abs(losses - middle)))
        return middle + self._settings.deviations * max(spread, 1e-3)


class RewindRequested(Exception):
    """Training must resume from the checkpoint before step ``first`` and skip steps ``first`` to ``last``."""

    def __init__(self, first: int, last: int):
        super().__init__(f"loss spike in steps {first} to {last}")
        self.first, self.last = first, last


def read_rewinds(stage_folder: Path) -> list[tuple[int, int]]:
    """(first, last) step of every loss spike that was undone so far."""
    path = stage_folder / NAME
    return [(first, last) for first, last in json.loads(path.read_text())] if path.exists() else []


def add_rewind(stage_folder: Path, rewind: RewindRequested) -> None:
    """Remember to skip the steps of ``rewind``."""
    rewinds = [*read_rewinds(stage_folder), (rewind.first, rewind.last)]
    write_text(stage_folder / NAME, json.dumps(rewinds))


def with_skips(config: Config, stage: str, rewinds: list[tuple[int, int]]) -> Config:
    """``config`` whose ``stage`` also skips the steps of ``rewinds``."""
    if not rewinds:
        return config
    own = config.stages[stage]
    skips = (*own.skip_steps, *(f"{first}-{last}" for first, last in rewinds))
    return config.model_copy(update={"stages": {**config.stages, stage: own.model_copy(update={"skip_steps": skips})}})
