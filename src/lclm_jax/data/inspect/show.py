"""Packed rows as text: what each segment reads, what is compressed, and where the loss is."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from rich.markup import escape

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.packing.rows import Row, span_tokens
from lclm_jax.text.memory_tags import MemoryIds
from lclm_jax.text.tokenizer import Tokenizers

_STYLES = {"loss": "green", "no loss": "dim", "span": "yellow"}
_KINDS: dict[int, Literal["loss", "no loss", "tag"]] = {-1: "loss", -2: "no loss", -3: "tag"}
LEGEND = "[green]text with loss[/]  [dim]text without loss[/]  [yellow]compressed text, read as latents[/]"
"""Rich markup that explains the colours."""


def render_rows(
    batch: Batch,
    tokenizers: Tokenizers,
    model: ModelConfig,
    markup: bool = False,
) -> str:
    """Text of the packed rows of a host batch.

    A segment is a heading and its text. ``[[`` and ``]]`` enclose tokens that carry loss; a memory span is shown as
    ``<memory 13 tokens -> 4 latents at 0-3: its text>``.

    Args:
        batch: Host batch of NumPy arrays.
        tokenizers: Decoder's and encoder's.
        model: Ratio and memory token ids (read from the decoder's tokenizer if absent).
        markup: Colours as rich markup (brackets of the text escaped) instead of the ``[[ ]]`` marks.
    """
    lines: list[str] = []
    for number in range(len(batch.decoder_tokens)):
        row = {name: array[number] for name, array in batch._asdict().items() if array is not None}
        lines += _row_lines(row, number, tokenizers, model.ratio, markup)
    return "\n".join(lines)


def _row_lines(row: Row, number: int, tokenizers: Tokenizers, ratio: int, markup: bool) -> Iterator[str]:
    segments = row["decoder_segments"]
    encoder = int(np.count_nonzero(row["pool_weights"]))
    windows = sum(int(one.max(initial=0)) for one in row["encoder_segments"])
    yield (
        f"row {number}: {np.count_nonzero(segments)} of {segments.size} positions,"
        f" {int(segments.max(initial=0))} segments, {encoder} of {row['pool_weights'].size} encoder positions in"
        f" {windows} windows, {np.count_nonzero(row['loss_weights'])} positions with loss"
    )
    spans = span_tokens(row, ratio)
    for segment in range(1, int(segments.max(initial=0)) + 1):
        where = np.flatnonzero(segments == segment)
        yield f"  segment {segment}: positions {where[0]}-{where[-1]}, {where.size} tokens"
        text = "".join(_pieces(row, where, spans, tokenizers, markup))
        yield from (f"    {line}" for line in text.split("\n"))


class Run(NamedTuple):
    """Tokens of one kind that follow each other in a segment."""

    kind: Literal["loss", "no loss", "span", "tag"]
    tokens: np.ndarray
    span: int
    """Span id; 0 if it is none."""
    slots: tuple[int, int]
    """First and last latent slot of a span."""


def runs_of(row: Row, where: np.ndarray, tags: MemoryIds) -> Iterator[Run]:
    """The runs of one segment, whose decoder positions are ``where``."""
    tokens, slots = row["decoder_tokens"][where], row["latent_index"][where]
    # Kind of each token: a latent by its span, a tag, or text with or without loss as a target.
    weights = np.append(0, row["loss_weights"][where[:-1]])
    kinds = np.where(weights > 0, -1, -2)
    kinds[np.isin(tokens, (tags.start, tags.end))] = -3
    kinds = np.where(slots >= 0, row["latent_segments"][np.maximum(slots, 0)], kinds)
    edges = np.flatnonzero(np.append(True, kinds[1:] != kinds[:-1]))
    for first, last in zip(edges.tolist(), np.append(edges[1:], kinds.size).tolist(), strict=True):
        kind = int(kinds[first])
        if kind > 0:
            yield Run("span", tokens[first:last], kind, (int(slots[first:last].min()), int(slots[first:last].max())))
        else:
            yield Run(_KINDS[kind], tokens[first:last], 0, (0, 0))


def _pieces(
    row: Row, where: np.ndarray, spans: dict[int, np.ndarray], tokenizers: Tokenizers, markup: bool
) -> Iterator[str]:
    """The text of one segment, in runs of equal kind."""
    for run in runs_of(row, where, tokenizers.decoder.memory_ids):
        if run.kind == "span":
            text = _escape(tokenizers.encoder.decode(spans[run.span]), markup)
            head = (
                f"<memory {spans[run.span].size} tokens -> {run.tokens.size} latents at {run.slots[0]}-{run.slots[1]}: "
            )
            yield _styled(f"{head}{text}>", "span", markup)
        elif run.kind != "tag":
            text = _escape(tokenizers.decoder.decode(run.tokens), markup)
            plain = f"[[{text}]]" if run.kind == "loss" and not markup else text
            yield _styled(plain, run.kind, markup)


def _escape(text: str, markup: bool) -> str:
    return escape(text) if markup else text


def _styled(text: str, kind: str, markup: bool) -> str:
    return f"[{_STYLES[kind]}]{text}[/]" if markup else text
