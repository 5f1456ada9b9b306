"""Comparison of variants over seeds: intervals, paired differences, verdicts, and the size that a study needs.

A seed has the same batches in every variant, so variants are compared by their differences within seeds: what a seed
does to all variants alike cancels. With n seeds the mean difference has n - 1 degrees of freedom and Student's t
gives its interval; n is small, so no interval assumes that the measured spread is the true one.

Values come as ``{seed: value}``. A seed that diverged has a value that is not finite; such a variant has no mean and no
comparison (``diverged`` names the seeds), because the mean of the seeds that happened to survive would flatter it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

from lclm_jax.errors import LclmError

Direction = Literal["lower", "higher"]
Verdict = Literal["better", "worse", "tie"]
Values = Mapping[int, float]
"""Seed -> value of one measure."""

_MAX_SEEDS = 10_000
_UPPER = 0.8
"""Confidence of upper limits of standard deviations."""


class Interval(NamedTuple):
    """A mean over seeds; the interval is ``mean`` ± ``half_width``."""

    mean: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against another, paired by seed."""

    difference: float
    """Mean over seeds of variant - other, in units of the measure."""
    half_width: float
    sd: float
    """Standard deviation of the differences over seeds."""
    p_value: float
    """Of a two-sided paired t test."""
    verdict: Verdict
    """``tie``: the interval of the difference includes 0."""
    holm_p_value: float
    """``p_value`` corrected for all comparisons made together (Holm); the same if there was one."""
    holm_verdict: Verdict


def diverged(values: Values) -> list[int]:
    """The seeds whose value is not finite."""
    return [seed for seed, value in values.items() if not math.isfinite(value)]


