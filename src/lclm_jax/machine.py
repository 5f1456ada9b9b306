"""What this machine lets the process have: cores, memory, open files, shared memory, a cache folder.

A job is limited by more than the machine: by its affinity, its control groups (cgroups, version 1 or 2) and its shell.
"""

import errno
import logging
import math
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory
_OPEN_FILES = 2**16
"""Enough for any corpus; some programs walk through all numbers up to the limit."""

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "the quota is used up: delete files of yours there, ask for more, or choose another folder",
    errno.EFBIG: "raise the limit of the size of a file (ulimit -f), free some space or choose another folder",
    errno.EROFS: "it is mounted read-only: choose another folder",
    errno.EACCES: "check the path and its permissions, or choose another folder",
    errno.EPERM: "change its owner or attributes (lsattr), or choose another folder",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "the machine has too many open files: close some, or raise fs.file-max",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.EEXIST: "something else has that name: choose another folder",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
    errno.EIO: "the disk or the network behind it failed: look at the machine's log",
    errno.ESTALE: "the network file system has lost it: mount it again",
}


def remedy(number: int | None) -> str:
    """What to do about an error of the operating system, by its ``errno``."""
    return _REMEDIES.get(number or 0, "check the path and its permissions, or choose another folder")


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: by its affinity and by the CPU quotas of its control groups, rounded up.

    ``root``: where /proc and /sys are.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups("cpu", root) if (quota := _cpu_quota(folder)) is not None]
    return max(1, min([count, *map(math.ceil, quotas)]))


def memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process and its siblings may take together: the machine's, or less by their control groups.

    ``root``: where /proc and /sys are.
    """
    limits = [
        limit
        for folder in _groups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None
    ]
    import psutil  # only here: `lclm --help` does not wait for it

    return int(min([psutil.virtual_memory().total, *limits]))


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may itself: shells often set it to 1024."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError) as error:  # a sandbox may forbid it
        logger.debug("the limit of open files stays: %s", error)


def open_files_limit() -> int | None:
    """Files that this process may have open at once; None: no limit, or none that is known."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose other end is closed, as behind ``| head``."""
    poll = select.poll()
    poll.register(1, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def shared_memory_free() -> int | None:
    """Free bytes of the file system that holds shared memory; None where there is none."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def cache_folder(name: str) -> Path:
    """``name`` in the user's cache folder: ``XDG_CACHE_HOME``, by default ``~/.cache``.

    A user without a home, as in many containers, has it in the folder for temporary files.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if base.is_absolute():  # others are to be ignored: XDG base directory specification
        return base / name
    try:
        return Path.home() / ".cache" / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"cache-{os.getuid()}" / name


def explain_death(status: int) -> str:
    """What a process's exit status (minus the signal's number, as Python gives it) says, and what to look for."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    reasons = {
        "SIGKILL": f"most likely because memory ran out ({memory_bytes() / 2**30:.1f} GiB for all processes)",
        "SIGBUS": f"most likely because {SHARED_MEMORY} is full",
    }
    return f"killed by {name}" + (f", {reasons[name]}" if name in reasons else "")


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that may limit this process: its own and those above it, of both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for base in (mounts / controllers, mounts / controller) if controllers else (mounts,):
            own = base / path.lstrip("/")  # a container may see its group at the base, whatever the path says
            yield from (folder for folder in (own, *own.parents) if folder == base or base in folder.parents)


def _cpu_quota(folder: Path) -> float | None:
    """Cores that a group may use; None: no limit here."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _number(path: Path) -> int | None:
    """The number in a file of a control group; None if there is none."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
