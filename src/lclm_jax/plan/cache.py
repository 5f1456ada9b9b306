"""Compiled results kept on disk, under a name that changes with everything that could change them."""

import dataclasses
import hashlib
import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lclm_jax.config import Config
from lclm_jax.plan.topologies import Topology

_ROOMS = ("batch.py", "kernels", "model", "parallel", "plan", "train")
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def cache_folder() -> Path:
    """``lclm-jax/plans`` in the user's cache folder (``XDG_CACHE_HOME``, by default ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lclm-jax" / "plans"


def key_of(config: Config, stage: str, topology: Topology) -> str:
    """Name of a result: a hash of all that the program depends on.

    That is the model, the mesh, the stage's rows, layout and what it trains (learning rates and steps are numbers in
    the same program), the versions of JAX and its compilers, their flags, and this package's own source.
    """
    settings = config.stages[stage]
    parts = ("adapter", "encoder", "decoder", "memory_rows", "encoder_lora", "decoder_lora")
    depends: dict[str, Any] = {
        "model": config.model.model_dump(mode="json"),
        "mesh": config.mesh.model_dump(mode="json"),
        "pack": config.pack(stage).model_dump(mode="json"),
        "trains": [part for part in parts if settings.peak_lr(part) is not None],
        "rows": [settings.batch_rows, settings.microbatches],
        "loss": [config.train.loss_normalisation, config.train.z_loss],
        "topology": topology.name,
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")},
        "flags": {name: os.environ.get(name, "") for name in _FLAGS},
        "source": _source_digest(),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:24]


def load(key: str) -> dict[str, Any] | None:
    """The result stored under ``key``; None if there is none or it cannot be read."""
    try:
        return json.loads((cache_folder() / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def store(key: str, result: Any) -> None:
    """Keep a dataclass under ``key``; appears at once or not at all."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{key}.{os.getpid()}.part"
    part.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
    part.replace(folder / f"{key}.json")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _source_digest() -> str:
    """Digest of the files that make the program and count it."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for room in _ROOMS:
        path = root / room
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
