"""Latents of prompts with bounded memory: the encoder reads at most so many windows at once, however long a prompt.

The windows of all spans are sorted by length, cut into chunks, and laid out one per row; what is kept of a chunk is its
pooled vectors, on the host. The adapter then reads the pooled vectors of whole prompts, as some adapters attend over
all latents of a span.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lclm_jax.batch import Batch
from lclm_jax.config import ModelConfig
from lclm_jax.data.packing.windows import WindowTable, marker_tokens, plan_spans
from lclm_jax.errors import LclmError
from lclm_jax.inference.stored_windows import StoredWindows
from lclm_jax.model.adapter import latents_of
from lclm_jax.model.lclm import embed, encode_pooled
from lclm_jax.parallel import batch_parts, use_mesh
from lclm_jax.text.example import Example, latent_count, placeholder_ranges
from lclm_jax.types import Params

BATCH_WINDOWS = 128
"""Windows that the encoder reads at once, as in the paper."""

SMALLEST_BUCKET = 32
"""Lengths are rounded up to this times a power of two, so that few shapes are ever compiled."""


def bucket(length: int, steps: int = 1) -> int:
    """``length`` rounded up to ``SMALLEST_BUCKET`` times a power of two, or to one of ``steps`` sizes per doubling.

    More steps waste fewer positions and compile more shapes.
    """
    size = SMALLEST_BUCKET
    while size < length:
        size *= 2
    step = max(SMALLEST_BUCKET, size // 2 // steps)
    return max(SMALLEST_BUCKET, -(-length // step) * step)


def rows_for(count: int, mesh: Mesh) -> int:
    """Rows to run for ``count`` real ones: few different numbers, each a multiple of the mesh's row axes."""
    rows = batch_parts(mesh.shape)
    while rows < count:
        rows *= 2
    return rows


def blank_batch(**arrays: np.ndarray | jax.Array) -> Batch:
    """A batch of which only ``arrays`` are filled in."""
    return Batch(*[None] * len(Batch._fields))._replace(**arrays)


