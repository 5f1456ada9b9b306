"""How long a row and how many encoder rows suit a corpus: both budgets filled, measured with the packer itself."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lclm_jax.config import Config, PackConfig
from lclm_jax.data.packing.block_sizing import make_mixture, size_blocks
from lclm_jax.data.packing.mixture import Cursor
from lclm_jax.data.packing.row_packer import ExampleWindows, RowPacker
from lclm_jax.data.packing.sources import Source, join_plans, row_groups

DECODER_FILL, ENCODER_FILL = 0.98, 0.90
_EXAMPLES = 8192
_LONGEST = 8
"""Row lengths up to so many times the configured one are tried, in steps of an eighth of it (at least 128)."""
_TRIED = 8
"""Layouts that are measured, at most."""

MakeSources = Callable[[Config], Sequence[Source]]


class LayoutFill(NamedTuple):
    """What one row layout gives."""

    pack: PackConfig
    decoder: float
    encoder: float
    left_out: float
    """Share of the examples that fit no row."""

    @property
    def sufficient(self) -> bool:
        """Whether both budgets are filled as far as the project asks for."""
        return self.decoder >= DECODER_FILL and self.encoder >= ENCODER_FILL and self.left_out < 0.01

    @property
    def score(self) -> float:
        """Sorting key: first what is sufficient, then the least fill of the two, each relative to what is asked for."""
        return self.sufficient + min(1.0, self.decoder / DECODER_FILL) * min(1.0, self.encoder / ENCODER_FILL)


def search_row_layouts(config: Config, stage: str, make_sources: MakeSources) -> Iterator[LayoutFill]:
    """Measure row layouts for ``stage``, the configured one first, until one fills both budgets.

    Of the others only those are measured whose encoder rows the demand of a full row just fills, short rows first.

    Args:
        config: The run.
        stage: Name of a stage.
        make_sources: Sources of ``stage`` of a configuration.
    """
    sample, pack = _Sample(config, stage, make_sources), config.pack(stage)
    fill = sample.fill(pack)
    yield fill
    for one in _candidates(pack, sample.demand()):
        if fill.sufficient:
            return
        if one != pack:
            fill = sample.fill(one)
            yield fill


class _Demand(NamedTuple):
    """What the examples need where encoder rows are no limit."""

    positions: float
    """Encoder positions for each decoder position, alignment included."""
    tokens: float
    """Encoder tokens for each of these positions."""


def _candidates(pack: PackConfig, demand: _Demand) -> list[PackConfig]:
    """Layouts score measuring: where both budgets have slack, by row length, then those with the most of it.

    Encoder rows that a full row needs exactly keep the decoder from filling up; many more stay empty themselves.
    """
    step = max(128, pack.row_length // 8 // 128 * 128)
    found = []
    for length in range(pack.row_length, _LONGEST * pack.row_length + 1, step):
        needed = demand.positions * length / pack.encoder_row_length
        least = max(1, math.ceil(needed))
        for rows in range(least, max(least, math.floor(needed * demand.tokens / ENCODER_FILL)) + 1):
            share = needed / rows
            found.append((min(1 - share, share * demand.tokens - ENCODER_FILL), length, rows))
    most = 1 - (1 + ENCODER_FILL) / (1 + demand.tokens)  # where the two are equal
    good = [one for one in found if one[0] >= most / 2]
    other = sorted(set(found) - set(good), reverse=True)
    layouts = [{"row_length": length, "encoder_rows": rows} for _, length, rows in (good + other)[:_TRIED]]
    return [pack.model_copy(update=layout) for layout in layouts]


class _Sample:
    """The records of the first block of a stage, packed again and again into other rows."""

    def __init__(self, config: Config, stage: str, make_sources: MakeSources):
        self._config, self._stage, self._make_sources = config, stage, make_sources
        pack = config.pack(stage)
        self._roomy = pack.model_copy(
            update={
                "row_length": _LONGEST * pack.row_length,
                "encoder_rows": 4 * _LONGEST * pack.encoder_rows,
                "block_examples": min(pack.block_examples, _EXAMPLES),
            }
        )
        changed = self._with(self._roomy)
        sources = make_sources(changed)
        mixture = make_mixture(changed, stage, sources, size_blocks(changed, stage, sources))
        taken = mixture.taken(Cursor(0, 0, (0,) * len(sources)))
        self._records = [(number, *one) for number, draws in enumerate(taken) for one in mixture.records(number, draws)]

    def demand(self) -> _Demand:
        """Of the records in rows that are longer than any that is tried."""
        columns, windows, _ = self._planned(self._make_sources(self._with(self._roomy)))
        positions = float(windows.aligned.sum())
        return _Demand(
            positions / float(max(columns["tokens"].sum(), 1)),
            float(columns["encoder_tokens"].sum()) / max(positions, 1.0),
        )

    def fill(self, pack: PackConfig) -> LayoutFill:
        """Pack the records into rows of ``pack``; the last row, which may be short, is not counted."""
        sources = self._make_sources(self._with(pack))
        columns, windows, dropped = self._planned(sources)
        tokens, packer = columns["tokens"], RowPacker(sources[0].setup.plan_model.alignment, pack)
        usable, reasons = packer.find_packable(tokens, windows)
        rows = packer.pack_apart(usable, row_groups(sources)[columns["source"]], tokens, windows)
        kept = np.array([example for row in rows[:-1] or rows for example in row], np.int64)
        count, dropped = max(len(rows) - 1, 1), dropped + len(reasons)
        return LayoutFill(
            pack,
            float(tokens[kept].sum() / (count * pack.row_length)),
            float(columns["encoder_tokens"][kept].sum() / (count * pack.encoder_rows * pack.encoder_row_length)),
            dropped / max(dropped + usable.size, 1),
        )

    def _planned(self, sources: Sequence[Source]) -> tuple[dict[str, np.ndarray], ExampleWindows, int]:
        """Columns and windows of the examples, and how many were left out while planning."""
        plans = [(number, sources[number].plan(epoch, records)) for number, epoch, records in self._records]
        columns, spans = join_plans(plans)
        dropped = sum(sum(plan.dropped.values()) for _, plan in plans)
        return columns, ExampleWindows(spans, sources[0].setup.plan_model), dropped

    def _with(self, pack: PackConfig) -> Config:
        settings = self._config.stages[self._stage].model_copy(update={"pack": pack})
        return self._config.model_copy(update={"stages": {**self._config.stages, self._stage: settings}})
