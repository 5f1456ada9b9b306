"""Examples to the arrays of a packed row, and its spans back.

The layout is the batch contract of ``lclm_jax.batch``. All work is vectorised over the tokens, spans and windows of a
row; nothing here depends on files, clocks or random numbers.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lclm_jax.batch import Batch, batch_shapes
from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.data.packing.windows import WindowTable, marker_tokens, place_windows, plan_spans
from lclm_jax.errors import LclmError
from lclm_jax.text.example import Example

Row = dict[str, np.ndarray]


class RowError(LclmError):
    """Examples that cannot be laid out as a row; the message names the number, the limit and the fix."""


def pack_for(
    examples_by_row: Sequence[Sequence[Example]], model: ModelConfig, rounded: Callable[[int], int] = int
) -> PackConfig:
    """A row layout into which every row of ``examples_by_row`` fits; ``rounded`` raises its lengths to common sizes."""
    length = rounded(max(sum(len(example.tokens) for example in row) for row in examples_by_row))
    spans = [[max(1, len(span)) for example in row for span in example.spans] for row in examples_by_row]
    tables = [plan_spans(lengths, model) for lengths in spans]
    # A pooled part starts at a multiple of the ratio, so a window may be pushed to the right of its row's start.
    align = model.alignment
    longest = max((int((t.storage + -t.context % align).max()) for t in tables if t.storage.size), default=1)
    width = -(-rounded(longest) // align) * align
    pack = PackConfig(row_length=length, encoder_rows=1, encoder_row_length=width)
    while any(place_windows(table, align, pack) is None for table in tables):
        pack = pack.model_copy(update={"encoder_rows": pack.encoder_rows * 2})
    return pack


def assemble_row(
    examples: Sequence[Example],
    model: ModelConfig,
    pack: PackConfig,
    encoder_pad_id: int | None = None,
) -> Row:
    """Lay out ``examples`` as the segments 1.. of one packed row.

    Args:
        examples: Segments in order; may be empty (a row of padding).
        model: Ratio, window, overlap, pooling, mask and memory token ids.
        pack: S, M and R.
        encoder_pad_id: Pad token of the encoder's tokenizer: the marker of ``eos`` pooling, not used otherwise.

    Returns:
        Array name -> array, shaped as in ``batch_shapes`` without the leading B.

    Raises:
        RowError: If a budget is exceeded, or an example's placeholders do not match its spans.
    """
    row = {name: np.zeros(shape[1:], dtype) for name, (shape, dtype) in batch_shapes(model, pack, 1).items()}
    row["latent_index"].fill(-1)
    spans = [span for example in examples for span in example.spans]
    table = plan_spans([len(span) for span in spans], model)
    _fill_decoder(row, examples, pack)
    ratios = [_span_ratios(example, model) for example in examples]
    slots = _fill_encoder(row, spans, table, model, pack, encoder_pad_id)
    if model.span_ratios:
        slots = _merge_slots(row, slots, np.concatenate([*ratios, np.empty(0, np.int64)]), table, model)
    _link(row, examples, ratios, slots, model)
    return row


def assemble_batch(
    examples_by_row: Sequence[Sequence[Example]],
    model: ModelConfig,
    pack: PackConfig,
    encoder_pad_id: int | None = None,
) -> Batch:
    """Stack the rows of ``examples_by_row`` into a host ``Batch`` of NumPy arrays; see ``assemble_row``."""
    rows = [assemble_row(examples, model, pack, encoder_pad_id) for examples in examples_by_row]
    return stack_rows(rows)


def stack_rows(rows: Sequence[Row]) -> Batch:
    """Rows of equal layout to one ``Batch`` of NumPy arrays."""
    return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


def _fill_decoder(row: Row, examples: Sequence[Example], pack: PackConfig) -> None:
    lengths = np.array([len(example.tokens) for example in examples], np.int64)
    total = int(lengths.sum())
    if total > pack.row_length:
        raise RowError(
            f"{len(examples)} examples take {total} decoder positions, the row has row_length={pack.row_length};"
            " pack fewer or raise pack.row_length"
        )
    if not lengths.all():
        raise RowError(f"example {int(np.argmin(lengths))} of the row has no tokens; drop it before packing")
    if not total:
        return
    starts = np.cumsum(lengths) - lengths
    tokens = np.concatenate([example.tokens for example in examples])
    loss = np.concatenate([example.loss for example in examples])
    row["decoder_tokens"][:total] = tokens
    row["decoder_segments"][:total] = np.repeat(np.arange(1, lengths.size + 1), lengths)
    row["decoder_positions"][:total] = np.arange(total) - np.repeat(starts, lengths)
    # Position t predicts token t + 1; the last token of a segment predicts nothing.
    tokens[starts] = 0
    loss[starts] = 0
    row["targets"][: total - 1] = tokens[1:]
    row["loss_weights"][: total - 1] = loss[1:]


def _fill_encoder(
    row: Row,
    spans: Sequence[np.ndarray],
    table: WindowTable,
    model: ModelConfig,
    pack: PackConfig,
    encoder_pad_id: int | None,
) -> np.ndarray:
    """Write the windows; returns the latent slots of all spans in text order, int64."""
    if not spans:
        return np.empty(0, np.int64)
    offsets = place_windows(table, model.alignment, pack)
    if offsets is None:
        raise RowError(
            f"{int(table.storage.sum())} encoder positions of {len(spans)} spans do not fit encoder_rows="
            f"{pack.encoder_rows} of encoder_row_length={pack.encoder_row_length}; pack fewer or raise them"
        )
    flat = {name: row[f"encoder_{name}"].reshape(-1) for name in ("tokens", "segments", "positions")}
    sizes = np.array([len(span) for span in spans], np.int64)
    base = (np.cumsum(sizes) - sizes)[table.span]
    read = table.right - table.left
    flat["tokens"][_ranges(offsets, read)] = np.concatenate(spans)[_ranges(base + table.left, read)]
    length = read + table.markers
    everything = _ranges(offsets, length)
    flat["segments"][everything] = np.repeat(_order_in_row(offsets // pack.encoder_row_length), length)
    flat["positions"][everything] = _ranges(np.zeros_like(length), length)
    pooled = offsets + table.context
    row["pool_weights"].reshape(-1)[_ranges(pooled, table.stop - table.start)] = 1
    slots = _ranges(pooled // model.ratio, table.latents)
    row["latent_segments"][slots] = np.repeat(table.span + 1, table.latents)
    row["latent_positions"][slots] = _ranges(table.start // model.ratio, table.latents)
    if model.has_markers:
        marks = _ranges(offsets + read, table.markers)
        flat["tokens"][marks] = marker_tokens(table.markers, model, encoder_pad_id)
        row["marker_index"][slots] = marks
    return slots


def _span_ratios(example: Example, model: ModelConfig) -> np.ndarray:
    """N of each span of an example, int64; raises ``RowError`` for one that the model does not have."""
    if example.ratios is None:
        return np.full(len(example.spans), model.ratio, np.int64)
    known = model.span_ratios or (model.ratio,)
    if unknown := sorted({*example.ratios.tolist()} - {*known}):
        raise RowError(
            f"ratio={unknown[0]} of a span is not one of {list(known)}; add it to model.span_ratios, or give the span"
            " one of these"
        )
    return example.ratios.astype(np.int64)


def _merge_slots(row: Row, slots: np.ndarray, ratios: np.ndarray, table: WindowTable, model: ModelConfig) -> np.ndarray:
    """Make gaps of the slots that coarser spans do not need; returns the others, int64.

    Of a span whose N is k times the smallest, a latent stands in the first of k slots: a window's slots begin at a
    multiple of the largest k.
    """
    fine = row["latent_positions"][slots].astype(np.int64)
    own = np.repeat(ratios[table.span], table.latents)
    merged = own // model.ratio
    kept = fine % merged == 0
    row["latent_segments"][slots[~kept]] = row["latent_positions"][slots[~kept]] = 0
    slots, fine, own, merged = (column[kept] for column in (slots, fine, own, merged))
    row["latent_positions"][slots], row["latent_ratios"][slots] = fine // merged, own
    return slots


def _link(
    row: Row, examples: Sequence[Example], ratios: Sequence[np.ndarray], slots: np.ndarray, model: ModelConfig
) -> None:
    """Point the placeholders at their latent slots, checking that every example has as many as its spans need."""
    if model.memory_token_ids is None:
        if slots.size:
            raise RowError("model.memory_token_ids is not set, so placeholders are unknown; resolve it first")
        return
    placeholder = model.memory_token_ids[2]
    where = np.flatnonzero((row["decoder_tokens"] == placeholder) & (row["decoder_segments"] > 0))
    found = np.bincount(row["decoder_segments"][where], minlength=len(examples) + 1)[1:]
    needed = [
        sum(-(-len(span) // ratio) for span, ratio in zip(example.spans, own.tolist(), strict=True))
        for example, own in zip(examples, ratios, strict=True)
    ]
    if found.tolist() != needed:
        worst = int(np.argmax(found != np.array(needed)))
        raise RowError(
            f"example {worst} of the row has {found[worst]} placeholders and its spans need {needed[worst]} at"
            f" ratio={model.ratio}; build it with the model's ratio and tokenizers"
        )
    row["latent_index"][where] = slots


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenated ``arange(start, start + length)``: ``_ranges([5, 0], [2, 3]) = [5, 6, 0, 1, 2]``."""
    ends = np.cumsum(lengths)
    places: np.ndarray = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(starts - ends + lengths, lengths)
    return places