def mean_interval(values: Sequence[float], confidence: float) -> Interval:
    """Mean of independent values with the half-width of its Student t interval.

    Raises:
        LclmError: fewer than two values, or one that is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.size < 2:
        raise LclmError(f"{array.size} value gives no interval; run at least two seeds")
    if not np.isfinite(array).all():
        raise LclmError(f"{list(values)} has values that are not finite; report the seeds as diverged instead")
    error = float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(float(array.mean()), error * _quantile(confidence, array.size))


def paired(variant: Values, other: Values, better: Direction, confidence: float) -> Comparison:
    """Compare two variants by their differences within seeds.

    Args:
        variant: seed -> value.
        other: what it is compared with, over the same seeds.
        better: which direction of the measure is better.
        confidence: of the interval, say 0.95.

    Raises:
        LclmError: the seeds differ, are fewer than two, or one of them diverged.
    """
    if set(variant) != set(other):
        raise LclmError(
            f"seeds {sorted(variant)} and {sorted(other)} differ, so nothing pairs them; run both on the same seeds"
        )
    differences = np.array([variant[seed] - other[seed] for seed in variant])
    mean, half_width = mean_interval(differences.tolist(), confidence)
    sd = float(differences.std(ddof=1))
    p_value = _p_value(mean, sd, differences.size)
    verdict = _verdict(mean, abs(mean) > half_width, better)
    return Comparison(mean, half_width, sd, p_value, verdict, p_value, verdict)


def compare_all(
    values: Mapping[str, Values], baseline: str, better: Direction, confidence: float
) -> dict[str, Comparison]:
    """Compare every variant with ``baseline``; variants that diverged are left out (see ``diverged``).

    ``holm_verdict`` is the verdict after Holm's correction, which bounds the chance that any of these verdicts is
    wrong, instead of the chance for each.
    """
    if diverged(values[baseline]):
        return {}
    found = {
        name: paired(one, values[baseline], better, confidence)
        for name, one in values.items()
        if name != baseline and not diverged(one)
    }
    return dict(zip(found, corrected(list(found.values()), better, confidence), strict=True))


def corrected(made: Sequence[Comparison], better: Direction, confidence: float) -> list[Comparison]:
    """The comparisons that are ``made`` together, after Holm's correction; one that is made twice counts once."""
    distinct = {(one.difference, one.sd, one.p_value): one.p_value for one in made}
    adjusted = dict(zip(distinct, holm(list(distinct.values())), strict=True))
    found = [(one, adjusted[one.difference, one.sd, one.p_value]) for one in made]
    return [
        replace(one, holm_p_value=p, holm_verdict=_verdict(one.difference, p < 1 - confidence, better))
        for one, p in found
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values by Holm (1979): the i-th smallest of m (from 0) times m - i, never below an earlier one."""
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = floor
    return adjusted


def best_and_ties(values: Mapping[str, Values], better: Direction, confidence: float) -> tuple[str | None, list[str]]:
    """The variant with the best mean, and those whose paired interval against it includes 0.

    Variants that diverged are left out; with none left the best is None.
    """
    sound = {name: one for name, one in values.items() if not diverged(one)}
    if not sound:
        return None, []
    sign = 1 if better == "lower" else -1
    best = min(sound, key=lambda name: sign * float(np.mean(list(sound[name].values()))))
    ties = [
        name
        for name, one in sound.items()
        if name != best and paired(one, sound[best], better, confidence).verdict == "tie"
    ]
    return best, ties


def detectable(sd: float, seeds: int, confidence: float, power: float) -> float:
    """The smallest true difference that ``seeds`` seeds find with chance ``power``.

    Under a true difference d, t = mean / (sd / sqrt(n)) has a noncentral t distribution with n - 1 degrees of freedom
    and noncentrality d * sqrt(n) / sd; found means that ``abs(t)`` exceeds the quantile that ``confidence`` asks for.

    Args:
        sd: standard deviation of the differences over seeds; the result has its unit.
        seeds: n, at least 2.
        confidence: of the intervals.
        power: chance of finding the difference.

    Raises:
        LclmError: fewer than two seeds.
    """
    if seeds < 2:
        raise LclmError(f"seeds={seeds} gives no interval; run at least two")
    threshold = _quantile(confidence, seeds)
    low, high = 0.0, threshold
    while _chance(high, threshold, seeds - 1) < power:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _chance(middle, threshold, seeds - 1) < power else (low, middle)
    return high * sd / math.sqrt(seeds)


def seeds_needed(effect: float, sd: float, confidence: float, power: float) -> int:
    """The fewest seeds with which a difference of ``effect`` is ``detectable``.

    Raises:
        LclmError: ``effect`` is not positive, or would take more than 10,000 seeds.
    """
    if effect <= 0:
        raise LclmError(f"effect={effect} cannot be planned for; name the smallest difference that matters, above 0")
    standardised = effect / sd if sd else math.inf

    def enough(seeds: int) -> bool:
        return _chance(standardised * math.sqrt(seeds), _quantile(confidence, seeds), seeds - 1) >= power

    low, high = 1, 2  # low is too few
    while not enough(high):
        if high > _MAX_SEEDS:
            raise LclmError(
                f"effect={effect} needs over {_MAX_SEEDS:,} seeds if differences vary by {sd}; look for a larger effect"
                " or train longer"
            )
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def sd_of_differences_bound(baseline: Sequence[float]) -> float:
    """A bound on the standard deviation of paired differences when the baseline alone has run.

    Two variants of equal spread that shared nothing would differ by sqrt(2) times that spread; pairing by seed lowers
    it, unless one variant suffers where the other gains. A spread over few seeds is itself uncertain: by chance it can
    come out small, and a study sized on it would be too small. So the spread is first raised to its one-sided upper
    limit by chi-square; Browne (1995, Statistics in Medicine 14:1933) takes 80 %, with which a study sized on a pilot
    keeps the planned power with about that chance. With 3 seeds that is 2.1 times the spread, with 8 it is 1.4 times.

    Args:
        baseline: one value per seed.

    Raises:
        LclmError: fewer than two values, or one that is not finite.
    """
    mean_interval(baseline, 0.95)  # checks
    count = len(baseline)
    sd = float(np.std(baseline, ddof=1))
    return math.sqrt(2) * sd * _upper_limit(count)


def sd_of_pilot_bound(baseline: Values, pilot: Values) -> float:
    """A bound on the standard deviation of paired differences when the baseline and one variant have run.

    Their own differences by seed show what pairing leaves; the spread is raised to its upper limit by chi-square as in
    ``sd_of_differences_bound``.

    Raises:
        LclmError: the seeds differ, are fewer than two, or a value is not finite.
    """
    return paired(pilot, baseline, "lower", 0.95).sd * _upper_limit(len(baseline))


def _upper_limit(count: int) -> float:
    """One-sided upper 80 % limit of a standard deviation over ``count`` values, over the measured one."""
    return math.sqrt((count - 1) / stats.chi2.ppf(1 - _UPPER, count - 1))


def _chance(noncentrality: float, threshold: float, freedom: int) -> float:
    """Chance that |t| exceeds ``threshold``: the normal's chance given the spread, averaged over the spread.

    ``scipy.stats.nct`` is not used: with few degrees of freedom it can be wrong by a factor of two (scipy 1.17).
    """
    spread, weights = _spreads(freedom)
    chance = special.ndtr(noncentrality - threshold * spread) + special.ndtr(-noncentrality - threshold * spread)
    return float(weights @ chance)


@cache
def _spreads(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Measured spread over true spread at the nodes of a Gauss-Legendre rule over its distribution, and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return np.sqrt(stats.chi2.ppf((nodes + 1) / 2, freedom) / freedom), weights / 2


def _quantile(confidence: float, count: int) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


def _p_value(mean: float, sd: float, count: int) -> float:
    if sd == 0:  # equal differences in all seeds
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) * math.sqrt(count) / sd, count - 1))


def _verdict(difference: float, found: bool, better: Direction) -> Verdict:
    if not found:
        return "tie"
    return "better" if (difference < 0) == (better == "lower") else "worse"
