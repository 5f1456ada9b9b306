"""``lclm report``: one HTML page, all in one file, about a run or several side by side."""

import base64
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from lclm_jax.config import Config, RunPaths, dump_config
from lclm_jax.errors import LclmError
from lclm_jax.ops.status import run_status
from lclm_jax.report import plots
from lclm_jax.report.run_report import read_json
from lclm_jax.train.checkpoints.provenance import differing_keys
from lclm_jax.train.logging import events, records

_PROBES = "probes.jsonl"  # train.probing writes it, and imports JAX
_CURVES = (
    ("loss_nats", "training loss (nats per token)"),
    ("raw_tokens_per_s", "raw tokens per second"),
    ("grad_norm", "gradient norm"),
    ("mfu", "share of the chips' peak (MFU)"),
    ("decoder_fill", "fill of the decoder rows"),
    ("encoder_fill", "fill of the encoder rows"),
)
_ANSWERS = 9
_WIDE, _HALF = 11.0, 7.0
"""Inches of a figure over the whole page, and of one of two side by side."""


class Run(NamedTuple):
    """What the files of one run hold."""

    name: str
    config: Config
    status: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]
    """Stage -> records of its steps."""
    probes: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any] | None
    generations: list[dict[str, Any]]
    environment: dict[str, str]


def write_page(configs: Sequence[Config], out: Path) -> None:
    """Write the page about the runs of ``configs`` (``run_dir`` set) to ``out``; it needs no other file and no network.

    Raises:
        LclmError: a run has not trained a step.
    """
    runs = [read_run(config, name) for config, name in zip(configs, _names(configs), strict=True)]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lclm_jax.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html").render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        cards=_cards(runs),
        figures=_figures(runs),
        stages=_stage_rows(runs),
        measurements=_measurements(runs),
        answers=_answers(runs),
        differences=_differences(runs),
        yaml={run.name: dump_config(run.config) for run in runs},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _names(configs: Sequence[Config]) -> list[str]:
    """What the runs are called: their names, else the names of their folders, else their folders."""
    folders = [Path(config.run_dir) for config in configs]
    for names in ([config.name for config in configs], [folder.name for folder in folders]):
        if len({*names}) == len(names):
            return names
    return [str(folder) for folder in folders]


def read_run(config: Config, name: str) -> Run:
    """Read the files of a run; raises ``LclmError`` if it has not trained a step."""
    paths = RunPaths(config)
    folders = {stage: paths.stage(stage) for stage in config.stages}
    curves = {stage: list(records.read_metrics(folder / records.NAME)) for stage, folder in folders.items()}
    curves = {stage: steps for stage, steps in curves.items() if steps}
    if not curves:
        raise LclmError(f"{paths.root} has no metrics of any step; train first")
    return Run(
        name,
        config,
        run_status(config),
        curves,
        {stage: list(records.read_metrics(folder / _PROBES)) for stage, folder in folders.items()},
        read_json(paths.evaluation) if paths.evaluation.exists() else None,
        read_json(paths.generations) if paths.generations.exists() else [],
        _environment(paths, folders.values()),
    )


def _environment(paths: RunPaths, folders: Any) -> dict[str, str]:
    """Versions and devices, as the pipeline's report and the stages' beginnings noted them."""
    report = paths.report.with_suffix(".json")
    found = dict(read_json(report)["environment"]) if report.exists() else {}
    for folder in folders:
        for event in events.read_events(folder):
            if event["kind"] == "begin":
                found |= event.get("environment", {})
    return found


