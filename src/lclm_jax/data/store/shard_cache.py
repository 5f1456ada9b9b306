"""Local copies of the files of object stores, shared by the processes of a host and limited in size on request.

A copy appears whole or not at all. Its modification time is its last use. When space is needed, the least recently used
copies are deleted, except those that a process holds (``HeldFile``), which a shared lock protects.
"""

import contextlib
import fcntl
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lclm_jax.machine import cache_folder

Fetch = Callable[[Path], None]


class HeldFile:
    """A local file that stays where it is as long as this object lives.

    Args:
        path: The file.
        descriptor: Of the open file that has the lock, closed with this object; None: nobody deletes it anyway.
    """

    def __init__(self, path: Path, descriptor: int | None = None):
        self.path = path
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)


class ShardCache(NamedTuple):
    """Where copies are kept, and how many bytes of them."""

    folder: Path | None = None
    """None: ``lclm_jax/shards`` in the user's cache folder."""
    most_bytes: int | None = None
    """None: no bound. What processes hold is kept even above it."""
    always: bool = True
    """Whether shards are copied even where they can be read in place."""

    @property
    def root(self) -> Path:
        """The folder."""
        if self.folder is not None:
            return self.folder
        return cache_folder("lclm_jax/shards")

    def hold(self, name: str, size: Callable[[], int], fetch: Fetch) -> HeldFile:
        """The copy ``name``; one that is not there is made by ``fetch``, which writes ``size()`` bytes at a path.

        Raises:
            OSError: The folder cannot be written, or of ``fetch``.
        """
        path = self.root / name
        while True:
            if not path.is_file():
                self._add(path, size, fetch)
            with contextlib.suppress(FileNotFoundError):  # deleted again at once: once more
                descriptor = os.open(path, os.O_RDONLY)
                _lock(descriptor, fcntl.LOCK_SH)
                if os.fstat(descriptor).st_nlink:
                    with contextlib.suppress(OSError):  # a folder of another user
                        os.utime(path)
                    return HeldFile(path, descriptor)
                os.close(descriptor)

    def _add(self, path: Path, size: Callable[[], int], fetch: Fetch) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.most_bytes is not None:
            self._make_room(self.most_bytes - size())
        descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            _lock(descriptor, fcntl.LOCK_SH)
            fetch(Path(partial))
            os.replace(partial, path)  # whole at once: other processes may wait for the same file
        finally:
            Path(partial).unlink(missing_ok=True)
            os.close(descriptor)

    def _make_room(self, most: int) -> None:
        """Delete copies, those used longest ago first, until the rest have at most ``most`` bytes."""
        with (self.root / "lock").open("w") as lock:
            _lock(lock.fileno(), fcntl.LOCK_EX)
            copies = sorted(_copies(self.root))
            total = sum(size for _, size, _ in copies)
            for _, size, path in copies:
                if total <= most:
                    return
                if _delete(path):
                    total -= size


UNBOUNDED = ShardCache()
"""In the user's cache folder, without a bound."""


def _copies(root: Path) -> Iterator[tuple[float, int, Path]]:
    """(last use, bytes, path) of all copies; also of those that a process left half made."""
    for path in root.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            yield about.st_mtime, about.st_size, path


def _delete(path: Path) -> bool:
    """Delete a copy unless a process holds it; whether it is gone."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return False
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return True


def _lock(descriptor: int, kind: int) -> bool:
    """Lock a file; False if another process holds it. On a file system without locks, nothing is locked.

    Not ``filelock``: its locks are exclusive, and they lock a file of their own, not the copy that is in use.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
