"""The windows of a span: what the encoder reads at once, and which part of it becomes latents."""

from typing import NamedTuple

import numpy as np

from lclm_serving.config import LclmConfig
from lclm_serving.errors import LclmError


class Window(NamedTuple):
    """One window of a span."""

    ids: np.ndarray
    """int64 [tokens]: context to the left, the part that is pooled, context to the right."""
    skip: int
    """Tokens of context to the left."""
    pooled: int
    """Tokens that are pooled."""
    ratio: int
    """Tokens of one latent."""

    @property
    def latents(self) -> int:
        """Latents of the window."""
        return latent_count(self.pooled, self.ratio)


def latent_count(tokens: int, ratio: int) -> int:
    """Latents of so many encoder tokens: ceil(tokens / N)."""
    return -(-tokens // ratio)


def checked_ratio(config: LclmConfig, ratio: object) -> int:
    """The ratio of one request; raises ``LclmError`` unless the model has latents of it."""
    own, window = config.compression_ratio, config.encoder_window_size
    if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1 or window % ratio:
        raise LclmError(f"compression_ratio={ratio!r} must be a whole number that divides the window, {window}")
    if ratio != own and config.pooling == "concat":
        raise LclmError(f"compression_ratio={ratio}: pooling=concat has weights for {own} alone; leave it out")
    return ratio


def windows_of(span: np.ndarray, config: LclmConfig, ratio: int | None = None) -> list[Window]:
    """The windows of a span of encoder ids [tokens], in order; the last may be short.

    ``ratio``: tokens of one latent; None: as the configuration says.
    """
    ratio = config.compression_ratio if ratio is None else ratio
    width, overlap, size = config.encoder_window_size, config.boundary_overlap, len(span)
    ids = np.asarray(span, np.int64)
    found = []
    for start in range(0, size, width):
        stop = min(start + width, size)
        left = max(start - overlap, 0)
        right = min(stop + overlap, size) if config.encoder_mask_type == "bidirectional" else stop
        found.append(Window(ids[left:right], start - left, stop - start, ratio))
    return found
