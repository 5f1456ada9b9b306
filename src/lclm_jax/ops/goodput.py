"""Where the time of a stage went, from its metrics and events; restarts included.

A step's record says how its wall time was spent. What a restart costs is in the events: the records of steps that are
made once more are cut off, and their seconds go into the ``begin`` event; what a stage does after its last step (save,
probe) is in events marked ``final``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

KINDS = ("step", "compile", "data_wait", "checkpoint", "evaluation", "logging", "start", "restart")
"""What time goes to. step: computing, all that is nothing else. data_wait: the loop stood still for a batch (the device
may still have been busy). start: from turning to the stage to its first step. restart: from the last sign of life
before a death or stop to the first step after, and the steps that were made once more."""

_SPENT = ("compile", "data_wait", "checkpoint", "evaluation", "logging")
_FINAL = {"save": "checkpoint", "probe": "evaluation"}


def goodput(records: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by kind (``KINDS``) of one stage.

    Args:
        records: of ``metrics.jsonl``.
        events: of ``events.jsonl``, in order; those of a run of an earlier version say less, and less is counted.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    for record in records:
        seconds["step"] += record["wall_seconds"]
        for kind in _SPENT:
            seconds[kind] += record.get(f"{kind}_seconds", 0.0)
    seconds["step"] = max(0.0, seconds["step"] - sum(seconds[kind] for kind in _SPENT))
    alive: float | None = None
    for event in events:
        if event["kind"] == "begin":
            alive = max(alive or 0.0, event.get("alive_until") or 0.0) or None
            if alive is None:
                seconds["start"] += event["time"] - event.get("opened", event["time"])
            else:
                seconds["restart"] += max(0.0, event["time"] - alive) + event["redone_seconds"]
        elif event["kind"] in _FINAL and event.get("final"):
            seconds[_FINAL[event["kind"]]] += event["seconds"]
        alive = event["time"]
    return seconds


def total(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sum of several stages' seconds by kind."""
    parts = list(parts)
    return {kind: sum(part[kind] for part in parts) for kind in KINDS}


def share(seconds: Mapping[str, float]) -> float | None:
    """Goodput: the part of the time that steps took; None before the first."""
    whole = sum(seconds.values())
    return seconds["step"] / whole if whole else None