def _cards(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(quantity, a text for each run) of the headline."""

    def of(run: Run) -> dict[str, str]:
        status, last = run.status, list(run.curves.values())[-1]
        current = status["stages"][status["stage"]]
        seconds = sum(status["goodput_seconds"].values())
        tokens = sum(step["raw_tokens"] for steps in run.curves.values() for step in steps)
        losses = [step["loss_nats"] for step in last[-50:] if step["loss_nats"] is not None]
        evaluation = run.evaluation or {}
        return {
            "state": status["state"] if status["state"] == "finished" else f"{status['stage']}, {status['state']}",
            "step": f"{current['done_steps']:,} of {current['steps']:,}",
            "raw tokens": _si(tokens),
            "time": _duration(seconds),
            "goodput": f"{status['goodput']:.1%}" if status["goodput"] is not None else "–",
            "loss, last 50 steps": f"{sum(losses) / len(losses):.4f}" if losses else "–",
            "recovered share": _pm(evaluation.get("recovered_share")),
            "verbatim accuracy": _pm(evaluation.get("verbatim_token_accuracy")),
        }

    columns = [of(run) for run in runs]
    cards = [(name, [column[name] for column in columns]) for name in columns[0]]
    return [(name, values) for name, values in cards if {*values} != {"–"}]


def _figures(runs: Sequence[Run]) -> dict[str, list[tuple[str, str]]]:
    """Section -> (caption, data URL of a PNG)."""
    shown = [*_CURVES[:1], *_objective_curves(runs), *_CURVES[1:]]
    widths = [_WIDE, *[_HALF] * (len(shown) - 1)]
    curves = [
        (label, _panels({run.name: _series(run.curves, name) for run in runs}, label, width))
        for (name, label), width in zip(shown, widths, strict=True)
    ]
    keys = sorted(
        {key for run in runs for probes in run.probes.values() for one in probes for key in one if "/" in key}
    )
    probes = [(key, _panels({run.name: _series(run.probes, key) for run in runs}, key, _HALF)) for key in keys]
    bars = {run.name: run.status["goodput_seconds"] for run in runs}
    if len(runs) == 1:
        bars = {
            stage: values["goodput_seconds"] for stage, values in runs[0].status["stages"].items() if values["recent"]
        }
    gains = [
        (f"{run.name}: loss of a continuation by position", _png(partial(_gain, evaluation=run.evaluation)))
        for run in runs
        if run.evaluation
    ]
    shares = [("where the time went", _png(lambda path: plots.plot_shares(path, bars)))]
    found: dict[str, Sequence[tuple[str, str | None]]] = {"curves": curves, "probes": probes}
    found |= {"evaluation": gains, "goodput": shares}
    return {section: [(label, url) for label, url in entries if url] for section, entries in found.items()}


def _objective_curves(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(name in the records, label) of each objective's loss; none where all runs have one objective and the same."""
    steps = (steps[-1] for run in runs for steps in run.curves.values())
    names = dict.fromkeys(key for step in steps for key in step if key.startswith("loss_nats/"))
    return [(name, f"loss of {name.split('/')[1]} (nats)") for name in names] if len(names) > 1 else []


def _series(stages: Mapping[str, list[dict[str, Any]]], name: str) -> dict[str, tuple[list[float], list[float | None]]]:
    return {
        stage: ([one["step"] for one in entries if name in one], [one[name] for one in entries if name in one])
        for stage, entries in stages.items()
        if any(one.get(name) is not None for one in entries)
    }


def _panels(curves: Mapping[str, Any], label: str, width: float) -> str | None:
    if not any(curves.values()):
        return None
    return _png(lambda path: plots.plot_panels(path, curves, label, width))


def _gain(path: Path, evaluation: Mapping[str, Any]) -> None:
    positions = evaluation["loss_nats_by_position"]
    means = {name: [entry["value"] for entry in entries] for name, entries in positions.items()}
    errors = {name: [entry["standard_error"] or 0.0 for entry in entries] for name, entries in positions.items()}
    plots.plot_context_gain(path, means, errors)


def _png(draw: Callable[[Path], None]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        draw(path)
        return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _stage_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each stage of each run."""
    rows = []
    for run in runs:
        for name, stage in run.status["stages"].items():
            recent = stage["recent"] or {}
            loss = recent.get("loss_nats")
            rows.append(
                {
                    "run": run.name,
                    "stage": name,
                    "state": stage["state"],
                    "steps": f"{stage['done_steps']:,} / {stage['steps']:,}",
                    "loss": "" if loss is None else f"{loss:.4f}",
                    "tokens per s": f"{recent['raw_tokens_per_s']:,.0f}" if recent else "",
                    "time": _duration(sum(stage["goodput_seconds"].values())) if recent else "",
                    "goodput": f"{stage['goodput']:.1%}" if stage["goodput"] is not None else "",
                    "skipped": str(stage["skipped_steps"] + stage["nonfinite_steps"]) if recent else "",
                    "restarts": str(stage["restarts"]),
                    "steps redone": str(stage["redone_steps"]),
                    "failed saves": str(stage["failed_saves"]),
                    "spikes": str(stage["spikes"]),
                }
            )
    return rows


def _measurements(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(quantity, a text for each run) of the held-out evaluations."""

    def of(run: Run) -> dict[str, str]:
        result = run.evaluation or {}
        losses, gains = result.get("loss_nats", {}), result.get("gain_nats", {})
        free = result.get("free_running") or {}
        rows = {f"loss, context {_CONTEXT[name]} (nats)": _pm(losses.get(name)) for name in _CONTEXT}
        rows |= {f"gain of {_CONTEXT[name]} (nats)": _pm(gains.get(name)) for name in ("latents", "raw")}
        rows["recovered share of the gain"] = _pm(result.get("recovered_share"))
        rows["verbatim repetition, tokens right"] = _pm(result.get("verbatim_token_accuracy"))
        rows["free-running repetition, tokens right"] = _pm(free.get("token_accuracy"))
        rows["free-running repetition, spans exact"] = _pm(free.get("exact_share"))
        return rows

    if not any(run.evaluation for run in runs):
        return []
    columns = [of(run) for run in runs]
    return [(name, [column[name] for column in columns]) for name in columns[0]]


_CONTEXT = {"none": "left out", "latents": "latents", "raw": "raw text"}


def _answers(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Prompts with the answer of every run that was asked the same, a few of each task."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run in runs:
        for entry in run.generations:
            shown = {"task": entry["task"], "prompt": entry["prompt"], "expected": entry["expected"], "answers": []}
            found.setdefault((entry["task"], entry["prompt"]), shown)["answers"].append((run.name, entry["answer"]))
    by_task: dict[str, list[dict[str, Any]]] = {}
    for one in found.values():
        by_task.setdefault(one["task"], []).append(one)
    each = max(1, _ANSWERS // max(1, len(by_task)))
    return [one for task in by_task.values() for one in task[:each]]


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, a value for each run) of the configuration keys that are not the same in all runs."""
    trees = [run.config.model_dump(mode="json", exclude={"name", "run_dir"}) for run in runs]
    keys = dict.fromkeys(key for tree in trees[1:] for key, _, _ in differing_keys(trees[0], tree))
    return [(key, [_at(tree, key) for tree in trees]) for key in keys]


def _at(tree: Any, key: str) -> str:
    for name in key.split("."):
        if not isinstance(tree, dict) or name not in tree:
            return "–"
        tree = tree[name]
    return str(tree)


def _pm(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate["value"] is None:
        return "–"
    error = estimate["standard_error"]
    return f"{estimate['value']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _si(count: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
