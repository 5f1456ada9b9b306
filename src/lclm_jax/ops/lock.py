"""One process at a time writes a run's folder: an advisory lock that ends with the process, however it ends."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if absent) while the block runs.

    Raises:
        ValueError: another process holds it, or it cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; choose a run_dir that can be written") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise ValueError(
                    f"another process is working in {folder}; wait until it ends, or set run_dir to another folder"
                ) from None
            logger.debug("%s: this file system has no locks (%s)", folder, error.strerror)
        yield
