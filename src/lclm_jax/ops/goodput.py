"""Where the time of a stage went, from its metrics and events, restarts included.

The record of a step says how its wall time was spent. The cost of a restart is in the events: records of steps that are
repeated are cut off, and their seconds go into the ``begin`` event. What a stage does after its last step (save, probe)
is in events marked ``final``.
"""

from collections.abc import Iterable, Mapping

from lclm_jax.types import ReadOnlyJson

KINDS = ("step", "compile", "data_wait", "checkpoint", "evaluation", "logging", "start", "restart")
"""What time is spent on. step: computing, and all that is not listed apart. data_wait: the loop waited for a batch (the
device may still have been busy). start: from opening the stage to its first step. restart: from the last sign of life
before an exit or crash to the first step after it, and the steps that were repeated."""

_SPENT = ("compile", "data_wait", "checkpoint", "evaluation", "logging")
_FINAL = {"save": "checkpoint", "probe": "evaluation"}


def goodput(records: Iterable[ReadOnlyJson], events: Iterable[ReadOnlyJson]) -> dict[str, float]:
    """Seconds by kind (``KINDS``) of one stage.

    Args:
        records: of ``metrics.jsonl``.
        events: of ``events.jsonl``, in order; those of earlier versions hold less, and less is counted.
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


def productive_fraction(seconds: Mapping[str, float]) -> float | None:
    """Goodput: the fraction of the time that was spent on steps; None before the first step."""
    whole = sum(seconds.values())
    return seconds["step"] / whole if whole else None
