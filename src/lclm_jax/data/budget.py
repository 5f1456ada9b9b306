"""How long a row and how many encoder rows suit a corpus: both budgets filled, measured with the packer itself."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lclm_jax.config import Config, PackConfig
from lclm_jax.data.blocks import Block
from lclm_jax.data.index import block_maker
from lclm_jax.data.layout import make_layout, make_mixture
from lclm_jax.data.mixture import Cursor
from lclm_jax.data.sources import Source

DECODER_FILL, ENCODER_FILL = 0.98, 0.90
_EXAMPLES = 8192
_SIZES = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0)
"""Row lengths that are tried, relative to the configured one."""
_SHARES = (0.98, 0.96, 0.94, 0.92, 0.90)
"""Encoder fills that are aimed at: M is the demand of a full row divided by one of these."""

MakeSources = Callable[[Config], Sequence[Source]]


class Fill(NamedTuple):
    """What one row layout gives."""

    pack: PackConfig
    decoder: float
    encoder: float
    left_out: float
    """Share of the examples that fit no row."""

    @property
    def enough(self) -> bool:
        """Whether both budgets are filled as far as the project asks for."""
        return self.decoder >= DECODER_FILL and self.encoder >= ENCODER_FILL and self.left_out < 0.01

    @property
    def worth(self) -> float:
        """Sorting key: first what is enough, then the least fill of the two, each relative to what is asked for."""
        return self.enough + min(1.0, self.decoder / DECODER_FILL) * min(1.0, self.encoder / ENCODER_FILL)


def measure_fill(config: Config, stage: str, pack: PackConfig, make_sources: MakeSources) -> Fill:
    """Pack a block of ``stage`` into rows of ``pack``; its last row, which may be short, is not counted."""
    block, sources = _sample(config, stage, pack, make_sources)
    columns, last = block.columns, max(len(block) - 1, 1)
    kept = slice(0, int(columns["rows"][last]))
    dropped = sum(sum(block.dropped[source.name].values()) for source in sources)
    return Fill(
        pack,
        float(columns["tokens"][kept].sum() / (last * pack.row_length)),
        float(columns["encoder_tokens"][kept].sum() / (last * pack.encoder_rows * pack.encoder_row_length)),
        dropped / max(dropped + columns["tokens"].size, 1),
    )


def propose(config: Config, stage: str, make_sources: MakeSources) -> Iterator[Fill]:
    """Measure row layouts for ``stage``, the configured one first, until one fills both budgets.

    The row length is the configured one if any number of encoder rows suits it, else a longer one.

    Args:
        config: The run.
        stage: Name of a stage.
        make_sources: Sources of ``stage`` of a configuration.
    """
    pack = config.pack(stage)
    yield measure_fill(config, stage, pack, make_sources)
    for size in _SIZES:
        length = round(size * pack.row_length / 128) * 128 or pack.row_length
        tried: set[int] = set()
        demand = _demand(config, stage, pack.model_copy(update={"row_length": length}), make_sources)
        for share in _SHARES:
            rows = max(1, round(demand / share / pack.encoder_row_length))
            if rows in tried:
                continue
            tried.add(rows)
            one = pack.model_copy(update={"row_length": length, "encoder_rows": rows})
            fill = measure_fill(config, stage, one, make_sources)
            yield fill
            if fill.enough:
                return


def _demand(config: Config, stage: str, pack: PackConfig, make_sources: MakeSources) -> float:
    """Encoder tokens of a full row where encoder rows are no limit."""
    plenty = pack.model_copy(update={"encoder_rows": -(-4 * pack.row_length // pack.encoder_row_length) + 4})
    block, _ = _sample(config, stage, plenty, make_sources)
    return float(block.columns["encoder_tokens"].sum() / block.columns["tokens"].sum() * pack.row_length)


def _sample(config: Config, stage: str, pack: PackConfig, make_sources: MakeSources) -> tuple[Block, Sequence[Source]]:
    """The first block of ``stage`` with rows of ``pack``."""
    few = pack.model_copy(update={"block_examples": min(pack.block_examples, _EXAMPLES)})
    settings = config.stages[stage].model_copy(update={"pack": few})
    changed = config.model_copy(update={"stages": {**config.stages, stage: settings}})
    sources = make_sources(changed)
    mixture = make_mixture(changed, stage, sources, make_layout(changed, stage, sources))
    return block_maker(changed, stage, sources, mixture)(Cursor(0, 0, (0,) * len(sources))), sources
