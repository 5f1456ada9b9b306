"""Packed rows as the public PyTorch implementation batches them: a padded stack of windows per row."""

from typing import NamedTuple

import numpy as np

from lclm_jax.batch import Batch
from lclm_jax.bench.flops import kernel_sizes
from lclm_jax.config import ModelConfig


class Windows(NamedTuple):
    """The windows of one packed row, each padded on the right to the longest."""

    tokens: np.ndarray
    """[windows, longest] int64."""
    positions: np.ndarray
    """[windows, longest] int64: from 0 in each window."""
    lengths: np.ndarray
    """[windows]: tokens of each."""
    weights: np.ndarray
    """[windows, longest] float32: 1 on pooled tokens."""
    slots: np.ndarray
    """[latents]: slot of our batch that each latent, window by window, has."""


def windows_of(batch: Batch, row: int, ratio: int) -> Windows:
    """The windows of packed row ``row``, in array order."""
    found = []
    for encoder_row, segments in enumerate(batch.encoder_segments[row]):
        for segment in np.unique(segments[segments > 0]):
            found.append((encoder_row, np.flatnonzero(segments == segment)))
    longest = max((len(places) for _, places in found), default=1)
    shape = (len(found), longest)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weights, slots = np.zeros(shape, np.float32), list[int]()
    for number, (encoder_row, places) in enumerate(found):
        inside = slice(0, len(places))
        tokens[number, inside] = batch.encoder_tokens[row, encoder_row, places]
        positions[number, inside] = np.arange(len(places))
        weights[number, inside] = batch.pool_weights[row, encoder_row, places]
        pooled = places[weights[number, inside] > 0]
        first = (encoder_row * batch.encoder_tokens.shape[2] + pooled[0]) // ratio
        slots += range(first, first - (-len(pooled) // ratio))
    lengths = np.array([len(places) for _, places in found], np.int64)
    return Windows(tokens, positions, lengths, weights, np.array(slots, np.int64))


def padding_factor(model: ModelConfig, batch: Batch) -> float:
    """Work of the padded batching over that of ours, by the products of positions with weights.

    Encoder positions differ: every window as long as the longest of its row, against shared rows of fixed width. The
    decoder's rows are the same.
    """
    sizes = kernel_sizes(model)
    head = model.decoder.vocab_size * model.decoder.hidden_size
    decoder = batch.decoder_tokens.size * (sizes["decoder"] + head)
    padded = sum(windows_of(batch, row, model.ratio).tokens.size for row in range(len(batch.decoder_tokens)))
    return (padded * sizes["encoder"] + decoder) / (batch.encoder_tokens.size * sizes["encoder"] + decoder)
