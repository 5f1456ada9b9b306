"""Mixed-ratio training: which compression ratio each step has, and which of that ratio's batches.

Every ratio has a row index of its own, packed for it alone, so no ratio pays for another's placeholders. The indices
share the records: in each epoch of a source every ratio takes another part of them, and the parts change places from
epoch to epoch, so all epochs together read every document at every ratio. A step's ratio is a hash of (seed, stage,
step); its batch is the next one of its ratio. Both are known without making a batch, so order, resuming and the number
of hosts are as with a single ratio.
"""

from collections import Counter

import numpy as np

from lclm_jax.config import Config
from lclm_jax.data.packing.counter_rng import draw_key, uniform


class RatioSchedule:
    """Step -> ratio; for a stage without ``ratios`` it is ``model.ratio`` at every step."""

    def __init__(self, config: Config, stage: str):
        settings = config.stages[stage]
        weights = Counter(settings.ratios or (config.model.ratio,))
        self.ratios = tuple(sorted(weights))
        """The different ratios, ascending."""
        share = np.array([weights[ratio] for ratio in self.ratios], np.float64)
        draws = uniform(draw_key("ratios", config.seed, stage), np.arange(settings.steps))
        self._which = np.searchsorted(np.cumsum(share / share.sum())[:-1], draws, side="right")
        drawn = self._which[:, None] == np.arange(share.size)[None]
        self._before = np.concatenate([np.zeros((1, share.size), np.int64), np.cumsum(drawn, axis=0)])

    def ratio(self, step: int) -> int:
        """N of update ``step``, from 0."""
        return self.ratios[self._which[step]]

    def place(self, step: int) -> tuple[int, int]:
        """(which of ``ratios``, how many steps before this one drew it too)."""
        which = int(self._which[step])
        return which, int(self._before[step, which])

    def steps_before(self, step: int) -> list[int]:
        """How many of the steps before ``step`` have each of ``ratios``."""
        return self._before[step].tolist()
