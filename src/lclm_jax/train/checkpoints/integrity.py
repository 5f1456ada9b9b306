"""Sizes and SHA-256 sums of a checkpoint's files, written once it is complete and checked before it is trusted.

A checkpoint killed between its last rename and its manifest has none; its files are complete, and the fingerprints
stored with it (``fingerprint``) still tell whether its values are those that were saved.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.errors import LclmError
from lclm_jax.train.core.freeze import path_name
from lclm_jax.types import PyTree

NAME = "manifest.json"

_THREADS = 4


def write_manifest(folder: Path) -> None:
    """Read every file of ``folder`` back and store its size and checksum in ``manifest.json``, atomically."""
    files = _files(folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(_checksum, (folder / name for name in files)))
    entries = {name: [(folder / name).stat().st_size, digest] for name, digest in zip(files, sums, strict=True)}
    partial = folder / f"{NAME}.partial"
    partial.write_text(json.dumps({"sha256": entries}, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / NAME)


def has_manifest(folder: Path) -> bool:
    """Whether the checkpoint in ``folder`` was read back and sealed."""
    return (folder / NAME).is_file()


def defect(folder: Path) -> str | None:
    """What is wrong with the files of ``folder``, in a few words; None if they are as written, or have no manifest."""
    if not has_manifest(folder):
        return None
    try:
        entries = json.loads((folder / NAME).read_text(encoding="utf-8"))["sha256"]
    except (LclmError, ValueError, KeyError):
        return f"its {NAME} is damaged"
    for name, (size, _) in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(_checksum, (folder / name for name in entries))
        changed = [name for (name, (_, digest)), now in zip(entries.items(), sums, strict=True) if now != digest]
    return f"the content of {changed[0]} has changed" if changed else None


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(NAME))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(tree: PyTree) -> dict[str, int]:
    """Path of each leaf to the sum of its bits as words, modulo 2**32.

    A sum does not depend on the order of its terms, so it is the same for every sharding; one flipped bit changes it.
    Reads each array once on its devices and brings one number per leaf to the host.
    """
    sums = jax.device_get(_sums(tree))
    return {path_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _sums(tree: PyTree) -> PyTree:
    def total(leaf: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(leaf, np.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return words.astype(jnp.uint32).sum(dtype=jnp.uint32)

    return jax.tree.map(total, tree)
