"""Progress, health and time left of a run, from its files alone: it may be running, dead or finished.

Nothing here imports JAX, so the answer comes at once, on any machine that sees the run's folder.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from lclm_jax.config import Config, RunPaths
from lclm_jax.ops.goodput import goodput, productive_fraction, total
from lclm_jax.paths import is_remote
from lclm_jax.train.checkpoints.step_folders import complete_steps
from lclm_jax.train.logging import events, records
from lclm_jax.train.logging.records import working_seconds
from lclm_jax.types import JsonObject

RECENT = 50
"""Number of steps that recent means are taken over."""
_SILENT_SECONDS = 120.0

State = Literal["not begun", "finished", "stopped", "running", "silent"]
"""``stopped``: saved and exited on request. ``silent``: no sign of life for long, the processes may be dead."""


class Recent(TypedDict):
    """Means over the last ``RECENT`` steps of a stage."""

    loss_nats: float | None
    raw_tokens_per_s: float
    decoder_fill: float
    data_wait_share: float
    step_seconds: float
    """Wall time per step; saves and evaluation included, as they recur, compilation not."""
    learning_rates: dict[str, float]
    """Part of the model -> rate of the last step."""
    mfu: NotRequired[float]
    memory_bytes: NotRequired[float]


class StageStatus(TypedDict):
    """One stage."""

    state: State
    done_steps: int
    steps: int
    checkpoints: list[int]
    last_sign_unix_seconds: float | None
    recent: Recent | None
    """None before the first step."""
    skipped_steps: int
    nonfinite_steps: int
    restarts: int
    redone_steps: int
    failed_saves: int
    spikes: int
    rewinds: int
    stops: int
    last_failure: str | None
    """Why the last failed save failed."""
    goodput_seconds: dict[str, float]
    """By kind, see ``goodput.KINDS``."""
    goodput: float | None
    eta_seconds: float | None
    eta_is_rough: bool
    """Derived from the pace of an earlier stage."""


class RunStatus(TypedDict):
    """A whole run."""

    name: str
    stage: str
    """The stage that it is at."""
    state: State
    """Of that stage."""
    silent_seconds: float | None
    """Since the last sign of life; None if there was none."""
    eta_seconds: float | None
    """Training time left; None before the first step."""
    goodput_seconds: dict[str, float]
    goodput: float | None
    stages: dict[str, StageStatus]


def run_status(config: Config, now: float | None = None) -> RunStatus:
    """Status of a run and of each of its stages, as plain values.

    Args:
        config: the run, ``run_dir`` set.
        now: seconds since the epoch; None: the clock.
    """
    now = time.time() if now is None else now
    stages = {name: stage_status(config, name, now) for name in config.stages}
    current = next((name for name, stage in stages.items() if stage["state"] != "finished"), list(stages)[-1])
    _add_estimates(config, stages)
    signs = [stage["last_sign_unix_seconds"] for stage in stages.values() if stage["last_sign_unix_seconds"]]
    seconds = total(stage["goodput_seconds"] for stage in stages.values())
    left = [stage["eta_seconds"] for stage in stages.values()]
    return {
        "name": config.name,
        "stage": current,
        "state": stages[current]["state"],
        "silent_seconds": now - max(signs) if signs else None,
        "eta_seconds": None if None in left else sum(one for one in left if one is not None),
        "goodput_seconds": seconds,
        "goodput": productive_fraction(seconds),
        "stages": stages,
    }


def stage_status(config: Config, stage: str, now: float) -> StageStatus:
    """Status of one stage, without an estimate of its time left."""
    folder = RunPaths(config).stage(stage)
    steps, happened = list(records.read_metrics(folder / records.NAME)), list(events.read_events(folder))
    saved = complete_steps(folder / "checkpoints")
    seconds = goodput(steps, happened)
    counts = Counter(event["kind"] for event in happened)
    recent, sign = _recent(steps), _last_sign(folder, steps, happened)
    return {
        "state": _state(config.stages[stage].steps, saved, happened, recent, sign and now - sign),
        "done_steps": steps[-1]["step"] + 1 if steps else (saved[-1] if saved else 0),
        "steps": config.stages[stage].steps,
        "checkpoints": saved,
        "last_sign_unix_seconds": sign,
        "recent": recent,
        "skipped_steps": sum(bool(step["skipped"]) for step in steps),
        "nonfinite_steps": sum(bool(step["nonfinite"]) for step in steps),
        "restarts": max(0, counts["begin"] - 1),
        "redone_steps": sum(event["redone_steps"] for event in happened if event["kind"] == "begin"),
        "failed_saves": counts["save_failed"],
        "spikes": counts["spike"],
        "rewinds": counts["rewind"],
        "stops": counts["stop"],
        "last_failure": next((one["message"] for one in reversed(happened) if one["kind"] == "save_failed"), None),
        "goodput_seconds": seconds,
        "goodput": productive_fraction(seconds),
        "eta_seconds": None,
        "eta_is_rough": False,
    }


def _recent(steps: list[JsonObject]) -> Recent | None:
    last = steps[-RECENT:]
    if not last:
        return None
    losses = [step["loss_nats"] for step in last if step["loss_nats"] is not None]
    working = sum(working_seconds(step) for step in last)
    recent: Recent = {
        "loss_nats": sum(losses) / len(losses) if losses else None,
        "raw_tokens_per_s": sum(step["raw_tokens"] for step in last) / working,
        "decoder_fill": sum(step["decoder_fill"] for step in last) / len(last),
        "data_wait_share": sum(step["data_wait_seconds"] for step in last) / sum(step["wall_seconds"] for step in last),
        "step_seconds": sum(step["wall_seconds"] - step.get("compile_seconds", 0.0) for step in last) / len(last),
        "learning_rates": {n.split("/")[1]: v for n, v in last[-1].items() if n.startswith("learning_rate/")},
    }
    if "mfu" in last[-1]:
        recent["mfu"] = last[-1]["mfu"]
    if memory := [step["memory_bytes"] for step in steps[-1000:] if "memory_bytes" in step]:
        recent["memory_bytes"] = memory[-1]
    return recent


def _last_sign(folder: Path, steps: list[JsonObject], happened: list[JsonObject]) -> float | None:
    """When the stage last wrote a step or an event, seconds since the epoch."""
    times = [step["unix_seconds"] for step in steps[-1:] if "unix_seconds" in step]
    times += [event["time"] for event in happened[-1:]]
    if not times and steps and not is_remote(folder):  # records of an earlier version hold no time
        times = [(folder / records.NAME).stat().st_mtime]
    return max(times, default=None)


def _state(steps: int, saved: list[int], happened: list[JsonObject], recent: Recent | None, age: float | None) -> State:
    """The state of a stage; ``age``: seconds since its last sign of life, None if there was none."""
    if saved and saved[-1] >= steps:
        return "finished"
    if age is None:
        return "not begun"
    if happened and happened[-1]["kind"] == "stop":
        return "stopped"
    patience = max(_SILENT_SECONDS, 10 * recent["step_seconds"] if recent else 600.0)
    return "running" if age < patience else "silent"


def _add_estimates(config: Config, stages: dict[str, StageStatus]) -> None:
    """Set ``eta_seconds`` of each stage from its own pace or, before it begins, from that of the last stage that did.

    The pace of another stage is scaled by decoder positions, which is rough: other parts may train.
    """
    per_position: float | None = None
    for name, stage in stages.items():
        positions = config.stages[name].batch_rows * config.pack(name).row_length
        if stage["recent"]:
            per_position = stage["recent"]["step_seconds"] / positions
        left = 0 if stage["state"] == "finished" else stage["steps"] - stage["done_steps"]
        stage["eta_seconds"] = 0.0 if not left else None if per_position is None else left * positions * per_position
        stage["eta_is_rough"] = bool(left) and not stage["recent"]
