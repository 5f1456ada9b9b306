"""Whether ``run_dir`` can be written, is one folder for all processes, and how fast it is."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from lclm_jax.doctor.finding import Finding, shown_bytes
from lclm_jax.files import make_folder, write_bytes
from lclm_jax.machine import remedy
from lclm_jax.paths import StoreError, is_remote

_FOLDER = ".doctor"
_SMALL = 16
BYTES = 32 * 2**20
"""Written and read by each process."""
_SLOW_SECONDS = 600.0
"""A checkpoint that takes longer to write than this is worth a word."""


class StorageRates(NamedTuple):
    """What one process measured."""

    write_bytes_per_s: float
    """The disk, or the server, has the content when the clock stops."""
    read_bytes_per_s: float
    latency_s: float
    """Of writing a small file."""
    rename_s: float
    """Of a folder; 0 in a bucket, where nothing is renamed."""


def measure_storage(run_dir: Path, process: int, size: int = BYTES) -> StorageRates | Finding:
    """Write, read, rename in ``run_dir``; a finding if one of them fails. Leaves a file behind for ``check_shared``."""
    folder = run_dir / _FOLDER
    mine, content = folder / f"process-{process}", os.urandom(size)
    step = "write"
    try:
        make_folder(folder)
        write = _timed(lambda: _write(mine, content))
        step = "read"
        begin = time.perf_counter()
        again = mine.read_bytes()
        read = time.perf_counter() - begin
        if again != content:
            what = f"{run_dir} gives back other bytes than were written; look at the machine's log, or use another disk"
            return Finding("storage", "failure", what)
        step = "write"
        small = [folder / f"small-{process}-{number}" for number in range(_SMALL)]
        latency = _timed(lambda: _write_all(small)) / _SMALL
        for path in small:
            path.unlink()
        step = "rename"
        rename = 0.0 if is_remote(folder) else _timed_rename(folder, process)
    except StoreError as error:
        return Finding("storage", "failure", str(error))
    except OSError as error:
        reason = f"cannot {step} in run_dir={run_dir}: {error.strerror or error}; {remedy(error.errno)}"
        return Finding("storage", "failure", reason)
    return StorageRates(size / write, size / read, latency, rename)


def check_storage(rates: StorageRates | Finding, checkpoint_bytes: int | None, processes: int) -> Finding:
    """What was measured in words; ``checkpoint_bytes``: of the largest stage, written by all ``processes``."""
    if isinstance(rates, Finding):
        return rates
    values = rates._asdict()
    text = (
        f"writes {rates.write_bytes_per_s / 1e6:,.0f} MB/s, reads {rates.read_bytes_per_s / 1e6:,.0f} MB/s (cached),"
        f" {rates.latency_s * 1e3:.1f} ms a small file"
    )
    if rates.rename_s:
        text += f", {rates.rename_s * 1e3:.1f} ms a rename"
    if checkpoint_bytes is None:
        return Finding("storage", "ok", text, values)
    seconds = checkpoint_bytes / processes / rates.write_bytes_per_s
    text += f"; a checkpoint ({shown_bytes(checkpoint_bytes)}) takes {max(1, round(seconds)):,} s or more"
    return Finding("storage", "warning" if seconds > _SLOW_SECONDS else "ok", text, values | {"save_seconds": seconds})


def check_shared(run_dir: Path, present: Sequence[bool]) -> Finding:
    """Whether process 0 sees what the others wrote; call it in process 0 once all have written.

    Args:
        run_dir: of the run.
        present: process -> whether it could write at all; others are left out.
    """
    folder = run_dir / _FOLDER
    seen = {path.name for path in folder.iterdir()} if folder.exists() else set()
    missing = [process for process, wrote in enumerate(present) if wrote and f"process-{process}" not in seen]
    if not missing:
        return Finding("shared folder", "ok", f"{run_dir} is one folder for all processes")
    who = f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing[:8]))}"
    what = f"process 0 does not see what {who} wrote to run_dir={run_dir}: it is another folder there"
    return Finding("shared folder", "failure", f"{what}; name a folder on storage that all machines mount")


def clean(run_dir: Path, process: int) -> None:
    """Delete what this process left, and folders that are empty then."""
    folder = run_dir / _FOLDER
    with suppress(OSError):  # storage that cannot be written was reported; a folder may have files of others
        (folder / f"process-{process}").unlink(missing_ok=True)
        if is_remote(folder):  # there are no empty folders, and removing one removes what is in it
            return
        folder.rmdir()
        run_dir.rmdir()


def _write(path: Path, content: bytes) -> None:
    if is_remote(path):
        write_bytes(path, content)
        return
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_all(paths: Sequence[Path]) -> None:
    for path in paths:
        _write(path, b"x")


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return max(time.perf_counter() - begin, 1e-9)


def _timed_rename(folder: Path, process: int) -> float:
    """Seconds to rename a folder with a file in it, as a checkpoint gets its name."""
    before, after = folder / f"partial-{process}", folder / f"whole-{process}"
    before.mkdir(exist_ok=True)
    (before / "file").write_bytes(b"x")
    seconds = _timed(lambda: before.rename(after))
    if before.exists() or not (after / "file").exists():
        raise OSError(f"{before.name} is not gone, or {after.name} not whole, after a rename")
    (after / "file").unlink()
    after.rmdir()
    return seconds
