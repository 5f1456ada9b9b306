"""Numbers and lists as text. Light to import: commands that look at a run from outside use it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lclm_jax.types import ReadOnlyJson

if TYPE_CHECKING:
    from lclm_jax.ablate.statistics import Comparison, Interval

NOTHING = "–"
"""Stands for a number that is not known."""
_DECIMALS = 5


def estimate(found: ReadOnlyJson | None) -> str:
    """``1.2345 ± 0.0123``: the ``value`` and ``standard_error`` of an evaluation, as far as there are any."""
    if not found or found["value"] is None:
        return NOTHING
    error = found["standard_error"]
    return f"{found['value']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def decimals(half_widths: Sequence[float]) -> int:
    """Decimals that show two figures of the typical half-width."""
    known = sorted(one for one in half_widths if one > 0 and math.isfinite(one))
    if not known:
        return 3
    return min(_DECIMALS, max(1, 1 - math.floor(math.log10(known[len(known) // 2]))))


def decimals_of(comparisons: "Mapping[str, Comparison]") -> int:
    """``decimals`` for differences."""
    return decimals([one.half_width for one in comparisons.values()])


def plus_minus(interval: "Interval", places: int) -> str:
    """``1.234 ± 0.012``."""
    return f"{interval.mean:.{places}f} ± {interval.half_width:.{places}f}"


def signed(comparison: "Comparison", places: int) -> str:
    """``−0.021 ± 0.012``: with a sign, and a minus as wide as a plus."""
    return f"{comparison.difference:+.{places}f} ± {comparison.half_width:.{places}f}".replace("-", "−")


def p_value(value: float) -> str:
    """``0.03``, ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def names(values: Sequence[str]) -> str:
    """The values in code font: *a*, *b* and *c*."""
    quoted = [f"`{value}`" for value in values]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]


def baseline(name: str) -> str:
    """``the baseline``, with its name if it has one of its own."""
    return "the baseline" if name == "baseline" else f"the baseline `{name}`"


def count(number: float) -> str:
    """``1.23 M``: three significant figures with a decimal prefix."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def gigabytes(number: float) -> str:
    """Bytes as ``1.23``, in units of 1e9."""
    return f"{number / 1e9:.2f}"


def duration(seconds: float) -> str:
    """``42 s``, ``17 min``, ``2 h 3 min``, ``3.1 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{seconds / 86400:.1f} days"


def key_values(values: Mapping[str, object]) -> str:
    """``values`` as a list of ``key=value`` in Markdown's code style."""
    return ", ".join(f"`{key}={value}`" for key, value in values.items())
