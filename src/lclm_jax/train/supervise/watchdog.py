"""A thread that notices when training makes no progress, writes the stacks of all threads, and ends the process.

A rank that hangs (a collective whose partner is gone, a file system that does not answer) would otherwise hold its
devices until someone looks. Launchers restart a run that ends with ``EXIT_RETRY``.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
import psutil

logger = logging.getLogger(__name__)

EXIT_RETRY = 75
"""Exit status that asks the launcher to restart the run (EX_TEMPFAIL)."""


class Watchdog:
    """Ends the process if ``beat`` is not called for ``limit_seconds``; use as a context.

    Args:
        limit_seconds: None: never.
        stacks: file that gets the stacks of all threads.
        end: called with the exit status; tests replace it.
    """

    def __init__(self, limit_seconds: float | None, stacks: Path, end: Callable[[int], object] = os._exit):
        self._limit, self._stacks, self._end = limit_seconds, stacks, end
        self._over = threading.Event()
        self._last, self._doing, self._patience = time.monotonic(), "starting", 1.0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, doing: str, patience: float = 1.0) -> None:
        """Say what comes next; it may take ``patience`` times the limit (compilation, a restore)."""
        self._last, self._doing, self._patience = time.monotonic(), doing, patience

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._over.wait(min(1.0, self._limit / 4)):
            waited = time.monotonic() - self._last
            if waited > self._limit * self._patience:
                self._bark(waited)
                return

    def _bark(self, waited: float) -> None:
        rank = f"process {jax.process_index()} of {jax.process_count()}"
        stacks: Path | str = self._stacks
        try:
            self._stacks.parent.mkdir(parents=True, exist_ok=True)
            with self._stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:  # the process must end all the same: a full disk may be why it hangs
            stacks = f"cannot be written ({error.strerror})"
        logger.error(
            "%s: no progress for %.0f s while %s (train.watchdog_seconds=%g); stacks of all threads: %s. Exiting with"
            " status %d: rerun the same command to resume from the newest checkpoint",
            rank, waited, self._doing, self._limit, stacks, EXIT_RETRY,
        )  # fmt: skip
        with suppress(OSError, psutil.Error):
            sys.stderr.flush()
            for child in psutil.Process().children(recursive=True):
                child.kill()  # data workers would outlive an exit that runs no handlers
        self._end(EXIT_RETRY)
