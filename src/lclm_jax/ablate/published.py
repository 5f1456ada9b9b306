"""Published values of the factors that a study varies: do our differences have the same direction?

Sizes, data and budgets differ, so the numbers are never compared; only the direction of a change is.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from lclm_jax.ablate.statistics import Comparison, Direction, Values, diverged, paired
from lclm_jax.config.study import PublishedConfig

Agreement = Literal["agrees", "disagrees", "cannot be told", "diverged", "not run", "not in this study"]


class PublishedRow(NamedTuple):
    """One published value beside the direction that the study found."""

    variant: str
    value: float
    published: Literal["better", "worse", "equal", "reference"]
    """Against the reference; publications give no interval, so this is the sign of a difference."""
    ours: str
    """Our paired verdict against the same reference, or why there is none."""
    agreement: Agreement | None
    """By our verdict as it is; None: the reference itself."""
    lost: bool = False
    """Our verdict does not survive the correction for all comparisons with the baseline (Holm)."""


def compare_published(
    published: PublishedConfig,
    names: Sequence[str],
    values: Mapping[str, Values],
    comparisons: Mapping[str, Comparison],
    better: Direction,
    confidence: float,
) -> list[PublishedRow]:
    """Compare directions; the reference is the study's baseline, or the first published variant if it has none of it.

    Args:
        published: values by variant.
        names: all variants of the study, baseline first.
        values: variant -> seed -> value of the primary measure, of the variants that ran.
        comparisons: those with the baseline, corrected.
        better: which direction of the primary measure is better.
        confidence: of our intervals.
    """
    reference = names[0] if names[0] in published.values else next(iter(published.values))
    rows = []
    for name, value in published.values.items():
        if name == reference:
            rows.append(PublishedRow(name, value, "reference", "", None))
            continue
        difference = value - published.values[reference]
        sign = "equal" if difference == 0 else _direction(difference, published.better)
        missing = _missing(name, names, values) or _missing(reference, names, values)
        if missing:
            rows.append(PublishedRow(name, value, sign, "", missing))
            continue
        ours = paired(values[name], values[reference], better, confidence).verdict
        corrected = comparisons.get(name) if reference == names[0] else None
        lost = corrected is not None and corrected.holm_verdict != ours
        rows.append(PublishedRow(name, value, sign, ours, _agreement(sign, ours), lost))
    return rows


def _direction(difference: float, better: Direction) -> Literal["better", "worse"]:
    return "better" if (difference < 0) == (better == "lower") else "worse"


def _missing(name: str, names: Collection[str], values: Mapping[str, Values]) -> Agreement | None:
    if name not in names:
        return "not in this study"
    if name not in values:
        return "not run"
    return "diverged" if diverged(values[name]) else None


def _agreement(published: str, ours: str) -> Agreement:
    if "tie" in ours or published == "equal":
        return "cannot be told"
    return "agrees" if ours == published else "disagrees"
