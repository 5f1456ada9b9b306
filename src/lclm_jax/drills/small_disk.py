"""A disk that can be full: a small tmpfs where mounting is allowed, else a limit on file sizes."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)


class SmallDisk:
    """Makes ``folder`` a disk of its own of ``size_bytes``; use as a context, which moves its content back at the end.

    Without the right to mount, ``full`` limits the sizes of files that a process may write.
    """

    def __init__(self, folder: Path, size_bytes: int):
        self._folder, self._size, self.mounted = folder, size_bytes, False

    def __enter__(self) -> "SmallDisk":
        self._folder.mkdir(parents=True, exist_ok=True)
        mount = shutil.which("mount")
        if mount is not None:
            command = [mount, "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self._folder)]
            self.mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        logger.info(
            "full disks: %s", "a tmpfs" if self.mounted else "a limit on file sizes, as mounting is not allowed"
        )
        return self

    def __exit__(self, *_: object) -> None:
        if not self.mounted:
            return
        kept = self._folder.with_name(f"{self._folder.name}.kept")
        shutil.copytree(self._folder, kept)
        umount = shutil.which("umount")
        assert umount is not None
        subprocess.run([umount, "--lazy", str(self._folder)], check=True)  # a process may still be on its way out
        self._folder.rmdir()
        kept.rename(self._folder)

    @contextmanager
    def full(self, pid: int) -> Iterator[None]:
        """No room for the process ``pid`` inside the context."""
        if self.mounted:
            filler = self._folder / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                except OSError:
                    pass  # that is what it is for
            try:
                yield
            finally:
                filler.unlink()
            return
        process = psutil.Process(pid)
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (2**10, hard))
        try:
            yield
        finally:
            if process.is_running():
                process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
