"""``metrics.jsonl`` of a stage as others read it; light to import, for commands that look at a run from outside."""

import json
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.types import JsonObject

Record = JsonObject

NAME = "metrics.jsonl"

MEASURED = ("seconds", "_per_s", "_bytes", "mfu")
"""Ends of the names whose values two runs of the same steps do not share."""


def read_metrics(path: Path) -> Iterator[Record]:
    """The records of ``metrics.jsonl``, or of another file of one JSON object a line; none if there is no file.

    A line that a killed process, or a full disk, cut short is left out.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def losses_by_objective(record: Record) -> Iterator[tuple[str, float, float]]:
    """(objective, mean loss in nats, tokens) of a step; those without a token, or not finite, are left out."""
    prefix = "loss_nats/"
    for key, loss in record.items():
        if key.startswith(prefix) and loss is not None:
            name = key.removeprefix(prefix)
            yield name, loss, record[f"loss_tokens/{name}"]


def working_seconds(record: Record) -> float:
    """Wall time of a step less compilation, checkpoints, evaluation and hooks; above zero."""
    other = sum(record.get(f"{name}_seconds", 0.0) for name in ("compile", "checkpoint", "evaluation", "hooks"))
    return max(record["wall_seconds"] - other, 1e-9)
