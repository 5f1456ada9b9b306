"""What the machine or the container allows: shared memory, open files, locked memory, disks, the network of GPUs."""

import ctypes.util
import shutil
from collections.abc import Callable
from pathlib import Path

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.loading.loader import shared_bytes
from lclm_jax.doctor.finding import Finding, Status, shown_bytes
from lclm_jax.machine import SHARED_MEMORY, open_files_limit, shared_memory_free
from lclm_jax.paths import is_remote

_OPEN_FILES = 4096
_CONTAINER = 64 * 2**20
"""What a container has by default."""


def check_shared_memory(config: Config | None, free: int | None, parts: int = 1) -> Finding:
    """Whether ``free`` bytes of shared memory hold what the data workers hand on; None: there is no such place.

    ``parts``: processes that share the rows of a batch.
    """
    if free is None:
        return Finding("shared memory", "ok", f"there is no {SHARED_MEMORY}")
    workers = 0 if config is None else config.data.workers
    room, values = f"{SHARED_MEMORY} has {shown_bytes(free)} free", {"free_bytes": free}
    least = most = 0
    if config is not None and workers:
        rows = max(1, max(stage.batch_rows for stage in config.stages.values()) // parts)
        batch = max(shared_bytes(config, name, rows) for name in config.stages)
        least, most = workers * batch, workers * (max(1, config.data.prefetch // workers) + 2) * batch
        values["needed_bytes"] = most
    if free >= max(most, _CONTAINER + 1):
        return Finding("shared memory", "ok", room, values)
    need = f"{workers} data workers may need {shown_bytes(most)}" if most else "a container has that little by default"
    hint = "give the job more (docker run --shm-size=16g, in Kubernetes an emptyDir of medium Memory there)"
    status: Status = "failure" if free < least else "warning"
    return Finding("shared memory", status, f"{room}, and {need}; {hint}", values)


def check_open_files(limit: int | None) -> Finding:
    """Whether enough files may be open at once; None: any number."""
    if limit is None:
        return Finding("open files", "ok", "any number may be open")
    values = {"open_files": limit}
    if limit >= _OPEN_FILES:
        return Finding("open files", "ok", f"{limit:,} may be open", values)
    return Finding(
        "open files", "warning", f"only {limit:,} files may be open; raise the limit: ulimit -n 65536", values
    )


def check_disk(config: Config, checkpoint_bytes: int, processes: int) -> list[Finding]:
    """Whether the checkpoints that are kept, and the copies on local disks, find room.

    Args:
        config: the run.
        checkpoint_bytes: of one checkpoint of its largest stage, written by all processes together.
        processes: of the run; a copy on a local disk holds the part of one.
    """
    policy, root = config.train.checkpoint, RunPaths(config).root
    found = [] if is_remote(root) else [_room("disk", root, (policy.keep_last + 1) * checkpoint_bytes, "run_dir")]
    if policy.local_dir is not None:
        part = 2 * checkpoint_bytes // processes
        found.append(_room("local disk", Path(policy.local_dir), part, "train.checkpoint.local_dir"))
    return found


def _room(check: str, folder: Path, needed: int, key: str) -> Finding:
    """Whether ``needed`` bytes fit beside what is in ``folder``, which need not exist yet."""
    if is_remote(folder):
        return Finding(check, "ok", f"a bucket takes what is written, {shown_bytes(needed)} of checkpoints")
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    values = {"free_bytes": free, "needed_bytes": needed}
    if free >= needed:
        return Finding(check, "ok", f"{shown_bytes(free)} free for {shown_bytes(needed)} of checkpoints", values)
    what = f"{key}={folder} has {shown_bytes(free)} free, and its checkpoints need {shown_bytes(needed)}"
    fix = f"free space, choose another folder{' or lower train.checkpoint.keep_last' if key == 'run_dir' else ''}"
    return Finding(check, "failure", f"{what}; {fix}", values)


def check_network(
    processes: int, root: Path = Path("/"), find_library: Callable[[str], str | None] = ctypes.util.find_library
) -> Finding:
    """Whether NCCL can use a fast network between machines, asked where GPUs compute.

    Args:
        processes: of the run.
        root: where /sys and /proc are.
        find_library: path of a shared library by its short name, or None.
    """
    if processes == 1:
        return Finding("network", "ok", "one process, no network between GPUs")
    adapters = sorted(entry.name for entry in root.glob("sys/class/infiniband/*"))
    if not adapters:
        what = "no InfiniBand or EFA adapter is visible, so NCCL uses TCP unless a plugin of the platform is loaded"
        return Finding("network", "warning", f"{what}; give the job its network devices (/dev/infiniband)")
    if find_library("ibverbs") is None:
        what = f"{len(adapters)} adapters ({adapters[0]} ...), but libibverbs is missing: NCCL would use TCP"
        return Finding("network", "failure", f"{what}; install libibverbs1 and ibverbs-providers in the image")
    locked = _locked_memory(root)
    if locked is not None and locked < 2**30:
        what = f"only {locked // 1024} KiB of memory may be locked, which InfiniBand needs"
        return Finding("network", "failure", f"{what}; ulimit -l unlimited, and the capability IPC_LOCK in a container")
    return Finding("network", "ok", f"{len(adapters)} adapters, libibverbs found")


def _locked_memory(root: Path) -> int | None:
    """Bytes that this process may lock; None: no limit."""
    for line in (root / "proc/self/limits").read_text(encoding="utf-8").splitlines():
        if line.startswith("Max locked memory"):
            soft = line.removeprefix("Max locked memory").split()[0]
            return None if soft == "unlimited" else int(soft)
    return None


def local_limits(config: Config | None, processes: int) -> list[Finding]:
    """The checks of this machine that need no devices."""
    return [check_shared_memory(config, shared_memory_free(), processes), check_open_files(open_files_limit())]
