"""Names of slices and clusters, and their devices for compilation without hardware.

``v5p:4x4x4`` is a slice by its shape; ``v5p-128`` is the product's name of the same slice: v4 and v5p count two cores a
chip, v5e and v6e count chips; slices of tpu7x go by shape. ``2xv5e-256`` is two slices. ``h100:8`` is one node of GPUs,
``h100:8x8`` eight nodes of eight; likewise h200, b200 and gb200.
"""

import math
import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lclm_jax.errors import LclmError
from lclm_jax.parallel.hardware import CHIPS, Chip

if TYPE_CHECKING:
    import jax

GPU_PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")
"""What compiles for GPUs, without one."""

_NAME = re.compile(rf"(?:(?P<slices>\d+)x)?(?P<kind>{'|'.join(CHIPS)})(?::(?P<shape>\d+(?:x\d+)*)|-(?P<count>\d+))")

_COMPILED_GPUS = ("h100", "h200")
"""GPUs with a description for XLA here: both are Hoppers with the same units."""

# chips -> shape of the slice that is rented under that number (cloud.google.com/tpu/docs: v4, v5p; v5e, v6e).
_SHAPES_3D = {
    4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8),
    512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16), 4096: (16, 16, 16),
}  # fmt: skip
_SHAPES_2D = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)}


class Topology(NamedTuple):
    """Chips and how they are wired. ``shape`` is that of one slice; a GPU node is a slice of shape (GPUs,)."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices_per_slice(self) -> int:
        """JAX devices joined by fast links."""
        return math.prod(self.shape) * self.chip.devices

    @property
    def num_chips(self) -> int:
        """Chips in all."""
        return math.prod(self.shape) * self.slices

    @property
    def num_devices(self) -> int:
        """JAX devices in all."""
        return self.devices_per_slice * self.slices

    @property
    def wrap(self) -> tuple[bool, ...]:
        """Which dimensions of the torus close: all of a 3-D slice made of whole 4x4x4 cubes; a 2-D side of 16."""
        if self.chip.dimensions == 3:
            return (all(side % 4 == 0 for side in self.shape),) * 3
        return tuple(side == 16 for side in self.shape)

    @property
    def name(self) -> str:
        """The name by shape, one for each topology."""
        if self.chip.dimensions == 0:
            nodes = f"{self.slices}x" if self.slices > 1 else ""
            return f"{self.chip.name}:{nodes}{self.shape[0]}"
        several = f"{self.slices}x" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(name: str) -> Topology:
    """The topology called ``name``; raises ``LclmError`` that says which names there are."""
    match = _NAME.fullmatch(name.strip().lower())
    if match is None:
        raise LclmError(
            f"topology {name!r} is unknown; write v5p:4x4x4, v5p-128, v5e-256, v6e:8x8, tpu7x:4x4x4, 2xv5e-256, h100:8,"
            " h200:8, b200:8 or gb200:8x8"
        )
    chip, slices = CHIPS[match["kind"]], int(match["slices"] or 1)
    shape = tuple(map(int, match["shape"].split("x"))) if match["shape"] else _named_shape(chip, int(match["count"]))
    if 0 in shape or slices == 0:
        raise LclmError(f"topology {name!r} has no chips; sizes are positive")
    if chip.dimensions == 0:
        return _nodes(name, chip, shape, slices)
    if len(shape) != chip.dimensions:
        example = "4x4x4" if chip.dimensions == 3 else "8x8"
        raise LclmError(
            f"topology {name!r}: {chip.name} slices have {chip.dimensions} dimensions; write {chip.name}:{example}"
        )
    return Topology(chip, shape, slices)


def prepare_environment() -> None:
    """Settings of the compilers for a machine without accelerators; before JAX touches a device. A user's own win.

    JAX itself runs on the CPU; libtpu shall not look for a metadata server, nor take the lock that keeps two
    programs from one TPU; the plugin for GPUs shall not look for libraries that only running needs.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    # Triton takes a stack trace for every remark; an llvm-symbolizer on the PATH made a compile five times as long.
    os.environ.setdefault("LLVM_DISABLE_SYMBOLIZATION", "1")
    import jax

    if jax.config.values["jax_platforms"] is None:  # JAX had been imported, and read its variables, before
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])


