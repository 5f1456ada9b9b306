"""Where the segments of every document fall in one epoch, for all documents at once.

All documents take one step at a time together, so the cost is a few array operations per step, not per segment. Each
draw is a hash of (key, document, step): no draw depends on another document, and an epoch is planned without reading
ids. Places are indices of a document's cuts, known in both tokenizations.
"""

from typing import NamedTuple

import numpy as np

from lclm_jax.config import SpanConfig
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


class Pieces(NamedTuple):
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


def law_lengths(law: str, low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Lengths in [low, high] for uniform draws ``share``: ``fixed`` (high), ``uniform`` or ``log_uniform``; int64."""
    if law == "fixed":
        return np.broadcast_to(high, share.shape).astype(np.int64)
    if law == "uniform":
        return low + (share * (high - low + 1)).astype(np.int64)
    return np.minimum(high, (low * np.exp(share * np.log((high + 1) / low))).astype(np.int64))


def walk_spans(table: CutTable, law: SpanConfig, key: int) -> Pieces:
    """Consecutive spans of every document (one compressed segment per example), so that an epoch covers the corpus.

    The first span of a document has a length of its own (uniform), so that epochs cut at other places under any law.
    The rest of a document shorter than ``law.min_tokens`` is left out, unless it is the whole document.
    """
    documents = np.flatnonzero(table.last > table.first)
    at, last = table.first[documents], table.last[documents]
    low, high = np.array(law.min_tokens), np.array(law.max_tokens)
    steps: list[tuple[np.ndarray, ...]] = []
    while documents.size:
        share = uniform(key, table.record[documents], len(steps))
        lengths = law_lengths(law.law if steps else "uniform", low, high, share)
        stop = _snap(table, at, last, lengths, low, high)
        long_enough = (table.encoder[stop] - table.encoder[at] >= low) | (at == table.first[documents])
        steps.append((documents[long_enough], at[long_enough], stop[long_enough]))
        going = stop < last
        documents, at, last = documents[going], stop[going], last[going]
    document, start, stop = _in_document_order(steps, 3)
    bounds = np.stack([start, stop], axis=1) - table.first[document][:, None]
    sizes = np.full(document.size, 2)
    return Pieces(document, np.ones(document.size, bool), Ragged.from_sizes(sizes, bounds.reshape(-1).astype(np.int32)))


def quote_in_span(
    cuts: np.ndarray, span: tuple[np.ndarray, np.ndarray], tokens: int, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A stretch of about ``tokens`` inside each span that leaves room for an answer: cuts (start, stop), int64.

    ``share`` in [0, 1) says how far into the first half it begins. Where a span is too short, stop is its end.
    """
    start, stop = span
    begin = start + (share * ((stop - start) // 2)).astype(np.int64)
    end = np.searchsorted(cuts, cuts[begin] + tokens)
    return begin, np.clip(end, begin + 1, stop)


def walk_pieces(table: CutTable, law: SpanConfig, limits: Limits, key: int) -> Pieces:
    """Cut every document into examples of alternating raw and compressed segments, each within ``limits``.

    The next example goes on where the last stopped. A segment that would end a document is raw, and a raw segment is
    shortened to the room left; a span is placed only if a raw segment can follow it. ``law.raw_share`` of the examples
    are one raw segment.
    """
    documents = np.flatnonzero(table.last > table.first)
    state = _Walk(
        documents, table.first[documents], np.zeros(documents.size, np.int64), np.zeros(documents.size, np.int64),
        np.zeros(documents.size, bool), np.ones(documents.size, bool),
    )  # fmt: skip
    steps: list[tuple[np.ndarray, ...]] = []
    while state.document.size:
        state, placed = _step(table, law, limits, key, len(steps), state)
        steps.append(placed)
    return _join_pieces(table, _in_document_order(steps, 5))


class _Walk(NamedTuple):
    """Where the walk of each unfinished document stands; columns."""

    document: np.ndarray
    at: np.ndarray
    room: np.ndarray
    encoder_used: np.ndarray
    compressed: np.ndarray
    fresh: np.ndarray


def _step(
    table: CutTable, law: SpanConfig, limits: Limits, key: int, step: int, state: _Walk
) -> tuple[_Walk, tuple[np.ndarray, ...]]:
    """One segment in each document; returns the new state and (document, start, stop, compressed, begins example)."""
    document, at, room, used, compressed, fresh = state
    last = table.last[document]
    share, opening, whole_share = uniform(key, table.record[document][None], step, np.arange(3)[:, None])
    opens = {"raw": 0.0, "compressed": 1.0, "either": 0.5}[law.first]
    compressed = np.where(fresh, opening < opens, compressed)
    whole = fresh & (whole_share < law.raw_share)
    room, used = np.where(fresh, limits.positions, room), np.where(fresh, 0, used)
    low = np.where(compressed, law.min_tokens, law.raw_min_tokens)
    high = np.where(compressed, law.max_tokens, law.raw_max_tokens)
    stop = _snap(table, at, last, law_lengths(law.law, low, high, share), low, high)
    stop = np.where(whole, last, stop)
    span = table.encoder[stop] - table.encoder[at]
    cost = -(-span // limits.ratio) + 2
    storage = span + limits.context * ((span - 1) // limits.window) + limits.markers * (cost - 2)
    storage = -(-storage // limits.ratio) * limits.ratio
    fits = (cost + law.raw_min_tokens <= room) & (used + storage <= limits.encoder_positions)
    # What ends a document, or cannot be compressed even alone, is read raw.
    raw = whole | ~compressed | (stop == last) | (fresh & ~fits)
    raw_stop = np.minimum(stop, np.searchsorted(table.decoder, table.decoder[at] + room, side="right") - 1)
    shortened = raw & (raw_stop < stop)
    stop = np.where(raw, raw_stop, stop)
    placed = np.where(raw, stop > at, fits)
    room = room - np.where(raw, table.decoder[stop] - table.decoder[at], cost)
    used = used + np.where(raw, 0, storage)
    emitted = tuple(column[placed] for column in (document, at, stop, ~raw, fresh))
    # A stretch without cuts that is longer than an example is skipped.
    stop = np.where(placed, stop, np.where(fresh, at + 1, at))
    closes = shortened | ~placed | (room <= 0) | whole
    going = stop < last
    return _Walk(*(column[going] for column in (document, stop, room, used, raw, closes))), emitted


def _snap(
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


def _join_pieces(table: CutTable, segments: list[np.ndarray]) -> Pieces:
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
    return Pieces(document, compressed[first], Ragged.from_sizes(sizes + 1, bounds.astype(np.int32)))