def _order_in_row(rows: np.ndarray) -> np.ndarray:
    """Number the windows of each encoder row from 1, in the order given."""
    by_row = np.argsort(rows, kind="stable")
    grouped = rows[by_row]
    order = np.empty_like(rows)
    order[by_row] = np.arange(rows.size) - np.searchsorted(grouped, grouped) + 1
    return order


def slots_of_latents(row: Row, latents: np.ndarray, ratio: int) -> tuple[np.ndarray, np.ndarray]:
    """(the latent's slot, a slot of its tokens) for every slot whose tokens the latents in ``latents`` are means of.

    They differ where spans have ratios of their own: a latent of k groups of ``ratio`` stands in the first of k slots.
    """
    if row.get("latent_ratios") is None:
        return latents, latents
    groups = row["latent_ratios"][latents] // ratio
    return np.repeat(latents, groups), _ranges(latents, groups)


def span_tokens(row: Row, ratio: int) -> dict[int, np.ndarray]:
    """Span id -> encoder tokens, read back from the pooled parts."""
    tokens, weights = row["encoder_tokens"].reshape(-1, ratio), row["pool_weights"].reshape(-1, ratio) > 0
    segments, positions = row["latent_segments"], row["latent_positions"]
    slots = np.flatnonzero(segments)
    slots = slots[np.lexsort((positions[slots], segments[slots]))]
    latents, slots = slots_of_latents(row, slots, ratio)
    owners = segments[latents]
    counts = weights[slots].sum(axis=1)
    ids, first = np.unique(owners, return_index=True)
    bounds = np.append(np.append(0, np.cumsum(counts))[first], counts.sum())
    flat = tokens[slots][weights[slots]]
    return {int(span): flat[bounds[i] : bounds[i + 1]] for i, span in enumerate(ids)}
