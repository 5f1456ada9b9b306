"""``metrics.jsonl`` of a stage as others read it; light to import, for commands that look at a run from outside."""

import json
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.paths import is_remote, store_errors
from lclm_jax.types import JsonObject

Record = JsonObject

NAME = "metrics.jsonl"

MEASURED = ("seconds", "_per_s", "_bytes", "mfu")
"""Ends of the names whose values two runs of the same steps do not share."""


def read_metrics(path: Path) -> Iterator[Record]:
    """The records of ``metrics.jsonl``, or of another file of one JSON object a line; none if there is no file.

    A line that a killed process, or a full disk, cut short is left out.
    """
    for line in read_lines(path):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file that grows, with their line feeds; in a bucket it may be in parts (``line_files``)."""
    if not is_remote(path):
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from lines
        return
    with store_errors(path):
        files = [path, *sorted(parts_folder(path).glob("*.jsonl"))]
    for file in files:
        try:
            with store_errors(path):
                content = file.read_bytes()
        except FileNotFoundError:
            continue
        yield from content.decode("utf-8", "replace").splitlines(keepends=True)


def parts_folder(path: Path) -> Path:
    """Where the parts of a file that grows lie in a bucket."""
    return path.with_name(f"{path.name}.parts")


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
