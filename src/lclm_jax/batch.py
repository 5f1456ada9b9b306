"""The batch: the one structure that data hands to the model.

Every array has a fixed shape per stage, so a stage compiles once. Letters: B packed rows, S decoder positions, M
encoder rows per packed row, R positions per encoder row, N tokens per latent, L = M * R / N latent slots per packed
row.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lclm_jax.config.data import PackConfig
from lclm_jax.config.model import ModelConfig
from lclm_jax.errors import LclmError

Array: TypeAlias = Any
"""A NumPy array on the host, a JAX array on devices; NumPy is all that data needs."""

Shape: TypeAlias = tuple[tuple[int, ...], type[np.generic]]
"""(shape, NumPy dtype)."""


class Batch(NamedTuple):
    """Packed rows, as NumPy arrays on the host or JAX arrays on devices.

    ``marker_index`` is None unless the pooling has markers (``eos``), ``latent_ratios`` unless spans have ratios of
    their own (``model.span_ratios``), ``objectives`` unless the batch is trained on, and what follows it unless it is
    distilled.
    """

    decoder_tokens: Array
    """[B, S] int32: token ids; the placeholder's id where a latent goes."""
    decoder_segments: Array
    """[B, S] int32: 0 is padding, 1.. are packed examples; attention stays inside a segment."""
    decoder_positions: Array
    """[B, S] int32: RoPE positions, from 0 in each segment."""
    targets: Array
    """[B, S] int32: the token that follows; 0 where there is none in the segment."""
    loss_weights: Array
    """[B, S] float32: weight of the target; 0 if it is a tag, placeholder, prompt, padding or another segment's."""
    latent_index: Array
    """[B, S] int32: -1 is text, else the latent slot in [0, L)."""
    encoder_tokens: Array
    """[B, M, R] int32: windows, each ``[left context][pooled][right context][markers]``; pooled starts at k * N."""
    encoder_segments: Array
    """[B, M, R] int32: 0 is padding, 1.. are the windows of an encoder row; attention stays inside a window."""
    encoder_positions: Array
    """[B, M, R] int32: RoPE positions, from 0 in each window."""
    pool_weights: Array
    """[B, M, R] float32: 1 on pooled real tokens; slot g pools flattened positions [g * N, (g + 1) * N)."""
    latent_segments: Array
    """[B, L] int32: 0 is a gap, 1.. are the spans of a packed row."""
    latent_positions: Array
    """[B, L] int32: order of the latent in its span, across windows."""
    marker_index: Array = None
    """[B, L] int32: flattened position of each slot's marker in [0, M * R); 0 in gaps."""
    latent_ratios: Array = None
    """[B, L] int32: N of each latent where spans have ratios of their own; 0 in gaps. Slots are then groups of the
    smallest N, and a latent of k such groups lies in the slot of the first; the k - 1 that follow are gaps."""
    objectives: Array = None
    """[B, S] int8: objective of the position's example, its place in ``config.OBJECTIVES``; -1 is padding. Losses are
    told apart by it and nothing else."""
    twin_tokens: Array = None
    """[B, S'] int32: the same examples with raw text in the place of latents, which a teacher reads (distillation)."""
    twin_segments: Array = None
    """[B, S'] int32."""
    twin_positions: Array = None
    """[B, S'] int32."""
    twin_index: Array = None
    """[B, S] int32: position of the twin that predicts the same token; -1: there is none."""
    teacher_ids: Array = None
    """[B, S, K] int32: tokens that a stored teacher finds likeliest (distillation)."""
    teacher_logits: Array = None
    """[B, S, K] float32: its logits of these; all 0 where it gives none."""


def check_batch_rows(stage: str, rows: int, microbatches: int, parts: int) -> None:
    """Check that ``rows`` divide over microbatches and over the ``parts`` that a mesh makes of a batch.

    Raises:
        LclmError: they do not; the message says what would.
    """
    if rows % microbatches or rows // microbatches % parts:
        fit = [count for count in range(1, rows // microbatches + 1) if rows // microbatches % count == 0]
        near = [*[count for count in fit if count < parts][-1:], *[count for count in fit if count > parts][:1]]
        devices = "" if rows % microbatches else f", or take devices for {' or '.join(map(str, near))} parts"
        raise LclmError(
            f"stages.{stage}: batch_rows={rows} / microbatches={microbatches} = {rows / microbatches:g} rows, which is"
            f" not a multiple of the {parts} parts that the mesh makes of a batch (mesh.replica * mesh.fsdp); make"
            f" stages.{stage}.batch_rows a multiple of {parts * microbatches}{devices}"
        )


TEACHER_ARRAYS = Batch._fields[Batch._fields.index("twin_tokens") :]
"""What only a batch that is distilled has."""


def teacher_shapes(rows: int, length: int, twin_length: int | None, top_k: int | None) -> dict[str, Shape]:
    """Name -> (shape, NumPy dtype) of the arrays that distillation adds to a batch; none without it.

    Args:
        rows: B.
        length: S.
        twin_length: S', positions of a row of raw text; None: there are no such rows.
        top_k: K of stored logits; None: there are none.
    """
    shapes: dict[str, Shape] = {}
    if twin_length is not None:
        shapes |= {f"twin_{name}": ((rows, twin_length), np.int32) for name in ("tokens", "segments", "positions")}
        shapes |= {"twin_index": ((rows, length), np.int32)}
    if top_k is not None:
        stored = (rows, length, top_k)
        shapes |= {"teacher_ids": (stored, np.int32), "teacher_logits": (stored, np.float32)}
    return shapes


def batch_shapes(model: ModelConfig, pack: PackConfig, rows: int) -> dict[str, Shape]:
    """Name -> (shape, NumPy dtype) of every array of a batch of ``rows`` packed rows."""
    decoder = (rows, pack.row_length)
    encoder = (rows, pack.encoder_rows, pack.encoder_row_length)
    latents = (rows, pack.encoder_rows * pack.encoder_row_length // model.ratio)
    shapes: dict[str, Shape] = {
        "decoder_tokens": (decoder, np.int32),
        "decoder_segments": (decoder, np.int32),
        "decoder_positions": (decoder, np.int32),
        "targets": (decoder, np.int32),
        "loss_weights": (decoder, np.float32),
        "latent_index": (decoder, np.int32),
        "encoder_tokens": (encoder, np.int32),
        "encoder_segments": (encoder, np.int32),
        "encoder_positions": (encoder, np.int32),
        "pool_weights": (encoder, np.float32),
        "latent_segments": (latents, np.int32),
        "latent_positions": (latents, np.int32),
    }
    if model.has_markers:
        shapes["marker_index"] = (latents, np.int32)
    if model.span_ratios:
        shapes["latent_ratios"] = (latents, np.int32)
    return shapes
