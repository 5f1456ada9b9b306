"""What the compiler gave, kept on disk under a name that changes with everything that could change it."""

import dataclasses
import gzip
import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lclm_jax.files import replacing
from lclm_jax.plan.compiled import CompiledStep, LoweredStep

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")


def cache_folder() -> Path:
    """``lclm-jax/plans`` in the user's cache folder (``XDG_CACHE_HOME``, by default ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lclm-jax" / "plans"


def key_of(lowered: LoweredStep) -> str:
    """Name of a result: a hash of all that the compiler is given.

    That is the lowered program, the devices in the mesh's order, the versions of the compilers and their flags; not
    how a plan counts, as the compiled program itself is kept.
    """
    depends = {
        "program": lowered.text(),
        "topology": lowered.wiring.topology.name,
        "devices": [device.id for device in lowered.wiring.devices],
        "versions": {name: _version(name) for name in _VERSIONS},
        "flags": {name: os.environ.get(name, "") for name in _FLAGS},
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]


def load(key: str) -> CompiledStep | None:
    """The result stored under ``key``; None if there is none or it cannot be read."""
    try:
        with gzip.open(_path(key), "rt", encoding="utf-8") as file:
            return CompiledStep(**json.load(file))
    except (OSError, EOFError, ValueError, TypeError):
        return None


def store(key: str, result: CompiledStep) -> None:
    """Keep ``result`` under ``key``; it appears at once or not at all."""
    with replacing(_path(key), shared=True) as part, gzip.open(part, "wt", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(result), file)


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.json.gz"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
