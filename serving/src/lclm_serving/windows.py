"""The windows of a span: what the encoder reads at once, and which part of it becomes latents."""

from typing import NamedTuple

import numpy as np

from lclm_serving.config import LclmConfig


class Window(NamedTuple):
    """One window of a span."""

    ids: np.ndarray
    """int64 [tokens]: context to the left, the part that is pooled, context to the right."""
    skip: int
    """Tokens of context to the left."""
    pooled: int
    """Tokens that are pooled."""


def latent_count(tokens: int, ratio: int) -> int:
    """Latents of so many encoder tokens: ceil(tokens / N)."""
    return -(-tokens // ratio)


def windows_of(span: np.ndarray, config: LclmConfig) -> list[Window]:
    """The windows of a span of encoder ids [tokens], in order; the last may be short."""
    width, overlap, size = config.encoder_window_size, config.boundary_overlap, len(span)
    ids = np.asarray(span, np.int64)
    found = []
    for start in range(0, size, width):
        stop = min(start + width, size)
        left = max(start - overlap, 0)
        right = min(stop + overlap, size) if config.encoder_mask_type == "bidirectional" else stop
        found.append(Window(ids[left:right], start - left, stop - start))
    return found
