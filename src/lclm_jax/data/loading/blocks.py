"""Blocks of the row index: made from lengths, each by itself, and kept as memory-mapped files of plain columns."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from lclm_jax.config import PackConfig
from lclm_jax.data.packing.counter_rng import draw_key, permutation
from lclm_jax.data.packing.mixture import Cursor, Mixture
from lclm_jax.data.packing.row_packer import ExampleWindows, RowPacker
from lclm_jax.data.packing.sources import EXAMPLE_COLUMNS, ExampleRef, Plan, Source, join_plans, row_groups
from lclm_jax.data.store.columns import join, map_columns, read_metadata
from lclm_jax.files import replacing
from lclm_jax.types import JsonObject

_DTYPES = {"source": np.uint16, "record": np.int64, "variant": np.uint16}


class Block(NamedTuple):
    """Consecutive rows of a stage; columns of examples in row order."""

    cursor: Cursor
    after: Cursor
    """Where the next block begins."""
    columns: Mapping[str, np.ndarray]
    """``rows`` [rows + 1]: row r holds examples [rows[r], rows[r + 1]); ``EXAMPLE_COLUMNS`` [examples]; ``bounds``
    int32 and ``bounds_offsets`` [examples + 1]: cut indices between which the segments of each example lie."""
    dropped: Mapping[str, Mapping[str, int]]
    """Examples that are in no row, by source and reason."""

    def __len__(self) -> int:
        return self.columns["rows"].size - 1

    def row(self, row: int) -> list[ExampleRef]:
        """The examples of the stage's row ``row``, which is in this block."""
        columns, place = self.columns, row - self.cursor.row
        part = slice(int(columns["rows"][place]), int(columns["rows"][place + 1]))
        starts = columns["bounds_offsets"][part.start : part.stop + 1].tolist()
        names = (columns[name][part].tolist() for name in ("source", "record", "variant"))
        bounds = (columns["bounds"][start:stop] for start, stop in pairwise(starts))
        return [ExampleRef(*values) for values in zip(*names, bounds, strict=True)]


class BlockMaker:
    """Makes the block at a cursor: a pure function of the sources' lengths, the mixture and the row layout."""

    def __init__(self, sources: Sequence[Source], mixture: Mixture, pack: PackConfig, key: int):
        self.sources, self.mixture, self._key = sources, mixture, key
        self._packer = RowPacker(sources[0].setup.plan_model.alignment, pack)

    def __call__(self, cursor: Cursor) -> Block:
        """Plan and pack the block at ``cursor``; raises ``Exhausted`` where the stage ends."""
        taken = self.mixture.taken(cursor)
        plans: list[tuple[int, Plan]] = []
        dropped: dict[str, Counter[str]] = {source.name: Counter() for source in self.sources}
        for number, (source, places) in enumerate(zip(self.sources, taken, strict=True)):
            for epoch, records in self.mixture.records(number, places):
                plan = source.plan(epoch, records)
                dropped[source.name].update(plan.dropped)
                plans.append((number, plan))
        columns, spans = join_plans(plans)
        windows = ExampleWindows(spans, self.sources[0].setup.plan_model)
        usable, kept = self._usable(columns, windows, dropped), []
        groups = row_groups(self.sources)[columns["source"]]
        rows = self._packer.pack_apart(usable, groups, columns["tokens"], windows)
        kept = [rows[i] for i in permutation(draw_key(self._key, cursor.block), len(rows)).tolist()]
        ends = np.append(0, np.cumsum([len(row) for row in kept])).astype(np.int64)
        after = Cursor(cursor.block + 1, cursor.row + len(kept), tuple(places.stop for places in taken))
        chosen = np.array([example for row in kept for example in row], np.int64)
        counts = {name: dict(sorted((k, n) for k, n in one.items() if n)) for name, one in dropped.items()}
        return Block(cursor, after, {"rows": ends, **_taken(plans, columns, chosen)}, counts)

    def _usable(
        self, columns: Mapping[str, np.ndarray], windows: ExampleWindows, dropped: Mapping[str, Counter[str]]
    ) -> np.ndarray:
        usable, reasons = self._packer.find_packable(columns["tokens"], windows)
        for example, reason in reasons.items():
            dropped[self.sources[columns["source"][example]].name][reason] += 1
        return usable


def _taken(
    plans: Sequence[tuple[int, Plan]], columns: Mapping[str, np.ndarray], chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of the ``chosen`` examples, as they are stored."""
    stored = {name: columns[name][chosen].astype(_DTYPES.get(name, np.uint32)) for name in EXAMPLE_COLUMNS}
    bounds = join([plan.bounds for _, plan in plans]).take(chosen)
    return {**stored, "bounds_offsets": bounds.offsets, "bounds": bounds.values.astype(np.int32)}


def write_block(path: Path, block: Block) -> None:
    """Store ``block``; whole or not at all. Raises ``OSError``."""
    about = {"cursor": block.cursor, "after": block.after, "dropped": block.dropped}
    with replacing(path, shared=True, durable=False) as partial:
        save_file(dict(block.columns), partial, {"about": json.dumps(about)})


def read_block(path: Path) -> Block:
    """The block stored at ``path``, memory-mapped; raises ``OSError`` or ``LclmError``."""
    about = read_about(path)
    return Block(_cursor(about["cursor"]), _cursor(about["after"]), map_columns(path), about["dropped"])


def read_about(path: Path) -> JsonObject:
    """What is stored of a block beside its columns; raises ``OSError`` or ``LclmError``."""
    return json.loads(read_metadata(path)["about"])


def _cursor(values: tuple[int, int, Sequence[int]]) -> Cursor:
    return Cursor(values[0], values[1], tuple(values[2]))
