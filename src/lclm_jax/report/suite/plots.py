"""Plots of a suite: the frontiers of score against cost, and heat maps of length against depth."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lclm_jax.report.plots import COLOURS, CYCLE, save, styled

_MARKERS = "os^DvP"


class Point(NamedTuple):
    """One system at one length."""

    system: str
    cost: float
    score: float
    low: float
    high: float


def plot_frontier(path: Path, points: Sequence[Point], cost: str, score: str) -> None:
    """Score against cost, with the line of systems that no other beats at both.

    Args:
        path: PNG to write.
        points: one for each system; the interval of a score may be NaN.
        cost: label of the horizontal axis, which is logarithmic where costs differ widely.
        score: label of the vertical axis.
    """
    with styled(7.2, 4.6):
        figure, axes = plt.subplots()
        front = _front(points)
        axes.plot([one.cost for one in front], [one.score for one in front], color=COLOURS["ink"], lw=1, alpha=0.5)
        for number, one in enumerate(points):
            colour, marker = CYCLE[number % len(CYCLE)], _MARKERS[number // len(CYCLE) % len(_MARKERS)]
            if np.isfinite(one.low):
                axes.vlines(one.cost, one.low, one.high, color=colour, lw=1.2, alpha=0.7)
            axes.plot(one.cost, one.score, marker, color=colour, ms=7, label=one.system, ls="none")
        costs = [one.cost for one in points]
        if max(costs) > 4 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(cost)
        axes.set_ylabel(score)
        axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        save(figure, path)


def _front(points: Sequence[Point]) -> list[Point]:
    """From cheap to dear, each better than all cheaper ones."""
    best: list[Point] = []
    for one in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not best or one.score > best[-1].score:
            best.append(one)
    return best


def plot_heat(path: Path, scores: Mapping[str, Mapping[tuple[int, float], float]]) -> None:
    """A panel for each system: mean score by length (across) and depth of the answer (down).

    Args:
        path: PNG to write.
        scores: system -> (length, lower end of the tenth of depth) -> score from 0 to 1.
    """
    lengths = sorted({length for cells in scores.values() for length, _ in cells})
    columns = min(3, len(scores))
    rows = -(-len(scores) // columns)
    with styled(1.2 + 3.1 * columns, 0.8 + 2.5 * rows, grid=False):
        figure, grid = plt.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(scores) :]:
            axes.set_visible(False)
        for axes, (name, cells) in zip(grid.flat, scores.items(), strict=False):
            values = np.full((10, len(lengths)), np.nan)
            for (length, depth), score in cells.items():
                values[round(10 * depth), lengths.index(length)] = score
            image = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap="cividis", interpolation="nearest")
            axes.set_title(name, fontsize=9.5, loc="left")
            axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], fontsize=8)
            axes.set_xlabel("length (tokens)", fontsize=9)
            axes.set_yticks([-0.5, 4.5, 9.5], ["0 %", "50 %", "100 %"], fontsize=8)
        for axes in grid[:, 0]:
            axes.set_ylabel("depth of the answer", fontsize=9)
        figure.colorbar(image, ax=grid, label="score", fraction=0.03)
        save(figure, path)
