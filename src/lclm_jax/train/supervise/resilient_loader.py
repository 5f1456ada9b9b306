"""Batches for the loop with a time limit: a loader that stalls or dies is reopened at the same row."""

import logging
import queue
import re
import threading
from collections.abc import Callable

import jax

from lclm_jax.batch import Batch
from lclm_jax.data.loading.position import BatchLoader, BatchStats, Position
from lclm_jax.errors import LclmError
from lclm_jax.machine import explain_death, remedy

logger = logging.getLogger(__name__)

_ATTEMPTS = 3

_Entry = tuple[Batch, BatchStats] | Exception
"""A batch and what it holds, or what the loader raised."""


class DataStalled(LclmError):
    """The loader gave nothing in time, or died, several times in a row."""


class ResilientLoader:
    """Iterates over (batch, stats) from ``start`` on; close it (or use ``with``) at the end.

    Rows are a pure function of their number, so reopening the loader changes nothing but the time it takes.

    Args:
        open_loader: where to begin -> the loader of the rest.
        start: where training starts or resumes.
        batch_rows: global rows of a batch.
        timeout_seconds: longest wait for a batch; None: for ever.
    """

    def __init__(
        self,
        open_loader: Callable[[Position], BatchLoader],
        start: Position,
        batch_rows: int,
        timeout_seconds: float | None,
    ):
        self._open, self._begin, self._row, self._batch_rows = open_loader, start, start.rows, batch_rows
        self._timeout = timeout_seconds
        self._start()

    def _start(self) -> None:
        begin, taken = self._begin, (self._row - self._begin.rows) // self._batch_rows
        self.loader = self._open(
            begin._replace(rows=self._row, step=None if begin.step is None else begin.step + taken)
        )
        self._queue: queue.Queue[_Entry] = queue.Queue(maxsize=1)
        self._over = threading.Event()
        arguments = (self.loader, self._queue, self._over)
        threading.Thread(target=_pump, args=arguments, name="feeder", daemon=True).start()

    def __enter__(self) -> "ResilientLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.loader.close()

    def __next__(self) -> tuple[Batch, BatchStats]:
        for attempt in range(1, _ATTEMPTS + 1):
            fault, advice = None, "check the disk and the workers"
            try:
                taken = self._queue.get(timeout=self._timeout)
            except queue.Empty:
                fault = f"no batch for {self._timeout:g} s (train.data_timeout_seconds)"
            else:
                if not isinstance(taken, BaseException):
                    self._row += self._batch_rows
                    return taken
                if isinstance(
                    taken, LclmError | ValueError | StopIteration
                ):  # wrong or damaged data stay so: no second try
                    raise taken
                fault = f"the loader died ({_cause(taken)})"
                if isinstance(taken, OSError) and taken.errno:
                    advice = remedy(taken.errno)
            where = f"process {jax.process_index()} at row {self._row} (step {self._row // self._batch_rows})"
            if attempt == _ATTEMPTS:
                raise DataStalled(f"{where}: {fault}, {_ATTEMPTS} times in a row; {advice}")
            logger.warning("%s: %s; reopening the loader", where, fault)
            self._over.set()
            # A stalled loader may also stall when it is closed: it must not take the loop with it.
            threading.Thread(target=self.loader.close, daemon=True).start()
            self._start()
        raise AssertionError("unreachable")


def _cause(error: Exception) -> str:
    """The first line of ``error``; of a killed worker, what killed it."""
    if died := re.search(r"exit code (-\d+)", str(error)):
        return f"a data worker was {explain_death(int(died[1]))}"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _pump(loader: BatchLoader, out: queue.Queue[_Entry], over: threading.Event) -> None:
    """Move batches from ``loader`` to ``out``; what it raises is handed over as the last entry."""
    while not over.is_set():
        try:
            entry: _Entry = next(loader)
        except Exception as error:  # noqa: BLE001 - raised again by the thread that reads
            entry = error
        while not over.is_set():
            try:
                out.put(entry, timeout=0.5)
                break
            except queue.Full:
                continue
        if isinstance(entry, BaseException):
            return
