"""Which plots a study's report has, and what they show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lclm_jax.ablate.summary import Summary
from lclm_jax.ablate.variants import Variant
from lclm_jax.report import formatting
from lclm_jax.report.document import Figure
from lclm_jax.report.study import plots

_LINES = 5
"""Lines beside the baseline in one panel."""


def draw(summary: Summary, out: Path) -> dict[str, Figure]:
    """Write the plots that the results allow under ``out``/plots; returns them by kind."""
    found = {
        "curves": _curves(summary, out / "plots" / "loss.png"),
        "forest": _forest(summary, out / "plots" / "effects.png"),
        "pareto": _pareto(summary, out / "plots" / "pareto.png"),
        "depth": _depth(summary, out / "plots" / "verbatim.png"),
    }
    return {
        kind: Figure(f"plots/{path.name}", _TITLES[kind], caption)
        for kind, (path, caption) in found.items()
        if path is not None
    }


_TITLES = {
    "curves": "training loss",
    "forest": "effects",
    "pareto": "quality against cost",
    "depth": "repetition by depth",
}
_Drawn = tuple[Path | None, str]


def panels(summary: Summary, names: Sequence[str]) -> dict[str, list[str]]:
    """Which of the variants ``names`` share a panel, a few at a time, with the baseline.

    Those of one factor come together; in a grid, those that differ from the baseline in equally many factors.
    """
    head = [summary.baseline] if summary.baseline in names else []
    groups: dict[str, list[str]] = {}
    for one in summary.variants:
        if one.name in names and one.name != summary.baseline:
            groups.setdefault(_group(summary, one), []).append(one.name)
    found = {}
    for title, members in groups.items():
        parts = [members[i : i + _LINES] for i in range(0, len(members), _LINES)]
        for number, part in enumerate(parts):
            found[title if len(parts) == 1 else f"{title} ({number + 1} of {len(parts)})"] = head + part
    return found or {"baseline": head}


def _group(summary: Summary, variant: Variant) -> str:
    if variant.name in summary.study.variants:
        return _further(summary) or "variants"
    base = summary.variants[0].levels
    changed = [factor for factor, level in variant.levels.items() if level != base.get(factor)]
    if summary.study.design != "grid":
        return " × ".join(changed)
    return "one factor changed" if len(changed) == 1 else f"{len(changed)} factors changed"


def _curves(summary: Summary, path: Path) -> _Drawn:
    curves = {
        name: plots.Curves(np.asarray(one.curves["steps"][0], float), np.asarray(one.curves["train_loss"], float))
        for name, one in summary.results.items()
        if one.curves.get("steps") and one.curves["steps"][0]
    }
    if not curves:
        return None, ""
    labels = ("optimizer step", "training loss (nats per token)", "difference")
    plots.plot_curves(path, panels(summary, list(curves)), curves, labels, zoom=True)
    return path, (
        f"Training loss, smoothed, and its difference from {formatting.baseline(summary.baseline)} with the same"
        " seed. Lines are means over seeds, bands go from the lowest to the highest seed; a line ends where a seed"
        " diverged."
    )


def _depth(summary: Summary, path: Path) -> _Drawn:
    curves = {}
    for name, one in summary.results.items():
        if name not in summary.diverged and one.verbatim_by_depth and one.verbatim_by_depth[0]:
            ys = np.asarray(one.verbatim_by_depth, float)
            curves[name] = plots.Curves(np.arange(1, ys.shape[1] + 1), ys)
    if not curves:
        return None, ""
    labels = ("depth in the repeated span (tokens)", "share of tokens right", "difference")
    plots.plot_curves(path, panels(summary, list(curves)), curves, labels, zoom=False)
    return path, (
        f"Verbatim repetition by depth, and its difference from {formatting.baseline(summary.baseline)} with the same"
        " seed. Lines are means over seeds, bands go from the lowest to the highest seed."
        + (" Variants that diverged are left out." if summary.diverged else "")
    )


def _forest(summary: Summary, path: Path) -> _Drawn:
    one = summary.primary
    bars = [
        plots.Bar(effect.factor, effect.level, effect.comparison.difference, effect.comparison.half_width, verdict)
        for effect in summary.effects
        for verdict in (effect.comparison.verdict,)
    ]
    bars += [
        plots.Bar(_further(summary), name, compared.difference, compared.half_width, compared.verdict)
        for name, compared in one.comparisons.items()
        if name in summary.study.variants
    ]
    if not bars:
        return None, ""
    unit = f" ({one.measure.unit})" if one.measure.unit else ""
    side = {"lower": ", left is better", "higher": ", right is better", None: ""}[one.measure.better]
    label = f"difference in {one.measure.title}{unit}{side}"
    plots.plot_forest(path, bars, label, summary.study.smallest_effect)
    return path, (
        f"Effects on {one.measure.title} with {summary.study.confidence:.0%} intervals: green better, orange worse,"
        f" grey a tie. Shaded: smaller than {summary.study.smallest_effect:g}, the smallest effect that the study"
        " was sized for."
    )


def _further(summary: Summary) -> str:
    """Heading of the rows that no factor spans; none if there are no others."""
    return "" if summary.study.design == "list" else "further variants"


def _varies(costs: Sequence[float]) -> bool:
    return bool(costs) and max(costs) > 1.02 * min(costs)


def _pareto(summary: Summary, path: Path) -> _Drawn:
    one = summary.primary
    costs = {name: summary.results[name].cost for name in one.intervals}
    kinds = {
        "forward FLOPs per raw token": lambda cost: cost.encoder_flops + cost.decoder_flops,
        "peak memory (GB)": lambda cost: cost.peak_memory_bytes / 1e9,
        "decoder positions per raw token": lambda cost: cost.positions_per_raw_token,
    }
    kinds = {label: of for label, of in kinds.items() if _varies([of(cost) for cost in costs.values()])}
    if not kinds or one.measure.better is None:
        return None, ""
    points = {
        name: plots.Point([of(costs[name]) for of in kinds.values()], *one.intervals[name])
        for name in sorted(costs, key=lambda name: name != summary.baseline)
    }
    unit = f" ({one.measure.unit})" if one.measure.unit else ""
    plots.plot_pareto(path, points, list(kinds), f"{one.measure.title}{unit}", one.measure.better == "lower")
    return path, (
        f"{one.measure.title[0].upper()}{one.measure.title[1:]} against cost, with intervals over seeds (not paired:"
        " use the differences to compare). Grey line: variants whose mean no cheaper one reaches."
        " Costs that vary by less than 2% are not shown."
    )
