"""Plots of a run, drawn from plain numbers; every function writes one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt

from lclm_jax.report.plots import COLOURS, CYCLE, save, smooth, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_context_gain(path: Path, losses: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]]) -> None:
    """Loss of the continuation by position, with no context, latents, and raw context.

    Args:
        path: PNG to write.
        losses: variant -> mean loss in nats by position.
        errors: variant -> standard errors by position.
    """
    names = {"none": "no context", "latents": "latents", "raw": "raw context"}
    with styled():
        figure, axes = plt.subplots()
        for variant, name in names.items():
            mean, error = np.asarray(losses[variant], float), np.asarray(errors[variant], float)
            x = np.arange(1, len(mean) + 1)
            axes.fill_between(x, mean - error, mean + error, color=COLOURS[variant], alpha=0.15, linewidth=0)
            axes.plot(x, mean, color=COLOURS[variant], linewidth=1.6, label=name)
        axes.set_xlabel("position in the continuation (tokens)")
        axes.set_ylabel("loss (nats per token)")
        axes.legend()
        save(figure, path)


def plot_depth(path: Path, accuracy: Sequence[float], errors: Sequence[float]) -> None:
    """Token accuracy of verbatim repetition by depth in the span, with standard errors."""
    with styled():
        figure, axes = plt.subplots()
        x = np.arange(1, len(accuracy) + 1)
        mean, error = np.asarray(accuracy, float), np.asarray(errors, float)
        axes.fill_between(
            x, mean - error, np.minimum(mean + error, 1), color=COLOURS["latents"], alpha=0.2, linewidth=0
        )
        axes.plot(x, mean, color=COLOURS["latents"], linewidth=1.6)
        axes.set_ylim(max(0.0, float(np.min(mean - error)) - 0.05), 1.005)
        axes.set_xlabel("depth in the span (tokens)")
        axes.set_ylabel("fraction of tokens repeated correctly")
        save(figure, path)


def plot_cost(path: Path, names: Sequence[str], seconds: Sequence[float], peak_bytes: Sequence[float]) -> None:
    """Wall time and peak memory of each step of the pipeline, as two aligned bar charts."""
    with styled(height=0.32 * len(names) + 1.1, grid=False):
        figure, (left, right) = plt.subplots(1, 2, sharey=True)
        y = np.arange(len(names))[::-1]
        memory = np.asarray(peak_bytes, float) / 1e6
        for axes, values, unit in ((left, seconds, "wall time (s)"), (right, memory, "peak memory (MB)")):
            bars = axes.barh(y, values, color=COLOURS["latents"], height=0.65)
            axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
            axes.set_xlabel(unit)
            axes.margins(x=0.15)
        left.set_yticks(y, names)
        save(figure, path)


def plot_panels(
    path: Path,
    runs: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float | None]]]],
    label: str,
    width: float = 11,
) -> None:
    """One quantity, a panel for each stage and a line for each run.

    Args:
        path: PNG to write.
        runs: run -> stage -> (steps, values); values that are None or not finite are left out.
        label: name and unit of the quantity.
        width: of the figure, inches.
    """
    stages = list(dict.fromkeys(stage for curves in runs.values() for stage in curves))
    with styled(width, 3.1):
        figure, panels = plt.subplots(1, len(stages), sharey=True, squeeze=False)
        for axes, stage in zip(panels[0], stages, strict=True):
            for number, (run, curves) in enumerate(runs.items()):
                _line(axes, *curves.get(stage, ((), ())), CYCLE[number % len(CYCLE)], run)
            axes.set_title(stage, fontsize=10)
            axes.locator_params(axis="x", nbins=max(1, round(1.7 * width / len(stages))))
        panels[0][0].set_ylabel(label)
        if limits := _without_outliers([values for curves in runs.values() for _, values in curves.values()]):
            panels[0][0].set_ylim(*limits)
        figure.supxlabel("step", fontsize=10)
        if len(runs) > 1:
            handles, names = panels[0][0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper left", ncols=len(runs), fontsize=9)
        save(figure, path)


def _without_outliers(curves: Sequence[Sequence[float | None]]) -> tuple[float, float] | None:
    """Limits that hold the running means and 99 % of the values, so that a few spikes do not flatten the rest."""
    arrays = [np.asarray(curve, float) for curve in curves]
    arrays = [array[np.isfinite(array)] for array in arrays]
    values = np.concatenate(arrays) if arrays else np.zeros(0)
    if len(values) < 100:
        return None
    means = np.concatenate([smooth(array) for array in arrays])
    low, high = np.quantile(values, (0.005, 0.995))
    low, high = min(low, means.min()), max(high, means.max())
    room = 0.05 * (high - low)
    return (low - room, high + room) if high > low else None


def _line(axes: "Axes", steps: Sequence[float], values: Sequence[float | None], colour: str, name: str) -> None:
    """A smooth line over a faint one; few points are shown as they are."""
    x, y = np.asarray(steps, float), np.asarray(values, float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) < 40:
        axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3, label=name)
        return
    thin = slice(None, None, max(1, len(x) // 2000))
    axes.plot(x[thin], y[thin], color=colour, alpha=0.2, linewidth=0.7)
    axes.plot(x[thin], smooth(y.tolist())[thin], color=colour, linewidth=1.7, label=name)


def plot_shares(path: Path, bars: Mapping[str, Mapping[str, float]]) -> None:
    """Where time went: a bar of shares for each name.

    Args:
        path: PNG to write.
        bars: name -> kind -> seconds.
    """
    kinds = list(next(iter(bars.values())))
    y = np.arange(len(bars))[::-1]
    with styled(11, 0.9 + 0.34 * len(bars), grid=False):
        figure, axes = plt.subplots()
        left = np.zeros(len(bars))
        for kind, colour in zip(kinds, (*CYCLE, "#F0E442", "#999999"), strict=False):
            whole = np.array([max(sum(bar.values()), 1e-9) for bar in bars.values()])
            width = 100 * np.array([bar[kind] for bar in bars.values()]) / whole
            if width.max() >= 0.05:
                axes.barh(y, width, left=left, color=colour, height=0.62, label=kind.replace("_", " "))
            left += width
        axes.set_yticks(y, list(bars))
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the time")
        figure.legend(loc="outside upper left", ncols=8, fontsize=9)
        save(figure, path)
