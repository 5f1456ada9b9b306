"""What the pipeline has done: one JSON file that survives kill -9, with time and memory by step."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from lclm_jax.errors import LclmError
from lclm_jax.files import write_json

_SAMPLE_SECONDS = 0.5

_SAVE_SECONDS = 5.0


class Ledger:
    """Steps of a run with wall time and peak memory, summed over interrupted attempts."""

    def __init__(self, path: Path):
        """Open ``path`` or begin an empty ledger."""
        self.path = path
        self.steps: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                self.steps = dict(json.loads(path.read_text(encoding="utf-8"))["steps"])
            except (LclmError, ValueError, KeyError, TypeError) as error:
                raise LclmError(
                    f"{path} is damaged ({error!r}); delete it: finished work is recognised by its own files"
                ) from None

    def done(self, name: str, fingerprint: str) -> bool:
        """Whether step ``name`` has finished with the same inputs."""
        entry = self.steps.get(name, {})
        return bool(entry.get("done")) and entry.get("fingerprint") == fingerprint

    @contextmanager
    def record(self, name: str, fingerprint: str) -> Iterator[dict[str, Any]]:
        """Run a step: measures it, and marks it done when the block ends without an exception.

        Yields the step's entry; what the block puts under ``result`` is kept.
        """
        old = self.steps.get(name, {})
        if old.get("fingerprint") != fingerprint:
            old = {}
        entry: dict[str, Any] = {
            "fingerprint": fingerprint,
            "done": False,
            "attempts": old.get("attempts", 0) + 1,
            "wall_seconds": old.get("wall_seconds", 0.0),
            "peak_memory_bytes": old.get("peak_memory_bytes", 0),
        }
        self.steps[name] = entry
        stop = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(entry, stop), name="ledger", daemon=True)
        watcher.start()
        try:
            yield entry
            entry["done"] = True
        finally:
            stop.set()
            watcher.join()
            self._save()

    def _watch(self, entry: dict[str, Any], stop: threading.Event) -> None:
        process = psutil.Process()
        before, begin = entry["wall_seconds"], time.monotonic()
        saved = begin
        last = False
        while not last:
            last = stop.wait(_SAMPLE_SECONDS)
            now = time.monotonic()
            entry["wall_seconds"] = round(before + now - begin, 3)
            entry["peak_memory_bytes"] = max(entry["peak_memory_bytes"], _resident_bytes(process))
            if now - saved > _SAVE_SECONDS:
                saved = now
                with suppress(LclmError):  # a full disk is reported when the step ends
                    self._save()

    def _save(self) -> None:
        write_json(self.path, {"steps": self.steps})


def _resident_bytes(process: psutil.Process) -> int:
    """Resident memory of the process and its children (data workers)."""
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended between the listing and the reading
    return total