class SpanEncoder:
    """Encoder and pooling over any number of windows.

    Args:
        params: parameters of ``model``, placed.
        model: its configuration.
        mesh: devices.
        pad_id: the encoder tokenizer's pad token, the marker of ``eos`` pooling.
        batch_windows: most windows that are in memory at once.
        store: windows that it has are not read, and it gets those that are; None: all are read.
    """

    def __init__(
        self,
        params: Params,
        model: ModelConfig,
        mesh: Mesh,
        pad_id: int,
        batch_windows: int = BATCH_WINDOWS,
        store: StoredWindows | None = None,
    ):
        if batch_windows < 1:
            raise LclmError(f"batch_windows={batch_windows} must be at least 1; the default is {BATCH_WINDOWS}")
        self._params, self._model, self._mesh = params, model, mesh
        self._pad_id, self.batch_windows, self.store = pad_id, batch_windows, store

    def pooled(self, spans: Sequence[np.ndarray], progress: Callable[[int], None] | None = None) -> list[np.ndarray]:
        """Pooled vectors of every span, each ``[latents, E]`` in the compute dtype (``concat``: width N * E).

        A span without tokens has one vector, of zeros. ``progress`` is told how many windows each chunk had.
        """
        model = self._model
        # An empty span is planned like one token and stays zero: it has a latent, and no window to read.
        table = plan_spans([max(1, len(span)) for span in spans], model)
        real = np.array([len(span) > 0 for span in spans], bool)
        order = np.flatnonzero(real[table.span]) if table.span.size else np.zeros(0, np.int64)
        order = order[np.argsort(-table.storage[order], kind="stable")]
        width = (model.latent_size,)
        dtype = jax.numpy.dtype(model.compute_dtype)
        pooled = [np.zeros((latent_count(len(span), model.ratio), *width), dtype) for span in spans]
        if self.store is not None:
            order = self._from_store(self.store, table, order, spans, pooled)
        for first in range(0, order.size, self.batch_windows):
            chunk = order[first : first + self.batch_windows]
            batch, slots = self._layout(table, chunk, spans)
            with use_mesh(self._mesh):
                found_BLE = np.asarray(_pool_windows(self._params, batch, model=model))
            for row, (window, slot) in enumerate(zip(chunk, slots, strict=True)):
                _part(pooled, table, window, model.ratio)[:] = found_BLE[row, slot : slot + table.latents[window]]
            if self.store is not None:
                self.store.put(
                    self._keys(self.store, table, chunk, spans), [_part(pooled, table, w, model.ratio) for w in chunk]
                )
            if progress is not None:
                progress(len(chunk))
        return pooled

    def _keys(
        self, store: StoredWindows, table: WindowTable, windows: np.ndarray, spans: Sequence[np.ndarray]
    ) -> list[str]:
        columns = (table.span, table.left, table.right, table.context, table.stop - table.start)
        rows = zip(*(column[windows].tolist() for column in columns), strict=True)
        return store.keys([(spans[span][left:right], skip, count) for span, left, right, skip, count in rows])

    def _from_store(
        self,
        store: StoredWindows,
        table: WindowTable,
        order: np.ndarray,
        spans: Sequence[np.ndarray],
        pooled: Sequence[np.ndarray],
    ) -> np.ndarray:
        """Fill in what the store has; returns the windows that it has not."""
        missing = np.ones(order.size, bool)
        for first in range(0, order.size, self.batch_windows):
            chunk = order[first : first + self.batch_windows]
            for index, (window, vectors) in enumerate(
                zip(chunk, store.get(self._keys(store, table, chunk, spans)), strict=True), first
            ):
                part = _part(pooled, table, window, self._model.ratio)
                if vectors is not None and vectors.shape == part.shape:
                    part[:] = vectors
                    missing[index] = False
        return order[missing]

    def _layout(self, table: WindowTable, chunk: np.ndarray, spans: Sequence[np.ndarray]) -> tuple[Batch, list[int]]:
        """The windows ``chunk`` as rows of one encoder row each, and the latent slot at which each begins."""
        model, ratio = self._model, self._model.ratio
        shape = (self._rows(len(chunk)), 1, self._width(table, chunk))
        tokens, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        markers = np.zeros((shape[0], shape[2] // ratio), np.int32)
        slots = []
        for row, window in enumerate(chunk):
            left, start, stop, right = (int(c[window]) for c in (table.left, table.start, table.stop, table.right))
            offset = -(start - left) % ratio  # the pooled part starts at a multiple of the ratio
            end = offset + right - left
            length = right - left + int(table.markers[window])
            tokens[row, 0, offset:end] = spans[table.span[window]][left:right]
            if table.markers[window]:
                tokens[row, 0, end : offset + length] = marker_tokens(table.markers[[window]], model, self._pad_id)
            segments[row, 0, offset : offset + length] = 1
            positions[row, 0, offset : offset + length] = np.arange(length)
            pooled_at = offset + start - left
            weights[row, 0, pooled_at : pooled_at + stop - start] = 1
            slots.append(pooled_at // ratio)
            markers[row, slots[-1] : slots[-1] + int(table.markers[window])] = np.arange(end, offset + length)
        arrays: dict[str, np.ndarray] = dict(
            encoder_tokens=tokens, encoder_segments=segments, encoder_positions=positions
        )
        if model.has_markers:
            arrays["marker_index"] = markers
        return blank_batch(**arrays, pool_weights=weights), slots

    def _rows(self, count: int) -> int:
        most = batch_parts(self._mesh.shape)
        return min(rows_for(count, self._mesh), -(-self.batch_windows // most) * most)

    def _width(self, table: WindowTable, chunk: np.ndarray) -> int:
        """Positions of a row: a bucket, but no more than the longest window that the model has."""
        model = self._model
        needed = int((table.storage[chunk] + -table.context[chunk] % model.ratio).max())
        full = plan_spans([model.window + 2 * model.overlap + 1], model)
        most = int((full.storage + model.ratio).max()) + 2 * model.overlap
        step = math.lcm(128, model.ratio)
        width = min(bucket(needed), -(-most // step) * step)
        return -(-max(width, needed) // model.ratio) * model.ratio


def _part(pooled: Sequence[np.ndarray], table: WindowTable, window: int, ratio: int) -> np.ndarray:
    """Where the vectors of a window lie among those of its span."""
    begin = table.start[window] // ratio
    return pooled[table.span[window]][begin : begin + table.latents[window]]


def prompt_batch(
    examples: Sequence[Example], pooled: Sequence[Sequence[np.ndarray]], model: ModelConfig
) -> tuple[Batch, np.ndarray]:
    """The decoder's side of prompts, and their pooled vectors ``[B, L, E]``: what ``spliced`` takes.

    Args:
        examples: one prompt per row.
        pooled: pooled vectors of every span of every prompt.
        model: compression and memory-token ids.

    Raises:
        LclmError: a prompt's placeholders do not match its spans.
    """
    assert model.memory_token_ids is not None, "resolved before a model runs"
    length = bucket(max(len(example.tokens) for example in examples))
    slots = bucket(max(1, max(sum(map(len, spans)) for spans in pooled)))
    rows = len(examples)
    tokens, index = np.zeros((rows, length), np.int32), np.full((rows, length), -1, np.int32)
    segments, positions = np.zeros((rows, slots), np.int32), np.zeros((rows, slots), np.int32)
    values = np.zeros((rows, slots, model.latent_size), jax.numpy.dtype(model.compute_dtype))
    for row, (example, spans) in enumerate(zip(examples, pooled, strict=True)):
        tokens[row, : len(example.tokens)] = example.tokens
        places = [np.arange(*ends) for ends in placeholder_ranges(example.tokens, model.memory_token_ids[2])]
        if [len(place) for place in places] != [len(span) for span in spans]:
            raise LclmError(
                f"a prompt has runs of {[len(place) for place in places]} placeholders and its spans have"
                f" {[len(span) for span in spans]} latents; build it with the model's ratio and tokenizers"
            )
        slot = 0
        for order, (place, span) in enumerate(zip(places, spans, strict=True), 1):
            here = slice(slot, slot + len(span))
            values[row, here], segments[row, here], positions[row, here] = span, order, np.arange(len(span))
            index[row, place] = np.arange(slot, slot + len(span))
            slot += len(span)
    order_BS = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    arrays = dict(decoder_tokens=tokens, decoder_positions=order_BS, latent_index=index)
    return blank_batch(**arrays, latent_segments=segments, latent_positions=positions), values


def spliced(params: Params, model: ModelConfig, batch: Batch, pooled_BLE: Any) -> jax.Array:
    """x_BSD: the decoder's embeddings with the adapter's image of ``pooled_BLE`` in place of placeholders."""
    with jax.named_scope("adapter"):
        spans = (batch.latent_segments, batch.latent_positions)
        latents_BLD = latents_of(params["adapter"], model, pooled_BLE, spans)
    return embed(params, model, batch, latents_BLD)


def split_spans(examples: Sequence[Example], values: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """``values``, one per span of all ``examples`` in turn, as one list per example."""
    at = 0
    for example in examples:
        yield list(values[at : at + len(example.spans)])
        at += len(example.spans)


@functools.partial(jax.jit, static_argnames=("model",))
def _pool_windows(params: Params, batch: Batch, *, model: ModelConfig) -> jax.Array:
    return encode_pooled(params, model, batch)
