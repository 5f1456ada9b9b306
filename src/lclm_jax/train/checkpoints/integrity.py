"""Sizes and checksums of a checkpoint's files, written once it is complete and checked before it is trusted.

On a disk the sums are SHA-256 of the files read back. An object store keeps a sum of its own of every object, of the
bytes that arrived, and gives it with the listing: there nothing is read back.

A checkpoint killed between its last rename and its manifest has none; its files are complete, and the fingerprints
stored with it (``fingerprint``) still tell whether its values are those that were saved.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.files import write_text
from lclm_jax.paths import file_system, is_remote, store_errors
from lclm_jax.train.core.freeze import path_name
from lclm_jax.types import PyTree

NAME = "manifest.json"

Sums = dict[str, list[int | str]]
"""Name of a file -> [bytes, checksum]."""

_THREADS = 4
_SUMS = ("md5Hash", "crc32c")
"""Keys of an object's entry in a listing that hold a checksum of its content."""


def write_manifest(folder: Path, sums: Sums | None = None) -> None:
    """Store size and checksum of every file of ``folder`` in ``manifest.json``, atomically.

    ``sums``: those of all files on a disk, as ``read_back`` of every process gave them; None: they are made here.
    """
    if is_remote(folder):
        write_text(folder / NAME, json.dumps({"stored": _stored_sums(folder)}, indent=1) + "\n")
        return
    entries = read_back(folder) if sums is None else dict(sorted(sums.items()))
    write_text(folder / NAME, json.dumps({"sha256": entries}, indent=1) + "\n")


def read_back(folder: Path, process: int = 0, processes: int = 1) -> Sums:
    """Size and checksum of the files that a process wrote, read back from the disk; process 0 has those of nobody, too.

    Orbax lets each process write below a folder of its own, ``ocdbt.process_R``.
    """
    if is_remote(folder):
        return {}
    files = [name for name in _files(folder) if _writer(name, processes) == process]
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(_checksum, (folder / name for name in files)))
    return {name: [(folder / name).stat().st_size, digest] for name, digest in zip(files, sums, strict=True)}


def has_manifest(folder: Path) -> bool:
    """Whether the checkpoint in ``folder`` was read back and sealed."""
    return (folder / NAME).is_file()


def defect(folder: Path, process: int = 0, processes: int = 1, below: str = "") -> str | None:
    """What is wrong with the files of ``folder``, in a few words; None if they are as written, or have no manifest.

    Of several ``processes`` each looks at a share of them. ``below``: only at files whose names begin so.
    """
    if not has_manifest(folder):
        return None
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
        entries = manifest["stored"] if "stored" in manifest else manifest["sha256"]
    except (ValueError, KeyError, TypeError):
        return f"its {NAME} is damaged"
    entries = {name: entry for name, entry in entries.items() if name.startswith(below)}
    if is_remote(folder):
        return _stored_defect(entries, _stored_sums(folder)) if process == 0 else None
    entries = dict(list(entries.items())[process::processes])
    for name, (size, _) in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    if "stored" in manifest:  # copied from a bucket, whose sums are of other kinds
        return None
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(_checksum, (folder / name for name in entries))
        changed = [name for (name, (_, digest)), now in zip(entries.items(), sums, strict=True) if now != digest]
    return f"the content of {changed[0]} has changed" if changed else None


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(NAME))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _writer(name: str, processes: int) -> int:
    """The process whose folder a file is in; 0 for those of nobody."""
    found = re.search(r"ocdbt\.process_(\d+)/", name)
    rank = int(found[1]) if found else 0
    return rank if rank < processes else 0


def _stored_sums(folder: Path) -> Sums:
    """Name of each object below ``folder`` -> [bytes, checksum that the store has of it; empty if it has none]."""
    system, inside = file_system(folder)
    with store_errors(folder):
        found = system.find(inside, detail=True)
    names = {path[len(inside.rstrip("/")) + 1 :]: entry for path, entry in found.items()}
    return {
        name: [int(entry["size"]), next((str(entry[kind]) for kind in _SUMS if entry.get(kind)), "")]
        for name, entry in sorted(names.items())
        if not name.startswith(NAME)
    }


def _stored_defect(entries: Sums, now: Sums) -> str | None:
    for name, (size, checksum) in entries.items():
        if name not in now:
            return f"{name} is missing"
        if now[name][0] != size:
            return f"{name} has {now[name][0]} bytes instead of {size}"
        if checksum and len(str(checksum)) == len(str(now[name][1])) and now[name][1] != checksum:
            return f"the content of {name} has changed"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tree: PyTree) -> dict[str, int]:
    """Path of each leaf to the sum of its bits as words, modulo 2**32.

    A sum does not depend on the order of its terms, so it is the same for every sharding; one flipped bit changes it.
    Reads each array once on its devices and brings one number per leaf to the host. Where the host is the device, NumPy
    adds: at 5 times the speed of XLA's sums of integers on a CPU.
    """
    leaves, structure = jax.tree.flatten(tree)
    if all(_is_here(leaf) for leaf in leaves):
        with ThreadPoolExecutor(_THREADS) as pool:
            sums = jax.tree.unflatten(structure, list(pool.map(_sum_here, leaves)))
    else:
        sums = jax.device_get(_sums(tree))
    return {path_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


def _is_here(leaf: jax.Array) -> bool:
    if not isinstance(leaf, jax.Array):
        return False
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def _sum_here(leaf: jax.Array) -> int:
    shards = [np.asarray(shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0]
    words = (shard.view(f"uint{8 * shard.itemsize}") for shard in shards)
    return sum(int(word.sum(dtype=np.uint32)) for word in words) % 2**32


@jax.jit
def _sums(tree: PyTree) -> PyTree:
    def total(leaf: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(leaf, np.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return words.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jax.tree.map(total, tree)
