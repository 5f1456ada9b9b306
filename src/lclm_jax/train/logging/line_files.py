"""Files that grow by lines, on a disk or in a bucket, as training writes them.

Nothing can be appended to an object. In a bucket ``NAME`` is therefore a folder ``NAME.parts`` of numbered objects:
the newest is written anew every few seconds until it has a mebibyte, so a line costs as much in a long run as in a
short one. A process that is killed loses the lines of the last seconds; those up to a checkpoint are there, because
``flush`` is called before it is committed.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lclm_jax.files import write_bytes, write_text
from lclm_jax.paths import StoreError, is_remote, store_errors
from lclm_jax.train.logging.records import parts_folder, read_lines

logger = logging.getLogger(__name__)

PART_BYTES = 2**20
FLUSH_SECONDS = 10.0


class LineFile(Protocol):
    """A file that lines are appended to, each with its line feed."""

    def append(self, lines: list[bytes]) -> OSError | None:
        """Take ``lines`` from the front of the list as they are written; the error that left some of them there."""

    def flush(self) -> OSError | None:
        """Write what waits in memory; the error that left it there."""

    def close(self) -> OSError | None:
        """Write what waits and give the file up; the error that lost lines."""


def open_lines(path: Path, kept: Sequence[str] | None = None, background: bool = True) -> LineFile:
    """The file at ``path``, made if there is none.

    Args:
        path: the file.
        kept: the lines that it shall have first, in the place of what is in it; None: what is in it.
        background: send lines to a bucket without being asked; if not, ``flush`` does.

    Raises:
        WriteError, StoreError: it cannot be written.
    """
    if is_remote(path):
        return _BucketLines(path, kept, background)
    if kept is not None:
        write_text(path, "".join(kept))
    return _DiskLines(path)


class _DiskLines:
    """Lines that are handed to the operating system at once, so that they survive the death of this process."""

    def __init__(self, path: Path):
        self._file = path.open("ab", buffering=0)

    def append(self, lines: list[bytes]) -> OSError | None:
        """Write line by line; a line is written whole or cut off again."""
        while lines:
            end = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(lines[0]) != len(lines[0]):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                os.ftruncate(self._file.fileno(), end)
                return error
            lines.pop(0)
        return None

    def flush(self) -> OSError | None:
        return None

    def close(self) -> OSError | None:
        self._file.close()
        return None


class _BucketLines:
    """Lines that are sent by a thread every ``FLUSH_SECONDS``, and by ``flush``."""

    def __init__(self, path: Path, kept: Sequence[str] | None, background: bool):
        self._folder = parts_folder(path)
        self._lock, self._over = threading.Lock(), threading.Event()
        with store_errors(path):
            self._part, self._sent, self._number = b"", True, self._begin(path, kept)
        self._told = False
        self._thread = threading.Thread(target=self._send_often, name=f"lines of {path.name}", daemon=True)
        if background:
            self._thread.start()

    def _begin(self, path: Path, kept: Sequence[str] | None) -> int:
        """Rewrite the parts if they are not what is to be kept; the number of the next."""
        numbers = [int(part.name.partition(".")[0]) for part in self._folder.glob("*.jsonl")]
        if kept is None or kept == list(read_lines(path)):
            return max(numbers, default=-1) + 1
        parts = [b""]
        for line in kept:
            if len(parts[-1]) >= PART_BYTES:
                parts.append(b"")
            parts[-1] += line.encode()
        # In this order: a process killed in between leaves lines that the next one cuts off, and none is missing.
        for number, part in enumerate(parts):
            write_bytes(self._path(number), part)
        for number in sorted(numbers, reverse=True):
            if number >= len(parts):
                self._path(number).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a run that was begun on a disk and copied
            path.unlink()
        return len(parts)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.jsonl"

    def append(self, lines: list[bytes]) -> OSError | None:
        with self._lock:
            self._part += b"".join(lines)
            self._sent = self._sent and not lines
        lines.clear()
        return None

    def flush(self) -> OSError | None:
        with self._lock:
            if self._sent:
                return None
            try:
                write_bytes(self._path(self._number), self._part)
            except OSError as error:
                return error
            self._sent = True
            if len(self._part) >= PART_BYTES:
                self._part, self._number = b"", self._number + 1
        return None

    def close(self) -> OSError | None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.flush()

    def _send_often(self) -> None:
        while not self._over.wait(FLUSH_SECONDS):
            error = self.flush()
            if isinstance(error, StoreError) and not self._told:
                logger.warning("%s; lines of %s wait in memory", error, self._folder)
            self._told = error is not None
