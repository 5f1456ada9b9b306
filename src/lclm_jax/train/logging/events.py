"""Events of a stage besides its steps: starts, saves, failures, rewinds, stops; one line of JSON each.

``metrics.jsonl`` is cut back when a stage resumes from a checkpoint; this file never is, so the time that restarts
cost stays known.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lclm_jax.files import make_folder
from lclm_jax.paths import is_remote
from lclm_jax.train.logging.line_files import LineFile, open_lines
from lclm_jax.train.logging.records import read_metrics
from lclm_jax.types import JsonObject

NAME = "events.jsonl"

Event = JsonObject


class Events:
    """``events.jsonl`` of a stage, appended to by the first process only."""

    def __init__(self, folder: Path, writes: bool = True):
        self._path = folder / NAME if writes else None
        self._lines: LineFile | None = None
        if writes:
            make_folder(folder)

    def write(self, kind: str, **facts: object) -> None:
        """Append an event with the time (seconds since the epoch) and this process's number.

        A disk that is full, or a bucket that refuses, costs the line and not the run: the checkpoint policy decides
        what that is worth.
        """
        if self._path is None:
            return
        line = json.dumps({"time": time.time(), "pid": os.getpid(), "kind": kind, **facts}).encode() + b"\n"
        try:
            if is_remote(self._path):
                self._lines = self._lines or open_lines(self._path, background=False)
                self._lines.append([line])
                self._lines.flush()  # events are few; one that cannot be sent waits for the next
                return
            with self._path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError:
            return


def read_events(folder: Path) -> Iterator[Event]:
    """Events of a stage in order."""
    return read_metrics(folder / NAME)
