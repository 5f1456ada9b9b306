"""Files and folders that are written whole or not at all: the one place that does it, on disks and in buckets."""

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lclm_jax.errors import LclmError
from lclm_jax.machine import remedy
from lclm_jax.paths import file_system, is_remote, send_folder, store_errors

_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Reasons that only writing has, whatever the error names."""


class WriteError(LclmError, OSError):
    """A file that cannot be written, with the reason of the operating system: a full disk, missing permission."""

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}; {remedy(self.errno)}"


@contextmanager
def replacing(path: Path, *, shared: bool = False, durable: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write to; it becomes ``path`` when the block ends, and is deleted if the block fails.

    Readers see the old file or the new one, never a part; folders are made. A remote file is written on this machine
    first, and sent when the block ends.

    Args:
        path: file to write.
        shared: several processes or threads may write ``path`` at once.
        durable: wait until the disk has the content, so that it outlasts a loss of power.

    Raises:
        WriteError: the operating system refuses.
        StoreError: the object store does.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
            with store_errors(path, writes=True):
                system, inside = file_system(path)
                system.put_file(str(Path(folder) / path.name), inside)
        return
    partial = path.with_name(f"{path.name}.partial")
    if shared:
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
    try:
        make_folder(path.parent)
        yield partial
        if durable:
            _sync(partial)
        partial.replace(path)
    except OSError as error:
        _refuse(path, partial, error)
        raise
    finally:
        with suppress(OSError):  # of a folder that cannot be written; after the rename it is gone anyway
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write ``text`` (UTF-8) as ``replacing`` does; raises ``WriteError``."""
    write_bytes(path, text.encode(), shared=shared)


def write_bytes(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Write ``content`` as ``replacing`` does; raises ``WriteError``."""
    if is_remote(path):  # an object appears whole
        with store_errors(path, writes=True):
            path.write_bytes(content)
        return
    with replacing(path, shared=shared) as partial:
        partial.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON as ``replacing`` does; raises ``WriteError``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where folders are made at all; raises ``WriteError``."""
    if is_remote(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def replacing_folder(folder: Path, last: str | None = None) -> Iterator[Path]:
    """An empty folder to fill; it becomes ``folder``, in the place of what was there, when the block ends.

    It is deleted if the block fails. A remote folder is filled on this machine and then sent file by file: the file
    ``last`` comes last and says that all are there.

    Raises:
        WriteError: the operating system refuses.
        StoreError: the object store does.
    """
    if is_remote(folder):
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)
            send_folder(Path(made), folder, last)
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make_folder(partial)
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    except OSError as error:
        _refuse(folder, partial, error)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse(path: Path, partial: Path, error: OSError) -> None:
    """Raise ``WriteError`` if ``error`` is about writing; what the block met elsewhere (reading, say) is let pass."""
    about_partial = error.filename is not None and str(error.filename).startswith(str(partial))
    if not isinstance(error, LclmError) and (about_partial or error.errno in _WRITING):
        raise WriteError(error.errno, error.strerror, str(path)) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
