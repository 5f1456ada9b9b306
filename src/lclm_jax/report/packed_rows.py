"""Packed rows as one self-contained HTML page: spans, windows, latents, losses, segment borders and the text."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.data.inspect.show import runs_of
from lclm_jax.data.packing.rows import Row, slots_of_latents, span_tokens
from lclm_jax.report.document import template
from lclm_jax.text.tokenizer import Tokenizers

_COLOURS = ("#4c78a8", "#f2a154", "#6aa66a", "#b279a2", "#d1605e", "#72b7b2", "#c9a227", "#9c8573")


class _Part(NamedTuple):
    """A part of a bar."""

    percent: float
    colour: str
    title: str


class _Piece(NamedTuple):
    """Text of one kind (loss, no, span) in a segment."""

    kind: str
    text: str
    sizes: str = ""
    note: str = ""


class _Segment(NamedTuple):
    title: str
    colour: str
    pieces: list[_Piece]


class _ShownRow(NamedTuple):
    number: int
    facts: str
    bars: list[list[_Part]]
    segments: list[_Segment]


def render_page(batches: Iterable[tuple[int, int, Batch]], tokenizers: Tokenizers, title: str) -> Iterator[str]:
    """Yield the page piece by piece; a row is read when it is its turn.

    Args:
        batches: (global number of its first row, its ratio, host batch of NumPy arrays).
        tokenizers: Decoder's and encoder's.
        title: Heading.
    """
    rows = (
        _row({name: array[i] for name, array in batch._asdict().items() if array is not None}, first + i, tokenizers, n)
        for first, n, batch in batches
        for i in range(len(batch.decoder_tokens))
    )
    yield from template("packed_rows.html").generate(title=title, rows=rows)


def _row(row: Row, number: int, tokenizers: Tokenizers, ratio: int) -> _ShownRow:
    segments, pooled = row["decoder_segments"], row["pool_weights"]
    count, used, encoder = int(segments.max(initial=0)), np.count_nonzero(segments), np.count_nonzero(pooled)
    facts = (
        f"N = {ratio}: {used:,} of {segments.size:,} decoder positions"
        f" ({used / segments.size:.1%}), {count} segments, {np.count_nonzero(row['latent_index'] >= 0):,} latents of"
        f" {encoder:,} tokens in {pooled.size:,} encoder positions ({encoder / pooled.size:.1%}), loss on"
        f" {np.count_nonzero(row['loss_weights']):,} positions"
    )
    readers = zip(row["encoder_segments"], _readers(row, ratio), strict=True)
    bars = [_parts(segments, segments, "segment"), *(_parts(line, reader, "window") for line, reader in readers)]
    spans = span_tokens(row, ratio)
    shown = []
    for segment in range(1, count + 1):
        where = np.flatnonzero(segments == segment)
        title = f"segment {segment}: positions {where[0]}-{where[-1]}"
        shown.append(_Segment(title, _colour(segment), list(_pieces(row, where, spans, tokenizers))))
    return _ShownRow(number, facts, bars, shown)


def _pieces(row: Row, where: np.ndarray, spans: dict[int, np.ndarray], tokenizers: Tokenizers) -> Iterator[_Piece]:
    for run in runs_of(row, where, tokenizers.decoder.memory_ids):
        if run.kind == "span":
            sizes = f"{spans[run.span].size} → {run.tokens.size}"
            slots = f"slots {run.slots[0]}-{run.slots[1]}"
            yield _Piece("span", tokenizers.encoder.decode(spans[run.span]), sizes, slots)
        elif run.kind != "tag":
            yield _Piece("loss" if run.kind == "loss" else "no", tokenizers.decoder.decode(run.tokens))


def _readers(row: Row, ratio: int) -> np.ndarray:
    """The segment that reads each encoder position's latent, 0 for none; [M, R]."""
    read = row["latent_index"] >= 0
    of_slot = np.zeros(row["encoder_segments"].size // ratio, np.int64)
    segment_of = np.zeros_like(of_slot)
    segment_of[row["latent_index"][read]] = row["decoder_segments"][read]
    latents, slots = slots_of_latents(row, row["latent_index"][read], ratio)
    of_slot[slots] = segment_of[latents]
    return np.repeat(of_slot, ratio).reshape(row["encoder_segments"].shape)


def _parts(numbers: np.ndarray, segments: np.ndarray, what: str) -> list[_Part]:
    """Parts of equal number along one bar, coloured by the segment that has or reads them; number 0 is empty."""
    edges = np.append(np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])), numbers.size)
    parts = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        number, size = int(numbers[first]), last - first
        colour = _colour(int(segments[first:last].max())) if number else "transparent"
        parts.append(
            _Part(100 * size / numbers.size, colour, f"{what} {number}: {size} positions" if number else "empty")
        )
    return parts


def _colour(segment: int) -> str:
    return _COLOURS[segment % len(_COLOURS)]
