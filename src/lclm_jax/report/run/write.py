"""The report of a run: report.json for programs, report.md with plots or one HTML page for people."""

import platform
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from lclm_jax.config import Config, RunPaths, config_hash
from lclm_jax.data.loading.index_summary import read_info
from lclm_jax.files import write_json, write_text
from lclm_jax.ops.pipeline_state import StepState
from lclm_jax.paths import is_remote, send_folder
from lclm_jax.report import document
from lclm_jax.report.run import sections
from lclm_jax.report.run.figures import draw
from lclm_jax.report.run.read import read_json, read_run, read_runs
from lclm_jax.train.logging.records import read_metrics
from lclm_jax.types import JsonObject, ReadOnlyJson
from lclm_jax.version import __version__

_PACKAGES = ("jax", "flax", "optax", "grain", "orbax-checkpoint", "array-record", "tokenizers", "numpy")


def write_page(configs: Sequence[Config], out: Path) -> None:
    """Write the page about the runs of ``configs`` (``run_dir`` set) to ``out``; it needs no other file and no network.

    Raises:
        LclmError: a run has not trained a step.
    """
    runs = read_runs(configs)
    with tempfile.TemporaryDirectory() as folder:
        content = sections.write(runs, draw(runs, Path(folder)))
        page = document.html(" and ".join(run.name for run in runs), content, Path(folder))
    write_text(out, page)


def build_report(config: Config, steps: Mapping[str, StepState]) -> JsonObject:
    """Gather what the files of a finished run hold and write report.json, report.md and plots/.

    Args:
        config: the run.
        steps: the steps of the pipeline, by name.

    Returns:
        The content of report.json.
    """
    paths = RunPaths(config)
    evaluation = read_json(paths.evaluation)
    report = summary(config, evaluation, steps)
    report["rows"] = {name: _rows(read_info(paths.local_stage(name) / "index")) for name in config.stages}
    report["evaluation_skipped"] = evaluation["skipped"]
    generations = read_json(paths.generations)
    write_json(paths.report.with_suffix(".json"), report | {"evaluation": evaluation, "generations": generations})
    runs = [read_run(config, config.name)]
    content = sections.write(runs, draw(runs, paths.local_root, brief=True))
    if is_remote(paths.root):
        send_folder(paths.local_root / "plots", paths.root / "plots")
    write_text(paths.report, document.markdown(config.name, content))
    return report


def summary(config: Config, evaluation: ReadOnlyJson, steps: Mapping[str, StepState]) -> JsonObject:
    """The numbers of report.json: plain values, each estimate with its standard error beside it."""
    paths = RunPaths(config)
    curves = [list(read_metrics(paths.stage(name) / "metrics.jsonl")) for name in config.stages]
    speeds = [entry["raw_tokens_per_s"] for entries in curves for entry in entries[1:]]
    losses, gains = evaluation["loss_nats"], evaluation["gain_nats"]
    return {
        "name": config.name,
        "recovered_share": evaluation["recovered_share"]["value"],
        "recovered_share_standard_error": evaluation["recovered_share"]["standard_error"],
        "verbatim_token_accuracy": evaluation["verbatim_token_accuracy"]["value"],
        "verbatim_token_accuracy_standard_error": evaluation["verbatim_token_accuracy"]["standard_error"],
        "loss_nats": {name: loss["value"] for name, loss in losses.items()},
        "loss_nats_standard_error": {name: loss["standard_error"] for name, loss in losses.items()},
        "gain_nats": {name: gain["value"] for name, gain in gains.items()},
        "gain_nats_standard_error": {name: gain["standard_error"] for name, gain in gains.items()},
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
            name: {
                "wall_seconds": step["wall_seconds"],
                "peak_memory_bytes": step["peak_memory_bytes"],
                "attempts": step["attempts"],
            }
            for name, step in steps.items()
        },
        "prepared": {name: step.get("result") for name, step in steps.items() if name in ("corpus", "prepare")},
        "environment": environment(),
        "config_hash": config_hash(config),
        "config": config.model_dump(mode="json"),
    }


def _rows(info: ReadOnlyJson) -> JsonObject:
    """What the report keeps of a stage's row index."""
    return {name: info[name] for name in ("rows", "examples", "decoder_fill", "encoder_fill", "raw_tokens", "sources")}


def environment() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return {"lclm_jax": __version__, "python": platform.python_version(), "machine": platform.machine(), **packages}
