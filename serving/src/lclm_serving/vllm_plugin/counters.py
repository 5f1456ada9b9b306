"""Counts of work, kept in a small shared file: the engine's process counts, the server's shows them to Prometheus."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "requested": ("lclm_windows_requested", "Windows of text in prompts."),
    "encoded": ("lclm_windows_encoded", "Windows that the encoder read."),
    "stored": ("lclm_windows_stored", "Windows whose vectors came from the store of latents."),
    "tokens": ("lclm_memory_tokens", "Encoder tokens of all spans in prompts."),
    "latents": ("lclm_memory_latents", "Positions that latents took in prompts."),
    "text": ("lclm_text_tokens", "Positions that text took in prompts."),
    "lost": ("lclm_store_lost_writes", "Windows that the store of latents could not keep."),
    "damaged": ("lclm_store_damaged", "Entries of the store of latents that were damaged."),
}
"""Key -> (metric, what it counts)."""
CACHED = (
    "lclm_windows_cached",
    "Windows in prompts that were neither encoded nor stored: vLLM's caches had them, or they still wait.",
)
FILE = "LCLM_COUNTERS"
"""Environment variable with the file's path: the first process makes it, the others inherit it."""


class Counters:
    """The counts of one server."""

    def __init__(self, path: str | Path):
        self._values = np.memmap(path, np.int64, mode="r+", shape=(len(NAMES),))

    def add(self, **counts: int) -> None:
        """Count; each name is only ever counted by one thread of one process."""
        for name, count in counts.items():
            self._values[list(NAMES).index(name)] += count

    def read(self) -> dict[str, int]:
        """Every count."""
        return dict(zip(NAMES, map(int, self._values), strict=True))


def share() -> None:
    """Make the file of counts unless a parent process has, and let Prometheus read it."""
    if FILE in os.environ:
        return
    handle, path = tempfile.mkstemp(prefix="lclm-counters-")
    os.write(handle, bytes(8 * len(NAMES)))
    os.close(handle)
    os.environ[FILE] = path
    from prometheus_client import REGISTRY

    REGISTRY.register(_Collector(path))


def shared() -> Counters | None:
    """The counts of this server; None where nobody shared any."""
    path = os.environ.get(FILE)
    return Counters(path) if path and Path(path).is_file() else None


class _Collector:
    """What ``/metrics`` asks."""

    def __init__(self, path: str):
        self._counters = Counters(path)

    def collect(self) -> Iterator[Any]:
        """One counter per name, and what is left of the windows."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        found = self._counters.read()
        for name, value in found.items():
            yield CounterMetricFamily(*NAMES[name], value=value)
        cached = max(found["requested"] - found["encoded"] - found["stored"], 0)
        yield GaugeMetricFamily(*CACHED, value=cached)
