"""Examples to rows by their lengths alone, under two budgets: decoder positions and encoder rows."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.data.packing.windows import place_types, plan_spans
from lclm_jax.data.store.columns import Ragged

_CLASSES = 16
"""Examples are told apart by encoder positions per decoder position in so many classes of equal size."""
_TRIES = 24
"""Lengths of one class that are tried, from the longest that fits the decoder on."""
_FRESH = 15 / 16
"""Which numbers of positions can be filled is computed again when so much of the examples is left."""

WindowTypes = Sequence[tuple[int, int, int]]
"""(storage, context, count) of equal windows; see ``windows.window_types``."""


Count = TypeVar("Count", int, np.ndarray)
"""A number of one example, or of each."""


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
        whole = np.where(context == 0, -(-storage // model.alignment) * model.alignment, storage)
        self.aligned = Ragged(offsets, whole * count).sums()
        """As ``storage``, those without context with alignment, int64: nearer to what they take of a row."""
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
    free: int
    examples: list[int] = field(default_factory=list)
    types: dict[tuple[int, int], int] = field(default_factory=dict)
    storage: int = 0
    aligned: int = 0
    windows: int = 0
    largest: int = 0

    def put(self, example: int, tokens: int, aligned: int, types: WindowTypes) -> None:
        self.examples.append(example)
        self.free -= tokens
        self.aligned += aligned
        for storage, context, count in types:
            key = (-storage, context)
            self.types[key] = self.types.get(key, 0) + count
            self.storage += storage * count
            self.windows += count
            self.largest = max(self.largest, storage)


class RowPacker:
    """Packs a block of examples into rows; a pure function of their lengths.

    A row begins with the largest example left. Then comes, again and again, the example whose need of encoder positions
    per decoder position is nearest to what the row has left, so that both budgets run out together (the dot-product
    rule of vector bin packing, Panigrahy et al. 2011). Of examples with such a need it is the longest that leaves
    a number of free positions that other examples can still fill to the last. Whether encoder windows fit is asked of
    the very function that places them when the row is assembled.
    """

    def __init__(self, alignment: int, pack: PackConfig):
        self._alignment, self._pack = alignment, pack
        self._encoder_positions = pack.encoder_rows * pack.encoder_row_length

    def reject_reason(self, tokens: int, types: WindowTypes) -> str | None:
        """Why an example cannot be in any row: ``longer_than_row``, ``windows_exceed_row``, or None if it can."""
        if tokens > self._pack.row_length:
            return "longer_than_row"
        if place_types(types, self._alignment, self._pack) is None:
            return "windows_exceed_row"
        return None

    def find_packable(self, tokens: np.ndarray, windows: ExampleWindows) -> tuple[np.ndarray, dict[int, str]]:
        """The examples that can be in a row (int64 indices), and why each other cannot; see ``reject_reason``."""
        fits = self._excess(windows.storage, windows.windows, windows.largest) <= 0
        usable = (tokens <= self._pack.row_length) & fits
        reasons: dict[int, str] = {}
        for i in np.flatnonzero(~usable).tolist():
            reason = self.reject_reason(int(tokens[i]), windows.of(i))
            usable[i] = reason is None
            if reason is not None:
                reasons[i] = reason
        return np.flatnonzero(usable), reasons

    def pack(self, examples: np.ndarray, tokens: np.ndarray, windows: ExampleWindows) -> list[list[int]]:
        """Rows of ``examples`` (indices into ``tokens`` and ``windows``), all of which ``find_packable`` let pass."""
        stock = _Stock(examples, tokens, windows.aligned, self._pack.row_length, self._encoder_positions)
        rows = []
        while (found := stock.largest()) is not None:
            row = _Row(self._pack.row_length)
            while found is not None:
                row.put(found, int(tokens[found]), int(windows.aligned[found]), windows.of(found))
                found = self._next(row, stock, windows)
            rows.append(row.examples)
        return rows

    def pack_apart(
        self, examples: np.ndarray, groups: np.ndarray, tokens: np.ndarray, windows: ExampleWindows
    ) -> list[list[int]]:
        """As ``pack``, with no two of different ``groups`` (int, for each of ``tokens``) in one row."""
        own = groups[examples]
        return [row for one in np.unique(own) for row in self.pack(examples[own == one], tokens, windows)]

    def _next(self, row: _Row, stock: "_Stock", windows: ExampleWindows) -> int | None:
        """Take the example that suits ``row`` best out of ``stock``; None if none fits."""
        least_waste, found = row.free, None
        waste_of_best = row.free - stock.fillable(row.free)
        encoder_free = max(0, self._encoder_positions - row.aligned)
        for number in stock.classes_near(encoder_free / row.free) if row.free else ():
            limit = row.free
            for _ in range(_TRIES):
                if least_waste <= waste_of_best or (place := stock.place(number, limit)) < 0:
                    break
                example, length = stock.at(number, place)
                limit = length - 1
                waste = row.free - length - stock.fillable(row.free - length)
                if waste >= least_waste:
                    continue
                aligned = int(windows.aligned[example])
                if aligned <= encoder_free:
                    if self._takes(row, windows.of(example)):
                        least_waste, found = waste, (number, place)
                        continue
                    encoder_free = aligned * 3 // 4  # what is left is in pieces: ask for clearly less
                limit = min(limit, length * encoder_free // aligned)
        return None if found is None else stock.take(*found)

    def _takes(self, row: _Row, types: WindowTypes) -> bool:
        if not types:
            return True
        storage, windows, largest = row.storage, row.windows, row.largest
        for size, _, count in types:
            storage += size * count
            windows += count
            largest = max(largest, size)
        if self._excess(storage, windows, largest) <= 0:
            return True
        merged = dict(row.types)
        for size, context, count in types:
            merged[(-size, context)] = merged.get((-size, context), 0) + count
        ordered = [(-size, context, count) for (size, context), count in sorted(merged.items())]
        return place_types(ordered, self._alignment, self._pack) is not None

    def _excess(self, storage: Count, windows: Count, largest: Count) -> Count:
        """How far windows of these totals exceed what fits a row however they fall: at most 0 if they surely fit.

        A window that fits no encoder row leaves each of them filled above R - largest - (N - 1), and alignment to N
        costs at most N - 1 positions a window.
        """
        slack = self._alignment - 1
        surely_filled = (self._pack.encoder_row_length - largest - slack) * self._pack.encoder_rows
        excess: Count = storage + windows * slack - surely_filled
        return excess


class _Stock:
    """Examples not yet packed, by class of encoder need, each class by decoder length."""

    def __init__(self, examples: np.ndarray, tokens: np.ndarray, aligned: np.ndarray, free: int, encoder_free: int):
        need = aligned[examples] / tokens[examples]
        edges = np.unique(np.quantile(need, np.arange(1, _CLASSES) / _CLASSES)) if need.size else need
        number = np.searchsorted(edges, need, side="right")
        keys = (tokens[examples].astype(np.int64) << 32) + examples
        self._classes = [np.sort(keys[number == i]).tolist() for i in range(edges.size + 1)]
        self._needs = [float(need[number == i].mean()) if one else np.inf for i, one in enumerate(self._classes)]
        size = np.maximum(tokens[examples], aligned[examples] * (free / encoder_free))
        self._order = examples[np.lexsort((examples, -size))].tolist()
        self._class_of = dict(zip(examples.tolist(), number.tolist(), strict=True))
        self._tokens, self._next = tokens, 0
        self._taken: set[int] = set()
        self._counts = np.bincount(tokens[examples], minlength=free + 1)
        self._left, self._filled = examples.size, fillable_lengths(self._counts)
        self._computed_at = self._left

    def largest(self) -> int | None:
        """Take the largest example; None if there is none left."""
        while self._next < len(self._order) and self._order[self._next] in self._taken:
            self._next += 1
        if self._next == len(self._order):
            return None
        example = self._order[self._next]
        number = self._class_of[example]
        return self.take(
            number, bisect.bisect_left(self._classes[number], (int(self._tokens[example]) << 32) + example)
        )

    def fillable(self, free: int) -> int:
        """How many of ``free`` decoder positions examples can fill; see ``fillable_lengths``."""
        if self._left < self._computed_at * _FRESH:
            self._computed_at, self._filled = self._left, fillable_lengths(self._counts)
        return self._filled[free]

    def classes_near(self, wanted: float) -> list[int]:
        """Numbers of the classes that have examples, that with the need nearest to ``wanted`` first."""
        filled = (i for i, one in enumerate(self._classes) if one)
        return sorted(filled, key=lambda i: abs(self._needs[i] - wanted))

    def place(self, number: int, free: int) -> int:
        """Place of the longest example of a class that takes at most ``free`` decoder positions; -1: there is none."""
        return bisect.bisect_left(self._classes[number], (free + 1) << 32) - 1

    def at(self, number: int, place: int) -> tuple[int, int]:
        """The example at a place, and its decoder length."""
        key = self._classes[number][place]
        return key & 0xFFFFFFFF, key >> 32

    def take(self, number: int, place: int) -> int:
        """Remove and return the example at a place."""
        key: int = self._classes[number].pop(place)
        self._taken.add(key & 0xFFFFFFFF)
        self._counts[key >> 32] -= 1
        self._left -= 1
        return key & 0xFFFFFFFF


def fillable_lengths(counts: np.ndarray) -> list[int]:
    """How much of 0 to ``counts.size`` - 1 free positions sums of lengths can fill at most.

    ``counts[i]`` says how many examples of length i there are; a length may be used about so many times. A look-ahead:
    that a sum exists does not say that its examples suit the encoder too.
    """
    free = counts.size - 1
    whole = (1 << free + 1) - 1
    sums = 1  # bit i: some lengths sum to i
    for length in np.flatnonzero(counts).tolist():
        if sums >> length == whole >> length:  # all sums from here on
            break
        copies, step = int(counts[length]), length
        while copies > 0 and step <= free:
            sums |= sums << step & whole
            copies, step = copies // 2, step * 2
    bits = np.unpackbits(np.frombuffer(sums.to_bytes(free // 8 + 1, "little"), np.uint8), bitorder="little")
    filled: list[int] = np.maximum.accumulate(np.where(bits[: free + 1], np.arange(free + 1), 0)).tolist()
    return filled
