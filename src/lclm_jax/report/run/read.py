"""What the files of a run hold, read for its report; the run may be running, dead or finished."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lclm_jax.config import Config, RunPaths
from lclm_jax.errors import LclmError
from lclm_jax.ops.status import RunStatus, run_status
from lclm_jax.paths import to_path
from lclm_jax.train.logging import events, records
from lclm_jax.types import JsonObject

_PROBES = "probes.jsonl"  # the module that writes it imports JAX


class Run(NamedTuple):
    """What the files of one run hold."""

    name: str
    config: Config
    status: RunStatus
    curves: dict[str, list[JsonObject]]
    """Stage -> records of its steps."""
    probes: dict[str, list[JsonObject]]
    evaluation: JsonObject | None
    generations: list[JsonObject]
    report: JsonObject | None
    """report.json of the pipeline; None: the run did not get there, or is no pipeline's."""
    environment: dict[str, str]
    """Versions and devices."""


def read_runs(configs: Sequence[Config]) -> list[Run]:
    """Read several runs (``run_dir`` set); raises ``LclmError`` if one has not trained a step."""
    return [read_run(config, name) for config, name in zip(configs, _names(configs), strict=True)]


def _names(configs: Sequence[Config]) -> list[str]:
    """How the runs are called: their names, else the names of their folders, else their folders."""
    folders = [to_path(config.run_dir) for config in configs]
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
    report = _read(paths.report.with_suffix(".json"))
    return Run(
        name,
        config,
        run_status(config),
        curves,
        {stage: list(records.read_metrics(folder / _PROBES)) for stage, folder in folders.items()},
        _read(paths.evaluation),
        _read(paths.generations) or [],
        report,
        _environment(report, folders.values()),
    )


def _read(path: Path):
    return read_json(path) if path.exists() else None


def read_json(path: Path):
    """The JSON in ``path``; raises ``LclmError`` that names the command that makes it."""
    if not path.exists():
        raise LclmError(f"{path} is missing; run `lclm pipeline` to make it")
    return json.loads(path.read_text(encoding="utf-8"))


def _environment(report: JsonObject | None, folders: Iterable[Path]) -> dict[str, str]:
    """Versions and devices, as the pipeline's report and the ``begin`` events of stages hold them."""
    found = dict(report["environment"]) if report else {}
    for folder in folders:
        for event in events.read_events(folder):
            if event["kind"] == "begin":
                found |= event.get("environment", {})
    return found
