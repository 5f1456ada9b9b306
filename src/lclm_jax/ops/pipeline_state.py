"""What the pipeline has done: one JSON file that survives kill -9, with time and memory by step."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import psutil

from lclm_jax.config import Config
from lclm_jax.errors import LclmError
from lclm_jax.files import write_json
from lclm_jax.types import JsonObject

logger = logging.getLogger(__name__)

_SAMPLE_SECONDS = 0.5
_SAVE_SECONDS = 5.0


class StepState(TypedDict):
    """What ``pipeline.json`` holds about one step; time and peak memory are over all attempts."""

    fingerprint: str
    done: bool
    attempts: int
    wall_seconds: float
    peak_memory_bytes: int
    result: NotRequired[JsonObject]


@dataclass(frozen=True)
class Step:
    """One step of the pipeline.

    Attributes:
        name: as reports and logs show it.
        run: does the work; returns what the report shows of it.
        fingerprint: of the settings that it depends on and that may change between calls.
    """

    name: str
    run: Callable[[Config], JsonObject]
    fingerprint: str


def run_steps(config: Config, steps: Sequence[Step], path: Path) -> bool:
    """Run the ``steps`` that ``path`` does not hold as done, and all steps after the first of these.

    Returns:
        Whether any step ran.
    """
    state = PipelineState(path)
    redo = False
    for number, step in enumerate(steps, 1):
        title = f"[{number}/{len(steps)}] {step.name}"
        if not redo and state.done(step.name, step.fingerprint):
            logger.info("%s: already done", title)
            continue
        redo = True  # the steps after one that ran are stale
        logger.info("%s", title)
        with state.record(step.name, step.fingerprint) as entry:
            entry["result"] = step.run(config)
        logger.info(
            "%s: done in %.1f s, peak memory %.0f MB", title, entry["wall_seconds"], entry["peak_memory_bytes"] / 1e6
        )
    return redo


class PipelineState:
    """Steps of a run with wall time and peak memory, summed over interrupted attempts."""

    def __init__(self, path: Path):
        """Read ``path``, or start without any step if it does not exist."""
        self.path = path
        self.steps: dict[str, StepState] = {}
        if path.exists():
            try:
                self.steps = dict(json.loads(path.read_text(encoding="utf-8"))["steps"])
            except (ValueError, KeyError, TypeError) as error:
                raise LclmError(
                    f"{path} is damaged ({error!r}); delete it: finished work is recognised by its own files"
                ) from None

    def done(self, name: str, fingerprint: str) -> bool:
        """Whether step ``name`` has finished with the same inputs."""
        entry = self.steps.get(name)
        # Older runs stored "{}" for the steps before training: where their corpus lay could not change.
        return entry is not None and entry["done"] and entry["fingerprint"] in (fingerprint, "{}")

    @contextmanager
    def record(self, name: str, fingerprint: str) -> Iterator[StepState]:
        """Run a step: measures it, and marks it done when the block ends without an exception.

        Yields the step's entry; what the block puts under ``result`` is kept.
        """
        old = self.steps.get(name)
        if old is not None and old["fingerprint"] != fingerprint:
            old = None
        entry: StepState = {
            "fingerprint": fingerprint,
            "done": False,
            "attempts": 1 + (old["attempts"] if old else 0),
            "wall_seconds": old["wall_seconds"] if old else 0.0,
            "peak_memory_bytes": old["peak_memory_bytes"] if old else 0,
        }
        self.steps[name] = entry
        stop = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(entry, stop), name="pipeline-state", daemon=True)
        sampler.start()
        try:
            yield entry
            entry["done"] = True
        finally:
            stop.set()
            sampler.join()
            self._save()

    def _sample(self, entry: StepState, stop: threading.Event) -> None:
        """Keep time and peak memory of ``entry`` current until ``stop`` is set; save now and then."""
        process = psutil.Process()
        before, begin = entry["wall_seconds"], time.monotonic()
        saved = begin
        last = False
        while not last:
            last = stop.wait(_SAMPLE_SECONDS)
            now = time.monotonic()
            entry["wall_seconds"] = round(before + now - begin, 3)
            with suppress(psutil.Error, OSError):  # a look less; time goes on being counted
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
            continue  # it exited between listing and reading
    return total
