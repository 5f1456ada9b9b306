"""The status of runs as a text file for Prometheus: the textfile collector of its node exporter reads it.

The format is that of prometheus.io/docs/instrumenting/exposition_formats.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, get_args

from lclm_jax.ops.status import RunStatus, StageStatus, State


class _Gauge(NamedTuple):
    name: str
    help: str
    value: Callable[[StageStatus], float | None]


def _recent(key: str) -> Callable[[StageStatus], float | None]:
    return lambda stage: None if stage["recent"] is None else stage["recent"].get(key)  # type: ignore[return-value]


_GAUGES = (
    _Gauge("lclm_steps_done", "Updates made", lambda stage: stage["done_steps"]),
    _Gauge("lclm_steps", "Updates of the stage", lambda stage: stage["steps"]),
    _Gauge("lclm_loss_nats", "Mean loss of the last steps", _recent("loss_nats")),
    _Gauge("lclm_raw_tokens_per_second", "Raw tokens a second, last steps", _recent("raw_tokens_per_s")),
    _Gauge("lclm_step_seconds", "Wall time of a step, last steps", _recent("step_seconds")),
    _Gauge("lclm_data_wait_share", "Share of the time that the loop waited for data", _recent("data_wait_share")),
    _Gauge("lclm_mfu", "Model FLOPs utilisation, last steps", _recent("mfu")),
    _Gauge("lclm_goodput", "Share of the time that was spent on steps", lambda stage: stage["goodput"]),
    _Gauge("lclm_eta_seconds", "Training time left", lambda stage: stage["eta_seconds"]),
    _Gauge(
        "lclm_checkpoint_step", "Step of the newest checkpoint", lambda stage: max(stage["checkpoints"], default=None)
    ),
    _Gauge("lclm_last_sign_timestamp_seconds", "Last sign of life", lambda stage: stage["last_sign_unix_seconds"]),
    _Gauge("lclm_restarts", "Restarts of the stage", lambda stage: stage["restarts"]),
    _Gauge("lclm_redone_steps", "Steps that were made again after restarts", lambda stage: stage["redone_steps"]),
    _Gauge("lclm_failed_saves", "Checkpoints that could not be written", lambda stage: stage["failed_saves"]),
    _Gauge("lclm_loss_spikes", "Loss spikes that were noticed", lambda stage: stage["spikes"]),
    _Gauge("lclm_skipped_steps", "Steps left out", lambda stage: stage["skipped_steps"]),
    _Gauge("lclm_nonfinite_steps", "Steps that were not finite", lambda stage: stage["nonfinite_steps"]),
)


def prometheus_text(runs: Mapping[str, RunStatus]) -> str:
    """Every number of ``runs`` (folder -> status) as gauges, and ``lclm_stage_state`` with the state of each stage.

    Labels are folder, run (its name) and stage.
    """
    stages = [
        ({"folder": folder, "run": run["name"], "stage": name}, stage)
        for folder, run in runs.items()
        for name, stage in run["stages"].items()
    ]
    lines = []
    for gauge in _GAUGES:
        values = [(labels, gauge.value(stage)) for labels, stage in stages]
        lines += _block(gauge.name, gauge.help, [(labels, value) for labels, value in values if value is not None])
    states = [
        (labels | {"state": state}, int(stage["state"] == state))
        for labels, stage in stages
        for state in get_args(State)
    ]
    return "\n".join([*lines, *_block("lclm_stage_state", "1 for the state that the stage is in", states)]) + "\n"


def _block(name: str, text: str, values: Sequence[tuple[dict[str, str], float]]) -> list[str]:
    head = [f"# HELP {name} {text}", f"# TYPE {name} gauge"] if values else []
    return [*head, *(f"{name}{{{_labels(labels)}}} {value!r}" for labels, value in values)]


def _labels(labels: dict[str, str]) -> str:
    escaped = {
        key: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for key, value in labels.items()
    }
    return ",".join(f'{key}="{value}"' for key, value in escaped.items())
