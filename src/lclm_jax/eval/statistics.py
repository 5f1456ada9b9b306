"""Estimates with standard errors.

Every measurement here is a ratio of two sums over tokens: nats per token, right tokens per token, share of one gain in
another. Tokens of one file are alike, so the standard error is taken over files (clusters), by the delta method: with
r = A / B, the cluster c contributes ``(a_c - r * b_c) / B``. Numerator and denominator come from the same clusters, so
paired comparisons are paired by construction.
"""

from dataclasses import dataclass

import numpy as np

from lclm_jax.errors import LclmError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio of sums, its standard error, and how much it rests on."""

    value: float
    standard_error: float
    """NaN with fewer than two clusters."""
    count: int
    """Denominator tokens (or whatever the denominator counts), rounded."""
    clusters: int
    """Independent groups that the standard error is taken over."""

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON: a standard error that is not known is null."""
        known = bool(np.isfinite(self.standard_error))
        return {
            "value": self.value if np.isfinite(self.value) else None,
            "standard_error": self.standard_error if known else None,
            "count": self.count,
            "clusters": self.clusters,
        }


def ratio(numerators: np.ndarray, denominators: np.ndarray, clusters: np.ndarray, count: int | None = None) -> Estimate:
    """Sum of ``numerators`` over sum of ``denominators``, with its standard error over ``clusters``.

    Args:
        numerators: [examples] float64.
        denominators: [examples] float64; their sum must not be 0.
        clusters: [examples] integers: examples with equal ones are not independent.
        count: what to report as count; None: the sum of the denominators.

    Raises:
        LclmError: if the arrays differ in length, are empty, or the denominators sum to 0.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not top.shape == bottom.shape == np.shape(clusters) or top.ndim != 1 or not top.size:
        raise LclmError(
            f"numerators {top.shape}, denominators {bottom.shape} and clusters {np.shape(clusters)} must be equally"
            " long, with at least one example each; measure on more held-out text"
        )
    total = float(bottom.sum())
    if total == 0:
        raise LclmError("the denominators sum to 0, so there is no ratio; measure on more held-out text")
    value = float(top.sum()) / total
    _, group = np.unique(clusters, return_inverse=True)
    groups = int(group.max()) + 1
    influence = np.bincount(group, weights=top - value * bottom, minlength=groups) / total
    error = float(np.sqrt(groups / (groups - 1) * np.sum(influence**2))) if groups > 1 else float("nan")
    return Estimate(value, error, round(total) if count is None else count, groups)


def mean_by_position(values: np.ndarray, weights: np.ndarray, clusters: np.ndarray) -> list[Estimate]:
    """``ratio`` of every column of [examples, positions] ``values``, weighted; empty columns at the end are cut."""
    used = int(np.max(np.flatnonzero(weights.sum(axis=0)), initial=-1)) + 1
    return [ratio(values[:, i] * weights[:, i], weights[:, i], clusters) for i in range(used)]
