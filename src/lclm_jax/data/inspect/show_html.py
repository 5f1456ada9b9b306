"""Packed rows as one self-contained HTML page: spans, windows, latents, losses, segment borders and the text."""

from collections.abc import Iterable, Iterator
from html import escape
from typing import NamedTuple

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.data.inspect.show import runs_of
from lclm_jax.data.packing.rows import Row, span_tokens
from lclm_jax.text.tokenizer import Tokenizers

_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#1c1c1c;background:#fff}
h2{margin:2em 0 .3em;font-size:1.1em} .facts{color:#555;margin:0 0 .6em}
.bar{display:flex;height:16px;border:1px solid #888;background:#eee;margin:2px 0;overflow:hidden}
.bar i{display:block;height:100%} .bar i+i{border-left:1px solid #fff}
.seg{border-left:4px solid #456;margin:.8em 0;padding:.2em .8em;background:#fafafa}
.seg h3{font:600 12px system-ui,sans-serif;color:#456;margin:.2em 0}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.55 ui-monospace,monospace}
.loss{background:#d9f2d9}.no{color:#666}.span{background:#ffe9b8;border-radius:3px;padding:0 2px}
.span b{font:600 10px system-ui,sans-serif;color:#8a5a00;background:#ffd780;border-radius:3px;padding:1px 4px}
.key span{margin-right:1.2em} @media print{.seg{break-inside:avoid}}
"""
_KEY = (
    '<p class="key"><span class="loss">text with loss</span><span class="no">text without loss</span>'
    '<span class="span"><b>tokens → latents</b> compressed text</span><span>bars: decoder positions by segment, then'
    " the windows of every encoder row in the colour of the segment that reads them; grey is empty</span></p>"
)
_COLOURS = ("#4c78a8", "#f2a154", "#6aa66a", "#b279a2", "#d1605e", "#72b7b2", "#c9a227", "#9c8573")


class _Part(NamedTuple):
    size: int
    colour: str
    title: str


def render_page(batches: Iterable[tuple[int, int, Batch]], tokenizers: Tokenizers, title: str) -> Iterator[str]:
    """Yield the page piece by piece.

    Args:
        batches: (global number of its first row, its ratio, host batch of NumPy arrays).
        tokenizers: Decoder's and encoder's.
        title: Heading.
    """
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f"{head}<style>{_STYLE}</style><h1>{escape(title)}</h1>{_KEY}\n"
    for first, ratio, batch in batches:
        for i in range(len(batch.decoder_tokens)):
            row = {name: array[i] for name, array in batch._asdict().items() if array is not None}
            yield from _row(row, first + i, tokenizers, ratio)
    yield "</html>\n"


def _row(row: Row, number: int, tokenizers: Tokenizers, ratio: int) -> Iterator[str]:
    segments, pooled = row["decoder_segments"], row["pool_weights"]
    count, used, encoder = int(segments.max(initial=0)), np.count_nonzero(segments), np.count_nonzero(pooled)
    yield (
        f'<h2>row {number}</h2><p class="facts">N = {ratio}: {used:,} of {segments.size:,} decoder positions'
        f" ({used / segments.size:.1%}), {count} segments, {np.count_nonzero(row['latent_index'] >= 0):,} latents of"
        f" {encoder:,} tokens in {pooled.size:,} encoder positions ({encoder / pooled.size:.1%}), loss on"
        f" {np.count_nonzero(row['loss_weights']):,} positions</p>"
    )
    yield _bar(_parts(segments, segments, "segment"), segments.size)
    for line, readers in zip(row["encoder_segments"], _readers(row, ratio), strict=True):
        yield _bar(_parts(line, readers, "window"), line.size)
    spans = span_tokens(row, ratio)
    for segment in range(1, count + 1):
        where = np.flatnonzero(segments == segment)
        border = f"border-color:{_colour(segment)}"
        yield f'<div class="seg" style="{border}"><h3>segment {segment}: positions {where[0]}-{where[-1]}</h3><pre>'
        yield "".join(_pieces(row, where, spans, tokenizers))
        yield "</pre></div>\n"


def _pieces(row: Row, where: np.ndarray, spans: dict[int, np.ndarray], tokenizers: Tokenizers) -> Iterator[str]:
    for run in runs_of(row, where, tokenizers.decoder.memory_ids):
        if run.kind == "span":
            text = escape(tokenizers.encoder.decode(spans[run.span]))
            slots = f"slots {run.slots[0]}-{run.slots[1]}"
            yield f'<span class="span" title="{slots}"><b>{spans[run.span].size} → {run.tokens.size}</b>{text}</span>'
        elif run.kind != "tag":
            text = escape(tokenizers.decoder.decode(run.tokens))
            yield f'<span class="{"loss" if run.kind == "loss" else "no"}">{text}</span>'


def _readers(row: Row, ratio: int) -> np.ndarray:
    """The segment that reads each encoder position's latent, 0 for none; [M, R]."""
    read = row["latent_index"] >= 0
    of_slot = np.zeros(row["encoder_segments"].size // ratio, np.int64)
    of_slot[row["latent_index"][read]] = row["decoder_segments"][read]
    return np.repeat(of_slot, ratio).reshape(row["encoder_segments"].shape)


def _parts(numbers: np.ndarray, segments: np.ndarray, what: str) -> list[_Part]:
    """Stretches of equal number along one bar, coloured by the segment that has or reads them; number 0 is empty."""
    edges = np.append(np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])), numbers.size)
    parts = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        number = int(numbers[first])
        colour = _colour(int(segments[first:last].max())) if number else "transparent"
        parts.append(_Part(last - first, colour, f"{what} {number}: {last - first} positions" if number else "empty"))
    return parts


def _colour(segment: int) -> str:
    return _COLOURS[segment % len(_COLOURS)]


def _bar(parts: list[_Part], size: int) -> str:
    inside = "".join(
        f'<i style="width:{100 * part.size / size:.3f}%;background:{part.colour}" title="{part.title}"></i>'
        for part in parts
    )
    return f'<div class="bar">{inside}</div>'
