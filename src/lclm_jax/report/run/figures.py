"""Which plots the report of a run has, and what they show."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lclm_jax.report.document import Figure
from lclm_jax.report.run import plots
from lclm_jax.report.run.read import Run
from lclm_jax.types import JsonObject

_CURVES = (
    ("raw_tokens_per_s", "raw tokens per second"),
    ("grad_norm", "gradient norm"),
    ("mfu", "fraction of the peak FLOP/s of the chips (MFU)"),
    ("decoder_fill", "fill of the decoder rows"),
    ("encoder_fill", "fill of the encoder rows"),
)
_LOSS = ("loss_nats", "training loss (nats per token)")
_WIDE, _HALF = 11.0, 7.0
"""Inches of a figure over the whole page, and of one of two side by side."""

Series = tuple[list[float], list[float | None]]
"""Steps, values."""


class Figures(NamedTuple):
    """Figures by section of the report; lists are empty where there is nothing to show."""

    loss: list[Figure]
    curves: list[Figure]
    probes: list[Figure]
    evaluation: list[Figure]
    time: list[Figure]
    cost: list[Figure]


def draw(runs: Sequence[Run], out: Path, brief: bool = False) -> Figures:
    """Write the plots about ``runs`` under ``out``/plots; ``brief``: of the curves, loss and speed alone."""
    kept = _Folder(out)
    shown = list(_CURVES[:1]) if brief else [*_objectives(runs), *_CURVES]
    probes = [] if brief else [one for run in runs for steps in run.probes.values() for one in steps]
    evaluated = [run for run in runs if run.evaluation]
    return Figures(
        loss=kept.curves(runs, *_LOSS, width=_WIDE, of=lambda run: run.curves),
        curves=[one for name, label in shown for one in kept.curves(runs, name, label, _HALF, lambda run: run.curves)],
        probes=[
            figure
            for key in sorted({key for one in probes for key in one if "/" in key})
            for figure in kept.curves(runs, key, key, _HALF, lambda run: run.probes)
        ],
        evaluation=[figure for run in evaluated for figure in _evaluation(kept, run, len(runs) > 1)],
        time=[kept.draw("time", "what the time was spent on", lambda path: plots.plot_shares(path, _time(runs)))],
        cost=[figure for run in runs for figure in _cost(kept, run, len(runs) > 1)],
    )


class _Folder:
    """Where figures are written: ``draw`` calls with a path, and returns the figure."""

    def __init__(self, out: Path):
        self.out = out

    def draw(self, name: str, title: str, plot: Callable[[Path], None]) -> Figure:
        path = f"plots/{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png"
        plot(self.out / path)
        return Figure(path, title)

    def curves(
        self,
        runs: Sequence[Run],
        name: str,
        label: str,
        width: float,
        of: Callable[[Run], Mapping[str, list[JsonObject]]],
    ) -> list[Figure]:
        """One quantity of the records that ``of`` takes from each run; none if no run has it."""
        series = {run.name: _series(of(run), name) for run in runs}
        if not any(series.values()):
            return []
        file = {"loss_nats": "loss", "raw_tokens_per_s": "speed"}.get(name, name)
        return [self.draw(file, label, lambda path: plots.plot_panels(path, series, label, width))]


def _series(stages: Mapping[str, list[JsonObject]], name: str) -> dict[str, Series]:
    return {
        stage: ([one["step"] for one in entries if name in one], [one[name] for one in entries if name in one])
        for stage, entries in stages.items()
        if any(one.get(name) is not None for one in entries)
    }


def _objectives(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name in the records, label) of each objective's loss; none where all runs have one objective and the same."""
    steps = (steps[-1] for run in runs for steps in run.curves.values())
    names = dict.fromkeys(key for step in steps for key in step if key.startswith("loss_nats/"))
    return [(name, f"loss of {name.split('/')[1]} (nats)") for name in names] if len(names) > 1 else []


def _time(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Seconds by kind: of each stage of a single run, or of each of several runs."""
    if len(runs) > 1:
        return {run.name: run.status["goodput_seconds"] for run in runs}
    stages = runs[0].status["stages"].items()
    return {stage: values["goodput_seconds"] for stage, values in stages if values["recent"]}


def _evaluation(kept: _Folder, run: Run, several: bool) -> list[Figure]:
    found = run.evaluation or {}
    prefix, head = (f"{run.name}-", f"{run.name}: ") if several else ("", "")
    positions = found["loss_nats_by_position"]
    means = {name: [entry["value"] for entry in entries] for name, entries in positions.items()}
    errors = {name: _errors(entries) for name, entries in positions.items()}
    figures = [
        kept.draw(
            f"{prefix}context_gain",
            f"{head}loss of a continuation by position",
            lambda path: plots.plot_context_gain(path, means, errors),
        )
    ]
    if depth := found.get("verbatim_accuracy_by_depth"):
        values = [entry["value"] for entry in depth]
        figures.append(
            kept.draw(
                f"{prefix}repetition",
                f"{head}verbatim repetition by depth in the span",
                lambda path: plots.plot_depth(path, values, _errors(depth)),
            )
        )
    return figures


def _errors(entries: Sequence[JsonObject]) -> list[float]:
    return [entry["standard_error"] or 0.0 for entry in entries]


def _cost(kept: _Folder, run: Run, several: bool) -> list[Figure]:
    if run.report is None:
        return []
    steps = {name: step for name, step in run.report["steps"].items() if name != "report"}
    seconds = [step["wall_seconds"] for step in steps.values()]
    peaks = [step["peak_memory_bytes"] for step in steps.values()]
    name = f"{run.name}-cost" if several else "cost"
    title = f"{run.name}: steps of the pipeline" if several else "steps of the pipeline"
    return [kept.draw(name, title, lambda path: plots.plot_cost(path, list(steps), seconds, peaks))]
