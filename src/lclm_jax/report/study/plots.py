"""Plots of a study, drawn from plain numbers; every function writes one PNG."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter

from lclm_jax.report.plots import COLOURS, CYCLE, save, smooth, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS = {"better": "#009E73", "worse": "#D55E00", "tie": "#8A94A0"}
_MARKERS = "osD^vP"


class Curves(NamedTuple):
    """One quantity of one variant over its seeds."""

    x: np.ndarray
    """[points]."""
    ys: np.ndarray
    """[seeds, points]."""


class Point(NamedTuple):
    """One variant of ``plot_pareto``."""

    costs: Sequence[float]
    mean: float
    half_width: float


class Bar(NamedTuple):
    """One row of ``plot_forest``; a group is a block of rows under one heading."""

    group: str
    label: str
    difference: float
    half_width: float
    verdict: str


def plot_curves(
    path: Path,
    panels: Mapping[str, Sequence[str]],
    curves: Mapping[str, Curves],
    labels: tuple[str, str, str],
    zoom: bool,
) -> None:
    """Curves in rows of few lines each, and beside them their differences from the first, seed by seed.

    Lines are means over seeds; bands go from the lowest to the highest seed.

    Args:
        path: PNG to write.
        panels: title of a row -> variants; the first of each is the baseline, drawn in dark grey.
        curves: variant -> its curves.
        labels: of the horizontal axis, the curves, and the differences.
        zoom: smooth the curves, and leave the first eighth of them out of view where it is steep.
    """
    skip = 1 / 8 if zoom else 0.0
    if zoom:
        curves = {name: Curves(one.x, np.stack([smooth(y) for y in one.ys])) for name, one in curves.items()}
    with styled(11, 2.7 * len(panels) + 0.4):
        figure, grid = plt.subplots(len(panels), 2, sharex=True, squeeze=False)
        for (left, right), (title, names) in zip(grid, panels.items(), strict=True):
            base = curves[names[0]]
            apart = [base.ys - base.ys]
            for number, name in enumerate(names):
                colour = COLOURS["ink"] if number == 0 else CYCLE[(number - 1) % len(CYCLE)]
                _band(left, curves[name], colour, _wrap(name, 26))
                if np.array_equal(curves[name].x, base.x) and curves[name].ys.shape == base.ys.shape:
                    apart.append(curves[name].ys - base.ys)
                    _band(right, Curves(base.x, apart[-1]), colour, "")
            _limit([right], [y for ys in apart for y in ys], skip)
            left.set_title(_wrap(title, 60), fontsize=10, loc="left", fontweight="bold")
            left.set_ylabel(labels[1], fontsize=9)
            right.set_ylabel(labels[2], fontsize=9)
            handles, texts = left.get_legend_handles_labels()
            right.legend(handles, texts, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.03))
        drawn = [curves[name].ys for names in panels.values() for name in names]
        _limit(grid[:, 0].tolist(), [ys.mean(0) for ys in drawn] if zoom else [y for ys in drawn for y in ys], skip)
        for axes in grid[-1]:
            axes.set_xlabel(labels[0], fontsize=9)
        save(figure, path)


def _band(axes: "Axes", curves: Curves, colour: str, label: str) -> None:
    # No nanmean: where a seed diverged the line ends.
    axes.fill_between(curves.x, curves.ys.min(0), curves.ys.max(0), color=colour, alpha=0.13, linewidth=0)
    axes.plot(curves.x, curves.ys.mean(0), color=colour, linewidth=1.5, label=label)


def _limit(panels: Sequence["Axes"], ys: Sequence[np.ndarray], skip: float) -> None:
    """One vertical range for all ``panels``: that of the lines ``ys`` after the share ``skip`` of their points."""
    seen = np.concatenate([y[int(skip * len(y)) :] for y in ys])
    seen = seen[np.isfinite(seen)]
    if seen.size and seen.max() > seen.min():
        margin = 0.1 * (seen.max() - seen.min())
        for axes in panels:
            axes.set_ylim(seen.min() - margin, seen.max() + margin)


def plot_pareto(path: Path, points: Mapping[str, Point], costs: Sequence[str], quality: str, lower: bool) -> None:
    """Quality against costs, a panel for each cost, with the front of variants that no other beats at both.

    Args:
        path: PNG to write.
        points: variant -> its costs and its quality with the half-width of its interval.
        costs: label of each cost.
        quality: label of the quality.
        lower: lower quality values are better.
    """
    legend_rows = -(-len(points) // 2)
    with styled(max(6.0, 3.9 * len(costs)), 3.6 + 0.2 * legend_rows):
        figure, panels = plt.subplots(1, len(costs), sharey=True, squeeze=False)
        for number, (axes, label) in enumerate(zip(panels[0], costs, strict=True)):
            for place, (name, one) in enumerate(points.items()):
                colour, marker, size = _mark(place)
                x, style = one.costs[number], {"color": colour, "alpha": 0.9}
                axes.errorbar(x, one.mean, one.half_width, elinewidth=0.9, capsize=2, **style)
                axes.plot(x, one.mean, marker=marker, markersize=size, linestyle="", label=_wrap(name, 44), **style)
            front = pareto_front([(one.costs[number], one.mean) for one in points.values()], lower)
            axes.plot(*zip(*front, strict=True), color="#BBBBBB", linewidth=1.2, zorder=0)
            axes.set_xlabel(label)
            values = [one.costs[number] for one in points.values()]
            if min(values) > 0 and max(values) > 8 * min(values):
                axes.set_xscale("log")
            elif max(values) >= 1e4:
                axes.locator_params(axis="x", nbins=5)
            if max(values) >= 1e4:
                axes.xaxis.set_major_formatter(EngFormatter())
            axes.margins(x=0.12)
        panels[0][0].set_ylabel(quality)
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8.5)
        save(figure, path)


def _mark(place: int) -> tuple[str, str, float]:
    """Colour, marker and size of a variant; no two of 36 share colour and marker."""
    if place == 0:
        return COLOURS["ink"], "*", 10
    lap = (place - 1) // len(CYCLE)
    return CYCLE[(place - 1) % len(CYCLE)], _MARKERS[(place - 1 + lap) % len(_MARKERS)], 6.5


def pareto_front(points: Sequence[tuple[float, float]], lower: bool) -> list[tuple[float, float]]:
    """(cost, quality) of the points that no other beats: the best at rising cost."""
    sign = 1 if lower else -1
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * quality < sign * front[-1][1]:
            front.append((cost, quality))
    return front


def plot_forest(path: Path, bars: Sequence[Bar], label: str, smallest: float) -> None:
    """Paired differences with their intervals, grouped by factor.

    Args:
        path: PNG to write.
        bars: rows, those of a group one after another.
        label: of the difference.
        smallest: the smallest effect that the study was sized for, shaded on both sides of 0.
    """
    groups = list(dict.fromkeys(bar.group for bar in bars))
    headings = sum(bool(group) for group in groups)
    names = [_wrap(bar.label, 42) for bar in bars]
    height = 0.9 + 0.3 * (headings + sum(1 + 0.5 * name.count("\n") for name in names))
    with styled(8.6, height):
        figure, axes = plt.subplots()
        y, ticks = 0.0, []
        for group in groups:
            if group:
                ticks.append((y, group, True))
                y -= 1
            for bar, name in zip(bars, names, strict=True):
                if bar.group == group:
                    extra = 0.25 * name.count("\n")
                    y -= extra
                    axes.errorbar(
                        bar.difference, y, xerr=bar.half_width, color=VERDICTS[bar.verdict], marker="o", markersize=6,
                        elinewidth=2, capsize=3,
                    )  # fmt: skip
                    ticks.append((y, name, False))
                    y -= 1 + extra
        axes.axvline(0, color=COLOURS["ink"], linewidth=0.9)
        axes.axvspan(-smallest, smallest, color="#EEF1F4", zorder=0, linewidth=0)
        axes.set_yticks([tick[0] for tick in ticks], [tick[1] for tick in ticks], fontsize=9)
        for text, (_, _, heading) in zip(axes.get_yticklabels(), ticks, strict=True):
            text.set_fontweight("bold" if heading else "normal")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(y + 0.3, 0.7)
        axes.set_xlabel(label)
        save(figure, path)


def _wrap(text: str, width: int) -> str:
    """Break a long name after commas and other marks."""
    marked = text.replace(",", ", ").replace("/", "/ ").replace("_", "_ ") if len(text) > width else text
    return "\n".join(line.replace("_ ", "_").replace("/ ", "/") for line in textwrap.wrap(marked, width))
