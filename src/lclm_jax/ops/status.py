"""Where a run is, how it does and when it ends, from its files alone: it may be live, dead or finished.

Nothing here imports JAX, so the answer comes at once, on any machine that sees the run's folder.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lclm_jax.config import Config, RunPaths
from lclm_jax.ops.goodput import goodput, share, total
from lclm_jax.train.logging import events, records
from lclm_jax.train.logging.records import working_seconds

RECENT = 50
"""Steps that means are taken over."""
_SILENT_SECONDS = 120.0
_COUNTED = ("save_failed", "spike", "rewind", "stop")


def run_status(config: Config, now: float | None = None) -> dict[str, Any]:
    """Plain values of the whole run, and of each stage under ``stages``.

    Args:
        config: the run, ``run_dir`` set.
        now: seconds since the epoch; None: the clock.

    Returns:
        ``name``, ``stage`` (the one it is at), its ``state`` (see ``_state``), ``silent_seconds`` (since the last sign
        of life; None if there was none), ``eta_seconds`` (None if no step tells), ``goodput_seconds`` by kind,
        ``goodput`` and ``stages``.
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
        "eta_seconds": None if any(one is None for one in left) else sum(left),
        "goodput_seconds": seconds,
        "goodput": share(seconds),
        "stages": stages,
    }


def stage_status(config: Config, stage: str, now: float) -> dict[str, Any]:
    """Plain values of one stage; ``recent`` holds means over the last ``RECENT`` steps."""
    folder = RunPaths(config).stage(stage)
    steps, happened = list(records.read_metrics(folder / records.NAME)), list(events.read_events(folder))
    saved = sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())
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
        **{f"{kind}s" if kind != "save_failed" else "failed_saves": counts[kind] for kind in _COUNTED},
        "last_failure": next((one["message"] for one in reversed(happened) if one["kind"] == "save_failed"), None),
        "goodput_seconds": seconds,
        "goodput": share(seconds),
    }


def _recent(steps: list[dict[str, Any]]) -> dict[str, float] | None:
    """Means over the last steps: loss, speed, share of data wait, seconds of a step; None before the first step."""
    last = steps[-RECENT:]
    if not last:
        return None
    losses = [step["loss_nats"] for step in last if step["loss_nats"] is not None]
    working = sum(working_seconds(step) for step in last)
    means = {
        "loss_nats": sum(losses) / len(losses) if losses else None,
        "raw_tokens_per_s": sum(step["raw_tokens"] for step in last) / working,
        "decoder_fill": sum(step["decoder_fill"] for step in last) / len(last),
        "data_wait_share": sum(step["data_wait_seconds"] for step in last) / sum(step["wall_seconds"] for step in last),
        # Saves and evaluation come again, compilation does not.
        "step_seconds": sum(step["wall_seconds"] - step.get("compile_seconds", 0.0) for step in last) / len(last),
        "learning_rates": {n.split("/")[1]: v for n, v in last[-1].items() if n.startswith("learning_rate/")},
    }
    memory = [step["memory_bytes"] for step in steps[-1000:] if "memory_bytes" in step]
    return (
        means
        | ({"mfu": last[-1]["mfu"]} if "mfu" in last[-1] else {})
        | ({"memory_bytes": memory[-1]} if memory else {})
    )


def _last_sign(folder: Path, steps: list[dict[str, Any]], happened: list[dict[str, Any]]) -> float | None:
    """When the stage last wrote a step or an event, seconds since the epoch."""
    times = [step["unix_seconds"] for step in steps[-1:] if "unix_seconds" in step]
    times += [event["time"] for event in happened[-1:]]
    if not times and steps:  # lines of an earlier version carry no time
        times = [(folder / records.NAME).stat().st_mtime]
    return max(times, default=None)


def _state(
    steps: int, saved: list[int], happened: list[dict[str, Any]], recent: Mapping[str, Any] | None, age: float | None
) -> str:
    """``not begun``, ``finished``, ``stopped`` (saved on request), ``running``, or ``silent``: it may be dead."""
    if saved and saved[-1] >= steps:
        return "finished"
    if age is None:
        return "not begun"
    if happened and happened[-1]["kind"] == "stop":
        return "stopped"
    patience = max(_SILENT_SECONDS, 10 * recent["step_seconds"] if recent else 600.0)
    return "running" if age < patience else "silent"


def _add_estimates(config: Config, stages: dict[str, dict[str, Any]]) -> None:
    """Give each stage ``eta_seconds``, by its own pace or, before it begins, by that of the last stage that did.

    A foreign pace is scaled by decoder positions, which is rough: other parts may train.
    """
    per_position: float | None = None
    for name, stage in stages.items():
        positions = config.stages[name].batch_rows * config.pack(name).row_length
        if stage["recent"]:
            per_position = stage["recent"]["step_seconds"] / positions
        left = 0 if stage["state"] == "finished" else stage["steps"] - stage["done_steps"]
        stage["eta_seconds"] = 0.0 if not left else None if per_position is None else left * positions * per_position
        stage["eta_is_rough"] = bool(left) and not stage["recent"]
