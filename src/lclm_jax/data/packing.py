"""Examples to rows by their lengths alone, under two budgets: decoder positions and encoder rows."""

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.data.ragged import Ragged
from lclm_jax.data.windows import place_types, plan_spans

_MAX_AGE = 8
"""A row is closed after at most this many times ``lookahead`` younger rows were opened."""

WindowTypes = Sequence[tuple[int, int, int]]
"""(storage, context, count) of equal windows; see ``windows.window_types``."""


class ExampleWindows:
    """The window types of many examples, from the lengths of their spans (encoder tokens)."""

    def __init__(self, spans: Ragged, model: ModelConfig):
        table = plan_spans(spans.values, model)
        keys = np.stack([spans.owners()[table.span], -table.storage, table.context])
        (example, storage, context), count = np.unique(keys, axis=1, return_counts=True)
        offsets = np.searchsorted(example, np.arange(spans.offsets.size))
        self.windows = Ragged(offsets, count).sums()
        """Windows of each example, int64."""
        self.storage = Ragged(offsets, -storage * count).sums()
        """Encoder positions they take together, without alignment, int64."""
        self.largest = np.append(-storage, 0)[offsets[:-1]] * (self.windows > 0)
        """Encoder positions of the largest, int64."""
        self._offsets, self._columns = offsets.tolist(), ((-storage).tolist(), context.tolist(), count.tolist())

    def of(self, example: int) -> WindowTypes:
        """Types of one example, largest first."""
        part = slice(self._offsets[example], self._offsets[example + 1])
        storage, context, count = self._columns
        return list(zip(storage[part], context[part], count[part], strict=True))


@dataclass(slots=True, eq=False)
class _OpenRow:
    serial: int
    room: int
    examples: list[int] = field(default_factory=list)
    types: dict[tuple[int, int], int] = field(default_factory=dict)
    storage: int = 0
    windows: int = 0
    largest: int = 0


class RowPacker:
    """Best fit over a bounded number of open rows; deterministic, and a longer run only appends rows.

    An example goes to the open row with the least decoder room that takes it. If none does and ``pack.lookahead`` rows
    are open, the fullest one is closed, or one that has been open for long. Whether encoder windows fit is asked of the
    very function that places them when the row is assembled.
    """

    def __init__(self, ratio: int, pack: PackConfig):
        self._ratio, self._pack = ratio, pack
        self._encoder_room = pack.encoder_rows * pack.encoder_row_length
        self._open: list[tuple[int, int, float, _OpenRow]] = []
        """(room, serial, fullness, row), sorted."""
        self._serial = 0

    def rejects(self, tokens: int, types: WindowTypes) -> str | None:
        """Why an example cannot be in any row: ``longer_than_row``, ``windows_exceed_row``, or None if it can."""
        if tokens > self._pack.row_length:
            return "longer_than_row"
        if place_types(types, self._ratio, self._pack) is None:
            return "windows_exceed_row"
        return None

    def sort_out(self, tokens: np.ndarray, windows: ExampleWindows) -> tuple[np.ndarray, Counter[str]]:
        """The examples that can be in a row (int64 indices), and how many cannot, by reason; see ``rejects``."""
        usable = (tokens <= self._pack.row_length) & self._surely_fit(windows.storage, windows.windows, windows.largest)
        reasons: Counter[str] = Counter()
        for i in np.flatnonzero(~usable).tolist():
            reason = self.rejects(int(tokens[i]), windows.of(i))
            usable[i] = reason is None
            if reason is not None:
                reasons[reason] += 1
        return np.flatnonzero(usable), reasons

    def add(self, example: int, tokens: int, types: WindowTypes) -> list[int] | None:
        """Place ``example`` of ``tokens`` decoder positions; returns the examples of the row that this closed, if any.

        The caller has asked ``rejects`` before.
        """
        candidates = self._open
        for i in range(bisect.bisect_left(candidates, (tokens, -1)), len(candidates)):
            row = candidates[i][3]
            if not types or self._takes(row, types):
                del candidates[i]
                self._put(row, example, tokens, types)
                return None
        closed = None
        if len(candidates) >= self._pack.lookahead:
            closed = candidates.pop(self._which_to_close())
        self._serial += 1
        self._put(_OpenRow(self._serial, self._pack.row_length), example, tokens, types)
        return closed[3].examples if closed else None

    def flush(self) -> list[list[int]]:
        """Close all open rows, the fullest first."""
        rows = sorted(self._open, key=lambda one: (-one[2], one[1]))
        self._open = []
        return [one[3].examples for one in rows]

    def _which_to_close(self) -> int:
        """Place of the fullest open row, or of one that stayed open for too long: no example waits forever."""
        serials, fullness = [one[1] for one in self._open], [one[2] for one in self._open]
        oldest = min(serials)
        if self._serial - oldest >= _MAX_AGE * self._pack.lookahead:
            return serials.index(oldest)
        return fullness.index(max(fullness))

    def _put(self, row: _OpenRow, example: int, tokens: int, types: WindowTypes) -> None:
        row.examples.append(example)
        row.room -= tokens
        for storage, context, count in types:
            key = (-storage, context)
            row.types[key] = row.types.get(key, 0) + count
            row.storage += storage * count
            row.windows += count
            row.largest = max(row.largest, storage)
        fullness = max(1 - row.room / self._pack.row_length, row.storage / self._encoder_room)
        bisect.insort(self._open, (row.room, row.serial, fullness, row))

    def _takes(self, row: _OpenRow, types: WindowTypes) -> bool:
        storage, windows, largest = row.storage, row.windows, row.largest
        for size, _, count in types:
            storage += size * count
            windows += count
            largest = max(largest, size)
        if storage > self._encoder_room:
            return False
        if self._surely_fit(storage, windows, largest):
            return True
        merged = dict(row.types)
        for size, context, count in types:
            merged[(-size, context)] = merged.get((-size, context), 0) + count
        ordered = [(-size, context, count) for (size, context), count in sorted(merged.items())]
        return place_types(ordered, self._ratio, self._pack) is not None

    def _surely_fit(self, storage: Any, windows: Any, largest: Any) -> Any:
        """Whether windows of these totals fit a row however they fall; numbers or arrays of examples.

        A window that fits no encoder row leaves each of them filled above R - largest - (N - 1), and alignment costs
        at most N - 1 positions a window.
        """
        slack = self._ratio - 1
        enough = self._pack.encoder_rows * (self._pack.encoder_row_length - largest - slack)
        return storage + windows * slack <= enough
