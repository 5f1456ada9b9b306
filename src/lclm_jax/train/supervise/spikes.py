"""Loss spikes: steps whose loss lies far above those before, in units of their spread."""

from collections import deque

import numpy as np

from lclm_jax.config.train import SpikeConfig

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
