"""The report of a run: report.json for programs, report.md with plots for people."""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lclm_jax import __version__
from lclm_jax.config import Config, RunPaths, config_hash, dump_config
from lclm_jax.data.loading.index_summary import read_info
from lclm_jax.errors import LclmError
from lclm_jax.files import write_json
from lclm_jax.report import plots
from lclm_jax.train.logging.records import read_metrics

_PACKAGES = ("jax", "flax", "optax", "grain", "orbax-checkpoint", "array-record", "tokenizers", "numpy")


def build_report(config: Config, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Gather what the run's files hold and write report.json, report.md and plots/.

    Args:
        config: the run.
        steps: the steps of the pipeline, by name.

    Returns:
        The content of report.json.
    """
    paths = RunPaths(config)
    evaluation = read_json(paths.evaluation)
    generations = read_json(paths.generations)
    curves = {name: list(read_metrics(paths.stage(name) / "metrics.jsonl")) for name in config.stages}
    report = summary(config, evaluation, curves, steps)
    report["rows"] = {name: _rows(read_info(paths.stage(name) / "index")) for name in config.stages}
    report["evaluation_skipped"] = evaluation["skipped"]
    write_json(paths.report.with_suffix(".json"), report | {"evaluation": evaluation, "generations": generations})
    draw_plots(paths.report.parent / "plots", evaluation, curves, steps)
    text = markdown(config, report, evaluation, generations)
    paths.report.write_text(text, encoding="utf-8")
    return report


def read_json(path: Path) -> Any:
    """The JSON in ``path``; raises ``LclmError`` that names the command that makes it."""
    if not path.exists():
        raise LclmError(f"{path} is missing; run `lclm pipeline` to make it")
    return json.loads(path.read_text(encoding="utf-8"))


def summary(
    config: Config,
    evaluation: Mapping[str, Any],
    curves: Mapping[str, list[dict[str, Any]]],
    steps: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The numbers of report.json: plain values, each estimate with its standard error beside it."""
    speeds = [entry["raw_tokens_per_s"] for entries in curves.values() for entry in entries[1:]]
    losses = evaluation["loss_nats"]
    return {
        "name": config.name,
        "recovered_share": evaluation["recovered_share"]["value"],
        "recovered_share_standard_error": evaluation["recovered_share"]["standard_error"],
        "verbatim_token_accuracy": evaluation["verbatim_token_accuracy"]["value"],
        "verbatim_token_accuracy_standard_error": evaluation["verbatim_token_accuracy"]["standard_error"],
        "loss_nats": {name: losses[name]["value"] for name in losses},
        "loss_nats_standard_error": {name: losses[name]["standard_error"] for name in losses},
        "gain_nats": {name: gain["value"] for name, gain in evaluation["gain_nats"].items()},
        "gain_nats_standard_error": {name: gain["standard_error"] for name, gain in evaluation["gain_nats"].items()},
        "repetition_gain_nats": evaluation["repetition_gain_nats"]["value"],
        "repetition_gain_nats_standard_error": evaluation["repetition_gain_nats"]["standard_error"],
        "held_out_tokens": evaluation["held_out_tokens"],
        "raw_tokens_per_s": float(np.mean(speeds)) if speeds else None,
        "raw_tokens_per_s_standard_error": (
            float(np.std(speeds, ddof=1) / np.sqrt(len(speeds))) if len(speeds) > 1 else None
        ),
        "wall_seconds": sum(step["wall_seconds"] for step in steps.values()),
        "peak_memory_bytes": max((step["peak_memory_bytes"] for step in steps.values()), default=0),
        "steps": {
            name: {key: step[key] for key in ("wall_seconds", "peak_memory_bytes", "attempts")}
            for name, step in steps.items()
        },
        "prepared": {name: step.get("result") for name, step in steps.items() if name in ("corpus", "prepare")},
        "environment": environment(),
        "config_hash": config_hash(config),
        "config": config.model_dump(mode="json"),
    }


def _rows(info: Mapping[str, Any]) -> dict[str, Any]:
    """What the report keeps of a stage's row index."""
    return {name: info[name] for name in ("rows", "examples", "decoder_fill", "encoder_fill", "raw_tokens", "sources")}


def environment() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return {"lclm_jax": __version__, "python": platform.python_version(), "machine": platform.machine(), **packages}


def draw_plots(
    folder: Path,
    evaluation: Mapping[str, Any],
    curves: Mapping[str, list[dict[str, Any]]],
    steps: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the PNG plots of the report."""

    def series(name: str) -> dict[str, tuple[list[float], list[float]]]:
        return {
            stage: ([entry["step"] for entry in entries], [entry[name] for entry in entries])
            for stage, entries in curves.items()
        }

    plots.plot_stages(folder / "loss.png", series("loss_nats"), "training loss (nats per token)")
    speed = {stage: (x[1:], y[1:]) for stage, (x, y) in series("raw_tokens_per_s").items()}
    plots.plot_stages(folder / "speed.png", speed, "raw tokens per second")
    positions = evaluation["loss_nats_by_position"]
    plots.plot_context_gain(
        folder / "context_gain.png",
        {name: [entry["value"] for entry in entries] for name, entries in positions.items()},
        {name: _errors(entries) for name, entries in positions.items()},
    )
    depth = evaluation["verbatim_accuracy_by_depth"]
    plots.plot_depth(folder / "repetition.png", [entry["value"] for entry in depth], _errors(depth))
    shown = {name: step for name, step in steps.items() if name != "report"}
    plots.plot_cost(
        folder / "cost.png",
        list(shown),
        [step["wall_seconds"] for step in shown.values()],
        [step["peak_memory_bytes"] for step in shown.values()],
    )


def _errors(entries: list[dict[str, Any]]) -> list[float]:
    return [entry["standard_error"] or 0.0 for entry in entries]


def markdown(config: Config, report: Mapping[str, Any], evaluation: Mapping[str, Any], generations: list) -> str:
    """report.md."""
    sections = [
        _headline(config, report, evaluation),
        _context_gain(evaluation),
        _repetition(evaluation),
        ["## Training", "", "![loss](plots/loss.png)", "![speed](plots/speed.png)", ""],
        _data(report),
        _answers(generations),
        _cost(report),
        _origin(config, report),
    ]
    return "\n".join(line for section in sections for line in section)


def _headline(config: Config, report: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    model, speed, speed_error = config.model, report["raw_tokens_per_s"], report["raw_tokens_per_s_standard_error"]
    error = f" ± {speed_error:,.0f}" if speed_error else ""
    return [
        f"# {config.name}",
        "",
        f"Compression {model.ratio}x, windows of {model.window} tokens, {model.mask} mask, {model.pooling} pooling,"
        f" {model.adapter.type} adapter. Measured on {report['held_out_tokens']:,} tokens of held-out files that"
        " neither training nor the tokenizer has seen. ± is one standard error over files.",
        "",
        "| | |",
        "|---|---|",
        f"| recovered share of the context gain | {_pm(evaluation['recovered_share'])} |",
        f"| token accuracy of verbatim repetition from latents | {_pm(evaluation['verbatim_token_accuracy'])} |",
        f"| speed in training | {'unknown' if speed is None else f'{speed:,.0f}{error} raw tokens/s'} |",
        f"| wall time | {report['wall_seconds'] / 60:.1f} min |",
        f"| peak memory | {report['peak_memory_bytes'] / 1e9:.2f} GB |",
        "",
    ]


def _context_gain(evaluation: Mapping[str, Any]) -> list[str]:
    settings = evaluation["settings"]
    return [
        "## What context is worth",
        "",
        f"Loss of {settings['continuation_tokens']} tokens after {settings['context_tokens']} tokens of context."
        " The gain is the loss saved against no context.",
        "",
        "| context | loss (nats per token) | gain (nats per token) |",
        "|---|---|---|",
        *(_gain_row(name, label, evaluation) for name, label in _VARIANTS.items()),
        "",
        "![loss by position](plots/context_gain.png)",
        "",
    ]


def _data(report: Mapping[str, Any]) -> list[str]:
    """What was used of the corpus, and what was left out by reason."""
    lines = ["## Data", "", "| what | used | left out or cut |", "|---|---|---|"]
    prepared = (report["prepared"].get("prepare") or {}).get("collections", {})
    for collection, splits in prepared.items():
        for split, entry in splits.items():
            lines.append(f"| {collection}, {split} | {entry['records']:,} records | {_reasons(entry['counts'])} |")
    for stage, rows in report["rows"].items():
        for source, entry in rows["sources"].items():
            lines.append(f"| {stage}, {source} | {entry['examples']:,} examples | {_reasons(entry['dropped'])} |")
    for task, counts in report["evaluation_skipped"].items():
        lines.append(f"| evaluation, {task} | | {_reasons(counts)} |")
    return [*lines, ""]


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items() if count)


def _cost(report: Mapping[str, Any]) -> list[str]:
    rows = (
        f"| {name} | {step['wall_seconds']:.1f} | {step['peak_memory_bytes'] / 1e6:.0f} | {step['attempts']} |"
        for name, step in report["steps"].items()
    )
    head = ["## Cost", "", "![cost](plots/cost.png)", "", "| step | wall time (s) | peak memory (MB) | attempts |"]
    return [*head, "|---|---|---|---|", *rows, ""]


def _origin(config: Config, report: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in report["environment"].items())
    head = ["## Environment and configuration", "", versions, "", f"Hash {report['config_hash']}.", ""]
    return [*head, "```yaml", dump_config(config).rstrip(), "```", ""]


_VARIANTS = {"none": "none", "latents": "latents", "raw": "raw text"}


def _pm(estimate: Mapping[str, Any]) -> str:
    error = estimate["standard_error"]
    return f"{estimate['value']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _gain_row(name: str, label: str, evaluation: Mapping[str, Any]) -> str:
    gain = evaluation["gain_nats"].get(name)
    return f"| {label} | {_pm(evaluation['loss_nats'][name])} | {_pm(gain) if gain else ''} |"


def _repetition(evaluation: Mapping[str, Any]) -> list[str]:
    losses, free = evaluation["repetition_loss_nats"], evaluation["free_running"]
    lines = [
        "## Verbatim repetition",
        "",
        f"Spans of up to {evaluation['settings']['repetition_tokens']} tokens, each token predicted after the true ones"
        f" before it: {_pm(evaluation['verbatim_token_accuracy'])} right. Loss {_pm(losses['latents'])} nats with"
        f" latents, {_pm(losses['none'])} without.",
    ]
    if free:
        lines.append(
            f"Free-running greedy repetition of {free['exact_share']['count']} spans: {_pm(free['token_accuracy'])} of"
            f" tokens right, {_pm(free['exact_share'])} of spans exact."
        )
    return [*lines, "", "![accuracy by depth](plots/repetition.png)", ""]


def _answers(generations: list[Mapping[str, str]]) -> list[str]:
    lines = [
        "## Answers of the exported model",
        "",
        "Greedy, from the exported folder read back. The text in memory tags reached the decoder as latents only.",
        "",
    ]
    fence = "~~~~"
    for entry in generations:
        lines += [f"**{entry['task']}** ({entry['id']})", "", fence, entry["prompt"].strip("\n"), fence]
        lines += ["answered", fence, entry["answer"].strip("\n"), fence]
        if entry["expected"] is not None:
            lines += ["expected", fence, entry["expected"].strip("\n"), fence]
        lines.append("")
    return lines
