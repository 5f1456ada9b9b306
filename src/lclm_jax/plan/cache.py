"""What the compiler is given and what it gives, kept on disk under a name that changes with all it depends on."""

import dataclasses
import gzip
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax

from lclm_jax import machine
from lclm_jax.files import replacing
from lclm_jax.plan.roofline import Wiring

logger = logging.getLogger(__name__)

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc")


class LoweredStep(NamedTuple):
    """A train step on its way to the compiler."""

    program: jax.stages.Lowered
    wiring: Wiring

    def text(self) -> str:
        """The program with its named scopes and without a trace of the files it was written in."""
        return self.program.as_text(debug_info=True)


@dataclass(frozen=True)
class CompiledStep:
    """A compiled program and what the compiler says of its memory; bytes are per device."""

    text: str
    """Optimised HLO; empty if there is none."""
    argument_bytes: float
    temporary_bytes: float
    peak_bytes: float
    compile_s: float
    why_not: str = ""
    """What the compiler said if it found no way to place the program in the chip's memory."""


def cache_folder() -> Path:
    """``lclm-jax/plans`` in the user's cache folder (``XDG_CACHE_HOME``, by default ``~/.cache``)."""
    return machine.cache_folder("lclm-jax/plans")


def key_of(lowered: LoweredStep, flags: Mapping[str, str | bool] = MappingProxyType({})) -> str:
    """Name of a result: a hash of all that the compiler is given.

    That is the lowered program, the devices in the mesh's order, the versions of the compilers, their flags in the
    environment and ``flags``; not how a plan counts, as the compiled program itself is kept.
    """
    depends = {
        "program": lowered.text(),
        "topology": lowered.wiring.topology.name,
        "devices": [device.id for device in lowered.wiring.devices],
        "versions": {name: _version(name) for name in _VERSIONS},
        "flags": {name: os.environ.get(name, "") for name in _FLAGS} | dict(flags),
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
    """Keep ``result`` under ``key``; it appears at once or not at all, which only costs the time to compile again."""
    try:
        with replacing(_path(key), shared=True) as part, gzip.open(part, "wt", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(result), file)
    except OSError as error:
        logger.warning("the compiled plan is not kept: %s", error)


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.json.gz"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
