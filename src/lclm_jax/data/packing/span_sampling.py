"""Where the segments of every document fall in one epoch, for all documents at once.

All documents take one step at a time together, so the cost is a few array operations per step, not per segment. Each
draw is a hash of (key, document, step): no draw depends on another document, and an epoch is planned without reading
ids. Places are indices of a document's cuts, known in both tokenizations.
"""

from typing import NamedTuple

import numpy as np

from lclm_jax.config import ModelConfig, SpanConfig
from lclm_jax.data.packing.counter_rng import uniform
from lclm_jax.data.store.columns import Ragged


class CutTable(NamedTuple):
    """Cuts of some documents of a collection, end to end; int64 columns.

    Token positions count through the table with one unused position between documents, so they ascend strictly.
    """

    decoder: np.ndarray
    """[cuts]: decoder tokens before the cut."""
    encoder: np.ndarray
    """[cuts]: encoder tokens before the cut (the decoder's where the tokenizers are the same)."""
    first: np.ndarray
    """[documents]: index of the document's first cut."""
    last: np.ndarray
    """[documents]: index of its last cut."""
    record: np.ndarray
    """[documents]: number of the record in its collection, from which its random draws are made."""
    preferred: np.ndarray | None = None
    """Indices of the cuts where segments should end, ascending; None: all are alike."""


class Limits(NamedTuple):
    """What one continual pre-training example may take."""

    positions: int
    """Decoder positions, tags and placeholders included."""
    ratio: int
    """N."""
    window: int
    """W."""
    context: int
    """Encoder positions read twice where two windows of a span meet (overlap)."""
    markers: bool
    """Whether each latent has a marker (eos pooling, for one)."""
    encoder_positions: int
    """M * R."""


class SampledExamples(NamedTuple):
    """Examples of one epoch in document order."""

    document: np.ndarray
    """[examples] int64: which document of the table."""
    opens_compressed: np.ndarray
    """[examples] bool: whether the first segment is compressed; segments alternate."""
    bounds: Ragged
    """int32: cut indices inside the document; segment i of an example runs from bound i to bound i + 1."""


def make_cut_table(records: np.ndarray, decoder_cuts: Ragged, encoder_cuts: Ragged) -> CutTable:
    """Cuts of the documents ``records``; each list holds one document's, from 0 to its number of tokens."""
    last = decoder_cuts.offsets[1:] - 1
    joined = []
    for cuts in (decoder_cuts, encoder_cuts):
        sizes = cuts.values[last].astype(np.int64) + 1
        joined.append(cuts.values + np.repeat(np.cumsum(sizes) - sizes, decoder_cuts.sizes))
    return CutTable(joined[0], joined[1], decoder_cuts.offsets[:-1], last, records)


def span_ratios(
    model: ModelConfig, spans: SpanConfig, key: int, record: np.ndarray | int, *place: np.ndarray | int
) -> int | np.ndarray:
    """N of spans: the model's; or, where each has its own, int64 [spans]: the source's, or drawn, all equally often.

    Args:
        model: with its ``span_ratios``, if it has any.
        spans: of the source.
        key: of the draws.
        record: the span's record.
        *place: numbers that tell the spans of a record apart.
    """
    if not model.span_ratios:
        return model.ratio
    which = (uniform(key, record, *place) * len(model.span_ratios)).astype(np.int64)
    drawn = np.array(model.span_ratios, np.int64)[which]
    return drawn if spans.ratio is None else np.full_like(drawn, spans.ratio)


