"""How much of each source goes into a block of the row index, from a sample of its records."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lclm_jax.config import Config, PackConfig
from lclm_jax.data.packing.counter_rng import Shuffle, draw_key
from lclm_jax.data.packing.mixture import Mixture, Supply, mixtures_by_row
from lclm_jax.data.packing.row_packer import ExampleWindows, RowPacker
from lclm_jax.data.packing.sources import Source
from lclm_jax.errors import LclmError
from lclm_jax.types import JsonObject, ReadOnlyJson

SAMPLE_RECORDS, SAMPLE_TOKENS = 4096, 2**21
"""A sample ends with the first of the two that it reaches."""
BLOCK_TOKENS = 2**24
"""Most tokens of text that a block represents: what planning one holds in memory."""


class RecordAverages(NamedTuple):
    """What a record of a source gives on average; examples that fit no row are left out."""

    examples: float
    positions: float
    encoder_tokens: float
    raw_tokens: float


def sample_averages(source: Source, seed: int) -> RecordAverages:
    """Plan a sample of the records of ``source``, or all if there are few; zeros if none fits a row.

    What the sample gives is scaled to the tokens of all records, which are known: a few long documents more or fewer in
    the sample would otherwise shift the shares of a whole stage.
    """
    order = Shuffle(draw_key("sample", seed, source.name), len(source))
    model, packer = source.setup.plan_model, RowPacker(source.setup.plan_model.alignment, source.setup.pack)
    mean = source.split.mean_tokens
    totals, taken, tokens = np.zeros(4), 0, 0
    while taken < min(len(source), SAMPLE_RECORDS) and totals[3] < SAMPLE_TOKENS:
        more = min(max(64, taken), len(source) - taken)
        records = order(np.arange(taken, taken + more))
        plan = source.plan(0, records)
        if mean is not None:
            tokens += int(source.split.numbers("decoder_tokens", records).sum())
        usable, _ = packer.find_packable(plan.tokens, ExampleWindows(plan.spans, model))
        of_examples = (plan.tokens, plan.spans.sums(), plan.raw_tokens)
        totals += [usable.size, *(float(one[usable].sum()) for one in of_examples)]
        taken += more
    scale = 1 / max(taken, 1) if mean is None or not tokens else mean / tokens
    return RecordAverages(*(totals * scale).tolist())


def block_size(
    weights: Sequence[float], averages: Sequence[RecordAverages], records: Sequence[int], pack: PackConfig
) -> float:
    """Decoder positions of a block.

    At least a row and a record; at most ``pack.block_examples`` examples and ``BLOCK_TOKENS`` tokens of text; and of a
    small corpus not more than one epoch of the source that lasts longest, so that a block does not hold the same text
    many times.
    """
    fraction = np.asarray(weights, np.float64) / sum(weights)
    of_record = np.array(averages, np.float64)
    per_position = of_record / of_record[:, 1:2]
    epoch = max(n * one.positions / s for n, one, s in zip(records, averages, fraction, strict=True) if s > 0)
    limits = (
        pack.block_examples / (fraction @ per_position[:, 0]),
        BLOCK_TOKENS / (fraction @ per_position[:, 3]),
        epoch,
    )
    record = 1 / float(fraction @ (1 / of_record[:, 1]))
    return float(max(min(limits), pack.row_length, record))


def size_blocks(
    config: Config, stage: str, sources: Sequence[Source], ratios: Sequence[Sequence[Source]] = ()
) -> JsonObject:
    """Plain values that ``make_mixture`` needs beside the configuration; stored with the index.

    Args:
        config: The run.
        stage: Name of a stage.
        sources: Its sources.
        ratios: The sources of each of its ratios, ascending, if it has several; ``sources`` are those of one of them.

    Raises:
        LclmError: No sampled example of a source fits a row.
    """
    pack, averages = config.pack(stage), [sample_averages(source, config.seed) for source in sources]
    for source, one in zip(sources, averages, strict=True):
        if not one.examples:
            raise LclmError(
                f"source {source.name}: none of its examples fits a row of {pack.row_length} positions and"
                f" {pack.encoder_rows} encoder rows; change its span lengths or max_tokens, or data.pack"
            )
    mixtures = [weights for _, weights in _weights(config, stage, sources)]
    records = [len(source) for source in sources]
    positions = min(block_size(weights, averages, records, pack) for weights in mixtures)
    sizing = {"positions": positions, "sources": {s.name: m._asdict() for s, m in zip(sources, averages, strict=True)}}
    if not ratios:
        return sizing
    own = sources[0].setup.part[0]
    all_averages = [
        averages if number == own else [sample_averages(source, config.seed) for source in one]
        for number, one in enumerate(ratios)
    ]
    ends = np.cumsum(parts_by_use(np.mean(mixtures, axis=0), all_averages, _ratio_weights(config, stage), pack), axis=0)
    begin = ends[own - 1] if own else np.zeros(len(sources))
    parts = zip(sources, begin.tolist(), ends[own].tolist(), strict=True)
    return sizing | {"parts": {source.name: [first, stop] for source, first, stop in parts}}


def parts_by_use(
    mixture: np.ndarray, averages: Sequence[Sequence[RecordAverages]], steps: Sequence[float], pack: PackConfig
) -> np.ndarray:
    """Which share of its records each ratio takes of a source in an epoch, float64 [ratios, sources].

    Rows of a high ratio hold more text than those of a low one, and a ratio may have more steps than another; with
    these shares all ratios come to the end of an epoch after equally many steps.

    Args:
        mixture: Share of each source in the decoder positions, [sources].
        averages: By ratio and source.
        steps: Relative number of steps of each ratio.
        pack: The row layout.
    """
    used = np.zeros((len(averages), len(mixture)))
    for number, (of_sources, weight) in enumerate(zip(averages, steps, strict=True)):
        of_record = np.array(of_sources, np.float64)
        records = mixture / mixture.sum() / of_record[:, 1]  # for each decoder position
        encoder_tokens = float(records @ of_record[:, 2])
        # A row is full when either of its budgets is.
        rows = max(1 / pack.row_length, encoder_tokens / (pack.encoder_rows * pack.encoder_row_length))
        used[number] = weight * records / rows
    used[:, mixture <= 0] = 1.0
    shares: np.ndarray = used / used.sum(axis=0)
    return shares


def _ratio_weights(config: Config, stage: str) -> list[int]:
    """How often each of the different ratios of ``stage`` is listed, by ascending ratio."""
    listed = Counter(config.stages[stage].ratios or (config.model.ratio,))
    return [listed[ratio] for ratio in sorted(listed)]


def make_mixture(config: Config, stage: str, sources: Sequence[Source], sizing: ReadOnlyJson) -> Mixture:
    """The mixture of ``stage``."""
    supplies = []
    for source in sources:
        rule, epochs, part = source.config.when_exhausted, source.config.epochs, source.setup.part
        first, stop = (round(share * len(source)) for share in sizing.get("parts", {}).get(source.name, (0, 0)))
        span = (first, len(source)) if "parts" in sizing else None
        records = stop - first if span else len(source) // part[1]  # runs of earlier versions began with equal parts
        if not records:
            raise LclmError(
                f"source {source.name} has {len(source)} records, fewer than its {part[1]} ratios; add data"
            )
        limit = None if rule == "repeat" else epochs * records
        positions = sizing["sources"][source.name]["positions"]
        supplies.append(Supply(source.name, records, positions, limit, rule == "stop", part, span))
    return Mixture(supplies, _weights(config, stage, sources), sizing["positions"], (config.seed, stage))


def _weights(config: Config, stage: str, sources: Sequence[Source]) -> list[tuple[int, list[float]]]:
    return [
        (row, [weights.get(source.name, 0.0) for source in sources])
        for row, weights in mixtures_by_row(config, stage, sources[0].setup.part)
    ]
