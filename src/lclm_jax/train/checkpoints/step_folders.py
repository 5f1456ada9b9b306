"""The folders of checkpoints, ``STEP/`` each, on a disk or in a bucket: which are complete, and how one goes.

On a disk a checkpoint is complete when it has its name, which it gets last. In a bucket nothing can be renamed: there
Orbax writes the object ``COMMITTED`` last, and a checkpoint goes by this object first.
"""

import contextlib
import shutil
from pathlib import Path

from lclm_jax.paths import delete_folder, file_system, is_remote, names_below, store_errors

COMMITTED = "commit_success.txt"
_DELETED = "deleted-"
"""Names of old checkpoints that are being deleted on a disk begin so."""


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in ``folder``, ascending."""
    remote = is_remote(folder)
    found = _numbered(folder)
    return sorted(int(path.name) for path in found if not remote or (path / COMMITTED).exists())


def prepare(folder: Path) -> None:
    """Make the folder of checkpoints; in a bucket, delete what killed saves left (Orbax does on a disk)."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return
    for path in _numbered(folder):
        if not (path / COMMITTED).exists():
            delete_folder(path)


def drop_partial(folder: Path) -> None:
    """Delete what a failed save left, as it holds space; what cannot be deleted stays."""
    if is_remote(folder):
        with contextlib.suppress(OSError):
            prepare(folder)
        return
    for leftover in folder.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


def withdraw(path: Path) -> Path:
    """Let a checkpoint count no more, before it is deleted; where it lies then. Raises ``OSError``."""
    if not is_remote(path):
        return path.rename(path.with_name(f"{_DELETED}{path.name}"))
    with store_errors(path):
        (path / COMMITTED).unlink(missing_ok=True)
    return path


def delete(path: Path) -> None:
    """Delete what was withdrawn; raises ``OSError``."""
    if is_remote(path):
        delete_folder(path)
    else:
        shutil.rmtree(path)


def half_deleted(folder: Path) -> list[Path]:
    """What was withdrawn and could not be deleted; in a bucket ``prepare`` finds it."""
    return [] if is_remote(folder) else list(folder.glob(f"{_DELETED}*"))


def move(path: Path, target: Path) -> None:
    """Give a checkpoint another name, under which it does not count; objects are copied inside of the store."""
    if not is_remote(path):
        path.rename(target)
        return
    (system, inside), (_, other) = file_system(path), file_system(target)
    with store_errors(path):
        names = sorted(names_below(path), key=lambda name: (name != COMMITTED, name))
        for name in names:
            system.cp_file(f"{inside}/{name}", f"{other}/{name}")
            system.rm_file(f"{inside}/{name}")


def _numbered(folder: Path) -> list[Path]:
    with store_errors(folder):
        try:
            return [path for path in folder.iterdir() if path.name.isdigit()]
        except (FileNotFoundError, NotADirectoryError):  # in a bucket there is no folder without an object in it
            return []