def compile_only_devices(topology: Topology) -> "list[jax.Device]":
    """Devices that programs can be compiled for and not run on; call ``prepare_environment`` first.

    Raises:
        LclmError: the compiler is not installed, or knows no such slice.
    """
    import jax

    gpus = topology.chip.dimensions == 0
    try:
        return list(_gpu_devices(topology) if gpus else _tpu_devices(topology))
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        needs = " and ".join(GPU_PACKAGES) if gpus else "libtpu (the extra [tpu] of lclm-jax)"
        said = str(error).splitlines()[0]
        raise LclmError(
            f"cannot describe {topology.name}: {said}; install {needs} and name a slice that exists"
        ) from error


def can_compile(topology: Topology) -> bool:
    """Whether a compiler for a topology is installed."""
    if topology.chip.dimensions:
        return find_spec("libtpu") is not None
    has_plugin = all(find_spec(name) for name in ("jax_plugins", "jax_plugins.xla_cuda13"))
    return topology.chip.name in _COMPILED_GPUS and has_plugin


def compiler_packages(topology: Topology) -> str:
    """What to install to compile for ``topology``."""
    return "lclm-jax[tpu]" if topology.chip.dimensions else ", ".join(GPU_PACKAGES)


def _tpu_devices(topology: Topology) -> "list[jax.Device]":
    """Devices of a slice with its links as they are.

    A bare name would describe a slice without wrap-around links, for which the compiler lowers the gathers of weights
    to all-reduces of twice the bytes.
    """
    from jax.experimental import topologies

    shape = topology.shape + (1,) * (3 - len(topology.shape))
    wrap = topology.wrap + (False,) * (3 - len(topology.wrap))
    return topologies.get_topology_desc(
        f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}",
        platform="tpu",
        wrap=wrap,
        chips_per_host_bounds=(min(2, shape[0]), min(2, shape[1]), 1),
        chip_config_name="megacore" if topology.chip.name in ("v4", "v5p") else "default",
        num_slices=topology.slices,
    ).devices


def _gpu_devices(topology: Topology) -> "Sequence[jax.Device]":
    """GPUs described by a target configuration of the compiler; one process for each node."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(
        topology.chip.name,
        platform="cuda",
        target_config=_target(topology.chip),
        topology=f"1x{topology.slices}x{topology.devices_per_slice}",
    ).devices


def _target(chip: Chip) -> str:
    """What XLA is told of a GPU: an H100, or one with the memory of ``chip``."""
    text = Path(__file__).with_name("h100.textproto").read_text(encoding="utf-8")
    if chip.name == "h100":
        return text
    text = re.sub(r"device_memory_size: \d+", f"device_memory_size: {int(chip.hbm_bytes)}", text)
    return re.sub(r"memory_bandwidth: \d+", f"memory_bandwidth: {int(chip.hbm_bytes_per_s)}", text)


def _named_shape(chip: Chip, count: int) -> tuple[int, ...]:
    if chip.dimensions == 0:
        return (count,)
    if chip.devices > 1:
        raise LclmError(f"{chip.name}-{count} is no slice known by number; write its shape: {chip.name}:4x4x4")
    shapes, cores = (_SHAPES_3D, 2) if chip.dimensions == 3 else (_SHAPES_2D, 1)
    if count % cores or count // cores not in shapes:
        known = ", ".join(f"{chip.name}-{chips * cores}" for chips in shapes)
        raise LclmError(f"{chip.name}-{count} is no slice known by number; use {known}, or its shape")
    return shapes[count // cores]


def _nodes(name: str, chip: Chip, shape: tuple[int, ...], slices: int) -> Topology:
    if len(shape) > 2 or (len(shape) == 2 and slices > 1):
        raise LclmError(f"topology {name!r}: write {chip.name}:GPUS for one node or {chip.name}:NODESxGPUS for more")
    nodes, gpus = (slices, shape[0]) if len(shape) == 1 else shape
    return Topology(chip, (gpus,), nodes)