def sample_lengths(distribution: str, low: np.ndarray, high: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Lengths in [low, high], int64: ``fixed`` (high), ``uniform`` or ``log_uniform`` in the uniform ``fraction``."""
    if distribution == "fixed":
        return np.broadcast_to(high, fraction.shape).astype(np.int64)
    if distribution == "uniform":
        lengths: np.ndarray = low + (fraction * (high - low + 1)).astype(np.int64)
    else:
        lengths = np.minimum(high, (low * np.exp(fraction * np.log((high + 1) / low))).astype(np.int64))
    return lengths


def sample_spans(table: CutTable, spans: SpanConfig, key: int) -> SampledExamples:
    """Consecutive spans of every document (one compressed segment per example), so that an epoch covers the corpus.

    The length of a document's first span is uniform, so that epochs cut at other places under any length distribution.
    The rest of a document shorter than ``spans.min_tokens`` is left out, unless it is the whole document.
    """
    documents = np.flatnonzero(table.last > table.first)
    at, last = table.first[documents], table.last[documents]
    low, high = np.array(spans.min_tokens), np.array(spans.max_tokens)
    steps: list[tuple[np.ndarray, ...]] = []
    while documents.size:
        fraction = uniform(key, table.record[documents], len(steps))
        lengths = sample_lengths(spans.law if steps else "uniform", low, high, fraction)
        stop = _nearest_cut(table, at, last, lengths, low, high)
        long_enough = (table.encoder[stop] - table.encoder[at] >= low) | (at == table.first[documents])
        steps.append((documents[long_enough], at[long_enough], stop[long_enough]))
        going = stop < last
        documents, at, last = documents[going], stop[going], last[going]
    document, start, stop = _in_document_order(steps, 3)
    bounds = np.stack([start, stop], axis=1) - table.first[document][:, None]
    sizes = np.full(document.size, 2)
    return SampledExamples(
        document, np.ones(document.size, bool), Ragged.from_sizes(sizes, bounds.reshape(-1).astype(np.int32))
    )


def quote_in_span(
    cuts: np.ndarray, span: tuple[np.ndarray, np.ndarray], tokens: int, fraction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """About ``tokens`` tokens inside each span that leaves tokens for an answer: cuts (start, stop), int64.

    ``fraction`` in [0, 1) says how far into the first half it begins. Where a span is too short, stop is its end.
    """
    start, stop = span
    begin = start + (fraction * ((stop - start) // 2)).astype(np.int64)
    end = np.searchsorted(cuts, cuts[begin] + tokens)
    return begin, np.clip(end, begin + 1, stop)


def sample_segments(table: CutTable, spans: SpanConfig, limits: Limits, key: int) -> SampledExamples:
    """Cut every document into examples of alternating raw and compressed segments, each within ``limits``.

    The next example begins where the last one stopped. A segment that would end a document is raw, and a raw segment is
    shortened to the positions that are left; a span is placed only if a raw segment can follow it. A fraction
    ``spans.raw_share`` of the examples is one raw segment.
    """
    documents = np.flatnonzero(table.last > table.first)
    state = _SamplingState(
        documents, table.first[documents], np.zeros(documents.size, np.int64), np.zeros(documents.size, np.int64),
        np.zeros(documents.size, bool), np.ones(documents.size, bool),
    )  # fmt: skip
    steps: list[tuple[np.ndarray, ...]] = []
    while state.document.size:
        state, placed = _sample_segment(table, spans, limits, key, len(steps), state)
        steps.append(placed)
    return _join_segments(table, _in_document_order(steps, 5))


class _SamplingState(NamedTuple):
    """How far sampling has come in each unfinished document; columns."""

    document: np.ndarray
    at: np.ndarray
    free: np.ndarray
    encoder_used: np.ndarray
    compressed: np.ndarray
    fresh: np.ndarray


def _sample_segment(
    table: CutTable, spans: SpanConfig, limits: Limits, key: int, step: int, state: _SamplingState
) -> tuple[_SamplingState, tuple[np.ndarray, ...]]:
    """One segment in each document; returns the new state and (document, start, stop, compressed, begins example)."""
    document, at, free, used, compressed, fresh = state
    last = table.last[document]
    fraction, opening, whole_fraction = uniform(key, table.record[document][None], step, np.arange(3)[:, None])
    opens = {"raw": 0.0, "compressed": 1.0, "either": 0.5}[spans.first]
    compressed = np.where(fresh, opening < opens, compressed)
    whole = fresh & (whole_fraction < spans.raw_share)
    free, used = np.where(fresh, limits.positions, free), np.where(fresh, 0, used)
    low = np.where(compressed, spans.min_tokens, spans.raw_min_tokens)
    high = np.where(compressed, spans.max_tokens, spans.raw_max_tokens)
    stop = _nearest_cut(table, at, last, sample_lengths(spans.law, low, high, fraction), low, high)
    stop = np.where(whole, last, stop)
    span = table.encoder[stop] - table.encoder[at]
    cost = -(-span // limits.ratio) + 2
    storage = span + limits.context * ((span - 1) // limits.window) + limits.markers * (cost - 2)
    storage = -(-storage // limits.ratio) * limits.ratio
    fits = (cost + spans.raw_min_tokens <= free) & (used + storage <= limits.encoder_positions)
    # What ends a document, or cannot be compressed even alone, is read raw.
    raw = whole | ~compressed | (stop == last) | (fresh & ~fits)
    raw_stop = np.minimum(stop, np.searchsorted(table.decoder, table.decoder[at] + free, side="right") - 1)
    shortened = raw & (raw_stop < stop)
    stop = np.where(raw, raw_stop, stop)
    placed = np.where(raw, stop > at, fits)
    free = free - np.where(raw, table.decoder[stop] - table.decoder[at], cost)
    used = used + np.where(raw, 0, storage)
    emitted = tuple(column[placed] for column in (document, at, stop, ~raw, fresh))
    # Text without cuts that is longer than an example is skipped.
    stop = np.where(placed, stop, np.where(fresh, at + 1, at))
    closes = shortened | ~placed | (free <= 0) | whole
    going = stop < last
    return _SamplingState(*(column[going] for column in (document, stop, free, used, raw, closes))), emitted


def _nearest_cut(
    table: CutTable, at: np.ndarray, last: np.ndarray, length: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The cut after ``at`` nearest to ``length`` tokens on; cuts ``low`` to ``high`` tokens on come first.

    Among those, preferred cuts come first.
    """
    cuts = table.encoder
    origin = cuts[at]
    first_in = np.maximum(at + 1, np.searchsorted(cuts, origin + low))
    last_in = np.minimum(last, np.searchsorted(cuts, origin + high, side="right") - 1)
    none = first_in > last_in
    first_in, last_in = np.where(none, at + 1, first_in), np.where(none, last, last_in)
    nearest = _nearest(cuts, origin + length, first_in, last_in)
    if table.preferred is None or not table.preferred.size:
        return nearest
    first = np.searchsorted(table.preferred, first_in)
    stop = np.searchsorted(table.preferred, last_in, side="right")
    found = ~none & (first < stop)
    first, stop = np.where(found, first, 0), np.where(found, stop, 1)
    return np.where(found, table.preferred[_nearest(cuts[table.preferred], origin + length, first, stop - 1)], nearest)


def _nearest(places: np.ndarray, wanted: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Index in [first, last] of the one of the ascending ``places`` that is nearest to ``wanted``."""
    above = np.clip(np.searchsorted(places, wanted), first, last)
    below = np.maximum(above - 1, first)
    return np.where(wanted - places[below] < places[above] - wanted, below, above)


def _in_document_order(steps: list[tuple[np.ndarray, ...]], columns: int) -> list[np.ndarray]:
    if not steps:
        return [np.zeros(0, np.int64) for _ in range(columns)]
    joined = [np.concatenate(column) for column in zip(*steps, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return [column[order] for column in joined]


def _join_segments(table: CutTable, segments: list[np.ndarray]) -> SampledExamples:
    """Segments to examples: a closing span goes, raw neighbours merge, and so do examples without a target."""
    document, start, stop, compressed, begins = segments
    compressed, begins = compressed.astype(bool), begins.astype(bool)
    inside = ~(compressed & np.append(begins[1:], True)[: begins.size])
    document, start, stop, compressed, begins = (
        column[inside] for column in (document, start, stop, compressed, begins)
    )
    heads = begins | compressed | np.append(True, compressed[:-1])[: begins.size]
    stop = stop[np.append(heads[1:], True)[: begins.size]]
    document, start, compressed, begins = (column[heads] for column in (document, start, compressed, begins))
    first = np.flatnonzero(begins)
    sizes = np.diff(np.append(first, begins.size))
    # A raw token that nothing precedes is no target.
    has_target = (sizes > 1) | (table.decoder[stop[first]] - table.decoder[start[first]] > 1)
    chosen = np.repeat(has_target, sizes)
    first, sizes = first[has_target], sizes[has_target]
    document = document[first]
    ends = np.cumsum(sizes)
    bounds = np.insert(start[chosen], ends, stop[chosen][ends - 1])
    bounds -= np.repeat(table.first[document], sizes + 1)
    return SampledExamples(document, compressed[first], Ragged.from_sizes(sizes + 1, bounds.astype(np.int32)))
