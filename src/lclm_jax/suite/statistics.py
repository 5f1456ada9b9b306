"""Means, paired differences and shares with bootstrap intervals over documents.

Samples about one document are alike, so whole documents are drawn, with replacement; what is compared is computed on
the same draws. A statistic here is a ratio of two sums over samples, so a draw is a weighted sum over documents.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lclm_jax.types import JsonObject

DRAWS = 10_000
CONFIDENCE = 0.95
_SEED = 20_240_613
"""Of the draws: the same results give the same intervals."""


class Interval(NamedTuple):
    """An estimate and its interval."""

    value: float
    low: float
    """NaN with fewer than two documents, and where a draw has no value."""
    high: float
    samples: int
    documents: int

    def as_dict(self) -> JsonObject:
        """For JSON: what is not known is null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        known: JsonObject = {name: number if np.isfinite(number) else None for name, number in numbers.items()}
        return known | {"samples": self.samples, "documents": self.documents}


def ratio_interval(top: Sequence[float], bottom: Sequence[float], clusters: Sequence[str]) -> Interval:
    """Sum of ``top`` over sum of ``bottom``, with its interval over ``clusters``.

    Args:
        top: one number for each sample, at least one.
        bottom: likewise; all 1 for a mean.
        clusters: the document of each sample.
    """
    names, group = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.stack([np.bincount(group, np.asarray(one, np.float64), len(names)) for one in (top, bottom)])
    total = sums.sum(axis=1)
    value = float(total[0] / total[1]) if total[1] else float("nan")
    if len(names) < 2:
        return Interval(value, float("nan"), float("nan"), len(top), len(names))
    draws = np.random.default_rng(_SEED).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    tops, bottoms = sums @ draws.T
    # Where a draw has nothing to divide by (no gain from context), the interval has no end.
    drawn = np.divide(tops, bottoms, out=np.full(DRAWS, np.nan), where=bottoms != 0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high), len(top), len(names))


def mean_interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """Mean of ``values`` over samples."""
    return ratio_interval(values, np.ones(len(values)).tolist(), clusters)


def verdict(difference: Interval, higher_is_better: bool = True) -> str:
    """``better``, ``worse``, or ``tie`` if the interval holds 0 or is not known."""
    if not np.isfinite(difference.low) or difference.low <= 0 <= difference.high:
        return "tie"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def recovered_share(
    none: Mapping[str, float], system: Mapping[str, float], raw: Mapping[str, float], clusters: Mapping[str, str]
) -> Interval | None:
    """Gain with the system's context over the gain with raw context, both against no context.

    Args:
        none: sample -> nats of the gold answer without context.
        system: with the context as the system reads it.
        raw: with the raw context.
        clusters: sample -> document.

    Returns:
        The share over the samples that all three have; None if there is none.
    """
    shared = [name for name in system if name in none and name in raw]
    if not shared:
        return None
    gains = [none[name] - system[name] for name in shared]
    whole = [none[name] - raw[name] for name in shared]
    return ratio_interval(gains, whole, [clusters[name] for name in shared])
