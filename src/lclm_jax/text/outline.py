"""An example before a compression ratio is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """An example before a ratio is chosen: the tags of a span stand side by side, without placeholders."""

    tokens: np.ndarray
    """int32 [T]."""
    loss: np.ndarray
    """float32 [T], as in ``Example``."""
    gaps: np.ndarray
    """int32 [spans]: the placeholders of a span go before this index of ``tokens`` (that of its end tag)."""
    spans: tuple[np.ndarray, ...]
    """Encoder ids of each span, int32."""


def make_outline(
    tokens: Sequence[np.ndarray],
    loss: Sequence[np.ndarray],
    gaps: Sequence[int] | np.ndarray,
    spans: Sequence[np.ndarray],
) -> Outline:
    """Join tokens and their loss weights; the first token is never a target."""
    joined = np.concatenate([np.zeros(0, np.int32), *tokens]).astype(np.int32, copy=False)
    weights = np.concatenate([np.zeros(0, np.float32), *loss]).astype(np.float32, copy=False)
    weights[:1] = 0
    return Outline(joined, weights, np.array(gaps, np.int32), tuple(spans))
