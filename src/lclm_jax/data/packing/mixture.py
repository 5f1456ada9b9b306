"""Which records of which source a block of a stage takes, and which compression ratio each step has.

A stage is a sequence of blocks. Each takes the next records of every source, as many as its weight in decoder
positions asks for, so any block can be computed without the ones before it. Records of a source are taken in an order
that is shuffled over the whole collection and changes with every epoch.

With several ratios, every ratio has a row index of its own, packed for it alone, so no ratio pays for another's
placeholders. The indices share the records: in each epoch of a source every ratio takes another part of them, as large
as its rows need, so that all ratios come to the end of an epoch together. Each epoch has an order of its own, so in the
long run every document is read at every ratio. A step's ratio is a hash of
(seed, stage, step); its batch is the next one of its ratio. Both are known without making a batch, so order, resuming
and the number of hosts are as with a single ratio.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lclm_jax.config import Config
from lclm_jax.data.packing.counter_rng import Shuffle, draw_key, uniform
from lclm_jax.errors import LclmError


class Cursor(NamedTuple):
    """Where a block begins: all that is needed to continue from there."""

    block: int
    row: int
    """Rows of the blocks before it."""
    consumed: tuple[int, ...]
    """Records of each source that the blocks before it took, all epochs together."""


class Exhausted(LclmError):
    """A source with the rule ``stop`` has no records left, or no source has."""


class Supply(NamedTuple):
    """What the mixture needs to know of a source."""

    name: str
    records: int
    """Records of one epoch."""
    positions: float
    """Decoder positions of a record on average."""
    limit: int | None
    """Records, all epochs together, after which the source is exhausted; None: it repeats for ever."""
    stops: bool
    """Whether the stage ends with it, instead of going on without it."""
    part: tuple[int, int] = (0, 1)
    """(k, n): ``records`` are part k of n of each epoch; the parts change places from epoch to epoch."""
    span: tuple[int, int] | None = None
    """(first, count), instead of ``part``: ``records`` are those from place ``first`` on of an order of ``count``."""


class Mixture:
    """The records of every block.

    Args:
        supplies: The sources.
        weights: (row, relative weights of the sources, in decoder positions) from which row on which weights hold; the
            first from 0.
        positions: Decoder positions of a block.
        seed: Anything that names this order, such as (run seed, stage).
    """

    def __init__(
        self, supplies: Sequence[Supply], weights: Sequence[tuple[int, Sequence[float]]], positions: float, seed: object
    ):
        for _, values in weights:
            if min(values) < 0 or not sum(values) > 0:
                raise LclmError(f"mixture weights {list(values)} must be at least zero, and one above it")
        self._supplies, self._weights, self._positions, self._seed = supplies, weights, positions, seed
        self._phase = [float(uniform(draw_key("mixture", seed), i)[0]) for i in range(len(supplies))]

    def consumed_before(self, block: int) -> tuple[int, ...]:
        """Records of each source before ``block`` if its first weights hold and no source is exhausted till then."""
        return tuple(int(block * rate + phase) for rate, phase in zip(self._rates(0, ()), self._phase, strict=True))

    def cursor_near(self, row: int, row_length: int) -> Cursor:
        """Where a block begins, about, if all before it are full: nothing has to be counted.

        Args:
            row: Rows before it.
            row_length: Decoder positions of a row.
        """
        block = int(row * row_length / self._positions)
        return Cursor(block, row, self.consumed_before(block))

    def taken(self, cursor: Cursor) -> tuple[range, ...]:
        """Which records of its order, all epochs together, the block at ``cursor`` takes of each source.

        Raises ``Exhausted`` where the stage ends.
        """
        ranges, out = [], self._exhausted(cursor)
        for i, rate in enumerate(self._rates(cursor.row, out)):
            count = int((cursor.block + 1) * rate + self._phase[i]) - int(cursor.block * rate + self._phase[i])
            start, limit = cursor.consumed[i], self._supplies[i].limit
            stop = start + count
            ranges.append(range(start, stop if limit is None else min(stop, max(limit, start))))
        return tuple(ranges)

    def records(self, source: int, taken: range) -> list[tuple[int, np.ndarray]]:
        """(epoch, records int64) of what a block has ``taken`` of a source, epoch by epoch."""
        supply, parts, first = self._supplies[source], [], taken.start
        while first < taken.stop:
            epoch, place = divmod(first, supply.records)
            last = min(taken.stop, (epoch + 1) * supply.records)
            key, places = draw_key(self._seed, supply.name, epoch, "order"), np.arange(place, place + last - first)
            if supply.span is not None:
                parts.append((epoch, Shuffle(key, supply.span[1])(places + supply.span[0])))
            else:
                part, count = supply.part
                parts.append((epoch, Shuffle(key, supply.records * count)(places * count + (part + epoch) % count)))
            first = last
        return parts

    def _exhausted(self, cursor: Cursor) -> tuple[int, ...]:
        out = tuple(
            i
            for i, supply in enumerate(self._supplies)
            if supply.limit is not None and cursor.consumed[i] >= supply.limit
        )
        for i in out:
            if self._supplies[i].stops:
                raise Exhausted(f"source {self._supplies[i].name} is exhausted")
        return out

    def _rates(self, row: int, without: Sequence[int]) -> list[float]:
        """Records per block of each source."""
        weights = np.array([values for first, values in self._weights if first <= row][-1], np.float64)
        weights[list(without)] = 0
        if not weights.any():
            raise Exhausted("all sources are exhausted")
        wanted = self._positions * weights / weights.sum()
        return [float(one) / supply.positions for one, supply in zip(wanted, self._supplies, strict=True)]


class RatioSchedule:
    """Step -> ratio; for a stage without ``ratios`` it is ``model.ratio`` at every step."""

    def __init__(self, config: Config, stage: str):
        settings = config.stages[stage]
        weights = Counter(settings.ratios or (config.model.ratio,))
        self.listed = bool(settings.ratios)
        """Whether the stage lists ratios: its indices and its checkpoints are then kept by ratio."""
        self.ratios = tuple(sorted(weights))
        """The different ratios, ascending."""
        weight = np.array([weights[ratio] for ratio in self.ratios], np.float64)
        steps = max(settings.steps, *settings.mixture_changes, 0) if len(self.ratios) > 1 else 0
        draws = uniform(draw_key("ratios", config.seed, stage), np.arange(steps))
        self._which = np.searchsorted(np.cumsum(weight / weight.sum())[:-1], draws, side="right")
        drawn = self._which[:, None] == np.arange(weight.size)[None]
        self._before = np.concatenate([np.zeros((1, weight.size), np.int64), np.cumsum(drawn, axis=0)])

    def ratio(self, step: int) -> int:
        """N of update ``step``, from 0."""
        return self.ratios[self.place(step)[0]]

    def place(self, step: int) -> tuple[int, int]:
        """(which of ``ratios``, how many steps before this one drew it too)."""
        if len(self.ratios) == 1:
            return 0, step
        which = int(self._which[step])
        return which, int(self._before[step, which])

    def steps_before(self, step: int) -> list[int]:
        """How many of the steps before ``step`` have each of ``ratios``."""
        return [step] if len(self.ratios) == 1 else self._before[step].tolist()


def mixtures_by_row(config: Config, stage: str, part: tuple[int, int]) -> list[tuple[int, dict[str, float]]]:
    """(row, mixture) from which row on each mixture of ``stage`` holds in one of its row indices.

    A step of another ratio takes no row of this index, so the row follows from the steps that drew this index's ratio.

    Args:
        config: The run.
        stage: Name of a stage.
        part: (k, n): the index of ratio k of n.
    """
    settings = config.stages[stage]
    number, count = part
    if count == 1:
        return [(step * settings.batch_rows, mixture) for step, mixture in settings.mixtures]
    schedule = RatioSchedule(config, stage)
    return [(schedule.steps_before(step)[number] * settings.batch_rows, mixture) for step, mixture in settings.mixtures]
