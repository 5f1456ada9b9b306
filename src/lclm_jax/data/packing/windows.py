"""Encoder windows of memory spans, and their places in the encoder rows of a packed row.

A span of T tokens is tiled by windows of W tokens. What the encoder reads for one window is
``[left context][pooled part][right context][markers]``; in an encoder row the pooled part starts at a multiple of N (of
the largest N, if spans have their own), so that a latent is always one aligned group of N positions. Short windows
share an encoder row.

Example: T = 75, W = 32, N = 8, O = 8, causal, mean::

    windows   left start stop right     reads      pooled part starts at
       0        0     0   32    32     [ 0, 32)     0
       1       24    32   64    64     [24, 64)     8
       2       56    64   75    75     [56, 75)     8
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lclm_jax.config import ModelConfig, PackConfig
from lclm_jax.errors import LclmError


class Window(NamedTuple):
    """One window: the encoder reads ``span[left:right]`` and ``markers`` markers; ``span[start:stop]`` is pooled."""

    left: int
    start: int
    stop: int
    right: int
    markers: int

    @property
    def pool_start(self) -> int:
        """Tokens of left context, so where the pooled part starts in the window."""
        return self.start - self.left

    @property
    def pool_len(self) -> int:
        """Pooled tokens."""
        return self.stop - self.start

    @property
    def length(self) -> int:
        """Positions of the encoder input, markers included."""
        return self.right - self.left + self.markers


class WindowTable(NamedTuple):
    """The windows of several spans, span by span: int64 columns of one length."""

    span: np.ndarray
    """Index of the span a window belongs to."""
    left: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    right: np.ndarray
    markers: np.ndarray
    latents: np.ndarray
    """Latents of the window: ceil(pooled / N)."""
    context: np.ndarray
    """Tokens of left context."""
    storage: np.ndarray
    """Positions it takes in an encoder row: its length."""


class Run(NamedTuple):
    """``copies`` equal windows in one encoder row, the first at ``offset``, the next ``stride`` further."""

    row: int
    offset: int
    stride: int
    copies: int


def plan_windows(num_tokens: int, model: ModelConfig) -> list[Window]:
    """Windows of a span of ``num_tokens`` encoder tokens, in order; raises ``LclmError`` on an empty span."""
    table = plan_spans([num_tokens], model)
    columns = (table.left, table.start, table.stop, table.right, table.markers)
    return [Window(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def plan_spans(lengths: Sequence[int] | np.ndarray, model: ModelConfig) -> WindowTable:
    """Windows of spans of ``lengths`` encoder tokens, as columns; raises ``LclmError`` on an empty span."""
    sizes = np.asarray(lengths, np.int64)
    if (empty := sizes == 0).any():
        raise LclmError(
            f"memory span {int(np.argmax(empty))} is empty; a span needs at least one token: remove its tags"
        )
    ratio, window, overlap = model.ratio, model.window, model.overlap
    counts = -(-sizes // window)
    span = np.repeat(np.arange(sizes.size), counts)
    order = np.arange(span.size) - np.repeat(np.cumsum(counts) - counts, counts)
    end = sizes[span]
    start = order * window
    stop = np.minimum(start + window, end)
    left = np.maximum(start - overlap, 0)
    right = np.minimum(stop + overlap, end) if model.mask == "bidirectional" else stop
    groups = -(-(stop - start) // ratio)
    markers = groups if model.has_markers else np.zeros_like(groups)
    return WindowTable(span, left, start, stop, right, markers, groups, start - left, right - left + markers)


def marker_tokens(counts: np.ndarray, model: ModelConfig, pad_id: int | None) -> np.ndarray:
    """Encoder tokens of the markers of windows with ``counts`` markers each, window by window.

    They are ``pad_id``, or the numbers behind the vocabulary, which stand for the learned embeddings of a window's
    first, second, ... marker: with a vocabulary of 100 and counts 2, 3 they are ``100 101 100 101 102``.
    """
    if model.has_pad_markers:
        if pad_id is None:
            raise LclmError(f"pooling={model.pooling} marks latents with the encoder's pad token; pass its id")
        return np.full(int(counts.sum()), pad_id)
    return model.encoder.vocab_size + np.concatenate([np.arange(count) for count in counts.tolist()])


def window_types(table: WindowTable) -> list[tuple[int, int, int]]:
    """Windows that take equal places, largest first: (storage, context, count)."""
    types = np.unique(_type_keys(table), return_counts=True)
    return [(-(key >> 32), key & 0xFFFFFFFF, count) for key, count in zip(*(a.tolist() for a in types), strict=True)]


def place_types(types: Sequence[tuple[int, int, int]], alignment: int, pack: PackConfig) -> list[list[Run]] | None:
    """First-fit-decreasing places of windows grouped by ``window_types`` order; None if they do not fit.

    Deterministic; the packer asks it whether a set of examples fits, and row assembly gets the same answer.
    """
    length, cursors = pack.encoder_row_length, [0] * pack.encoder_rows
    last = length - (types[-1][0] if types else 0)
    open_rows: Sequence[int] = range(pack.encoder_rows)
    placed: list[list[Run]] = []
    for storage, context, count in types:
        runs: list[Run] = []
        full = False
        stride = -(-storage // alignment) * alignment
        for row in open_rows:
            cursor = cursors[row]
            offset = cursor + -(cursor + context) % alignment
            free = length - offset - storage
            if free < 0:
                continue
            fitting = min(count, free // stride + 1)
            runs.append(Run(row, offset, stride, fitting))
            cursors[row] = offset + (fitting - 1) * stride + storage
            full |= cursors[row] > last
            count -= fitting
            if not count:
                break
        if count:
            return None
        placed.append(runs)
        if full:
            open_rows = [row for row in open_rows if cursors[row] <= last]
    return placed


def place_windows(table: WindowTable, alignment: int, pack: PackConfig) -> np.ndarray | None:
    """Flattened position ``row * R + offset`` at which each window's input begins, int64; None if they do not fit."""
    offsets = np.empty(table.span.size, np.int64)
    if not offsets.size:
        return offsets
    placed = place_types(window_types(table), alignment, pack)
    if placed is None:
        return None
    places = [
        run.row * pack.encoder_row_length + run.offset + run.stride * i
        for runs in placed
        for run in runs
        for i in range(run.copies)
    ]
    offsets[np.argsort(_type_keys(table), kind="stable")] = places
    return offsets


def _type_keys(table: WindowTable) -> np.ndarray:
    """Sorting by this key puts large windows first and equal ones together."""
    keys: np.ndarray = (-table.storage << 32) + table.context
    return keys
