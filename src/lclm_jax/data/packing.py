"""Examples to rows by their lengths alone, under two budgets: decoder positions and encoder rows."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.data.ragged import Ragged
from lclm_jax.data.windows import place_types, plan_spans

_CLASSES = 16
"""Examples are told apart by encoder positions per decoder position in so many classes of equal size."""
_TRIES = 3
"""Examples of one class that are tried, from the longest that fits the decoder on."""

WindowTypes = Sequence[tuple[int, int, int]]
"""(storage, context, count) of equal windows; see ``windows.window_types``."""


class ExampleWindows:
    """The window types of many examples, from the lengths of their spans (encoder tokens)."""

    def __init__(self, spans: Ragged, model: ModelConfig):
        table = plan_spans(spans.values, model)
        # One sortable number: example, then the largest storage first, then the context.
        width = int(table.storage.max(initial=0)) + 1
        keys = (spans.owners()[table.span] * width + (width - 1 - table.storage)) * width + table.context
        keys, count = np.unique(keys, return_counts=True)
        context = keys % width
        storage = width - 1 - keys // width % width
        offsets = np.searchsorted(keys // (width * width), np.arange(spans.offsets.size))
        self.windows = Ragged(offsets, count).sums()
        """Windows of each example, int64."""
        self.storage = Ragged(offsets, storage * count).sums()
        """Encoder positions they take together, without alignment, int64."""
        self.largest = np.append(storage, 0)[offsets[:-1]] * (self.windows > 0)
        """Encoder positions of the largest, int64."""
        self._offsets, self._columns = offsets.tolist(), (storage.tolist(), context.tolist(), count.tolist())

    def of(self, example: int) -> WindowTypes:
        """Types of one example, largest first."""
        part = slice(self._offsets[example], self._offsets[example + 1])
        storage, context, count = self._columns
        return list(zip(storage[part], context[part], count[part], strict=True))


@dataclass(slots=True, eq=False)
class _Row:
    room: int
    examples: list[int] = field(default_factory=list)
    types: dict[tuple[int, int], int] = field(default_factory=dict)
    storage: int = 0
    windows: int = 0
    largest: int = 0

    def put(self, example: int, tokens: int, types: WindowTypes) -> None:
        self.examples.append(example)
        self.room -= tokens
        for storage, context, count in types:
            key = (-storage, context)
            self.types[key] = self.types.get(key, 0) + count
            self.storage += storage * count
            self.windows += count
            self.largest = max(self.largest, storage)


class RowPacker:
    """Packs a block of examples into rows; a pure function of their lengths.

    A row begins with the largest example left. Then comes, again and again, the longest example that fits and whose
    need of encoder positions per decoder position is nearest to what the row has left, so that both budgets run out
    together (the dot-product rule of vector bin packing, Panigrahy et al. 2011). Whether encoder windows fit is asked
    of the very function that places them when the row is assembled.
    """

    def __init__(self, ratio: int, pack: PackConfig):
        self._ratio, self._pack = ratio, pack
        self._encoder_room = pack.encoder_rows * pack.encoder_row_length

    def rejects(self, tokens: int, types: WindowTypes) -> str | None:
        """Why an example cannot be in any row: ``longer_than_row``, ``windows_exceed_row``, or None if it can."""
        if tokens > self._pack.row_length:
            return "longer_than_row"
        if place_types(types, self._ratio, self._pack) is None:
            return "windows_exceed_row"
        return None

    def sort_out(self, tokens: np.ndarray, windows: ExampleWindows) -> tuple[np.ndarray, dict[int, str]]:
        """The examples that can be in a row (int64 indices), and why each other cannot; see ``rejects``."""
        usable = (tokens <= self._pack.row_length) & self._surely_fit(windows.storage, windows.windows, windows.largest)
        reasons: dict[int, str] = {}
        for i in np.flatnonzero(~usable).tolist():
            reason = self.rejects(int(tokens[i]), windows.of(i))
            usable[i] = reason is None
            if reason is not None:
                reasons[i] = reason
        return np.flatnonzero(usable), reasons

    def pack(self, examples: np.ndarray, tokens: np.ndarray, windows: ExampleWindows) -> list[list[int]]:
        """Rows of ``examples`` (indices into ``tokens`` and ``windows``), all of which ``sort_out`` let pass."""
        stock = _Stock(examples, tokens, windows.storage, self._pack.row_length / self._encoder_room)
        rows = []
        while (first := stock.largest()) is not None:
            row = _Row(self._pack.row_length)
            row.put(first, int(tokens[first]), windows.of(first))
            while (found := self._next(row, stock, windows)) is not None:
                row.put(found, int(tokens[found]), windows.of(found))
            rows.append(row.examples)
        return rows

    def _next(self, row: _Row, stock: "_Stock", windows: ExampleWindows) -> int | None:
        """Take the example that suits ``row`` best out of ``stock``; None if none fits."""
        if row.room < stock.shortest:
            return None
        near = stock.classes_near((self._encoder_room - row.storage) / row.room)
        best = stock.best_of_last_two(row.room)
        for tokens in (row.room,) if best is None else (best, row.room):
            for number in near:
                for place in stock.places(number, tokens):
                    example = stock.at(number, place)
                    if self._takes(row, windows.of(example)):
                        stock.take(number, place)
                        return example
        return None

    def _takes(self, row: _Row, types: WindowTypes) -> bool:
        if not types:
            return True
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


class _Stock:
    """Examples not yet packed, by class of encoder need, each class by decoder length."""

    def __init__(self, examples: np.ndarray, tokens: np.ndarray, storage: np.ndarray, scale: float):
        need = storage[examples] / tokens[examples]
        edges = np.unique(np.quantile(need, np.arange(1, _CLASSES) / _CLASSES)) if need.size else need
        number = np.searchsorted(edges, need, side="right")
        keys = (tokens[examples].astype(np.int64) << 32) + examples
        self._classes = [np.sort(keys[number == i]).tolist() for i in range(edges.size + 1)]
        self._needs = [float(need[number == i].mean()) if one else np.inf for i, one in enumerate(self._classes)]
        size = np.maximum(tokens[examples], storage[examples] * scale)
        self._order = examples[np.lexsort((examples, -size))].tolist()
        self._class_of = dict(zip(examples.tolist(), number.tolist(), strict=True))
        self._tokens, self._next, self._taken = tokens, 0, set()  # type: ignore[var-annotated]
        self._counts = np.bincount(tokens[examples]) if examples.size else np.zeros(1, np.int64)
        self._shortest, self._longest = 0, self._counts.size - 1

    def largest(self) -> int | None:
        """Take the largest example; None if there is none left."""
        while self._next < len(self._order) and self._order[self._next] in self._taken:
            self._next += 1
        if self._next == len(self._order):
            return None
        example = self._order[self._next]
        number = self._class_of[example]
        self.take(number, bisect.bisect_left(self._classes[number], (int(self._tokens[example]) << 32) + example))
        return example

    def classes_near(self, wanted: float) -> list[int]:
        """Numbers of the classes that have examples, that with the need nearest to ``wanted`` first."""
        filled = (i for i, one in enumerate(self._classes) if one)
        return sorted(filled, key=lambda i: abs(self._needs[i] - wanted))

    def places(self, number: int, room: int) -> range:
        """Places of the longest examples of a class that take at most ``room`` decoder positions."""
        last = bisect.bisect_left(self._classes[number], (room + 1) << 32)
        return range(last - 1, max(-1, last - 1 - _TRIES), -1)

    def at(self, number: int, place: int) -> int:
        """The example at a place."""
        return self._classes[number][place] & 0xFFFFFFFF

    def take(self, number: int, place: int) -> None:
        """Remove the example at a place."""
        key = self._classes[number].pop(place)
        self._taken.add(key & 0xFFFFFFFF)
        self._counts[key >> 32] -= 1

    @property
    def shortest(self) -> int:
        """Decoder length of the shortest example left; beyond any row if there is none."""
        while self._shortest < self._counts.size and not self._counts[self._shortest]:
            self._shortest += 1
        return self._shortest

    def best_of_last_two(self, room: int) -> int | None:
        """The longer of the two decoder lengths that fill ``room`` best; None if more than two may be needed."""
        while self._longest and not self._counts[self._longest]:
            self._longest -= 1
        if room > 2 * self._longest:
            return None
        lengths = np.flatnonzero(self._counts[: room + 1])
        rest = np.searchsorted(lengths, room - lengths, side="right") - 1
        sums = lengths + np.where(rest >= 0, lengths[rest], 0)
        # The last of equal ones: the longest; one example is better than two.
        return int(lengths[sums.size - 1 - np.argmax(sums[::-1])])
