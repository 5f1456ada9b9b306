"""The device mesh: four named axes, always all four, so that one sharding table fits every run."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from lclm_jax.config.devices import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel.backend import start_devices

AXES = ("replica", "fsdp", "context", "tensor")

Devices = npt.NDArray[np.object_]
"""An array of devices."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange ``devices`` (default: all of JAX's) as ``config`` says.

    Raises:
        LclmError: a size is not positive (or -1, once), the product is not the number of devices, or JAX has none
            (``BackendError``).
    """
    devices = start_devices() if devices is None else list(devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    free = [axis for axis, size in sizes.items() if size == -1]
    if bad or len(free) > 1:
        raise LclmError(f"mesh {shown}: sizes are positive and at most one is -1; change {', '.join(bad or free)}")
    product = math.prod(size for size in sizes.values() if size > 0)
    if free and len(devices) % product == 0:
        sizes[free[0]] = len(devices) // product
        product = len(devices)
    if product != len(devices):
        raise LclmError(
            f"mesh {shown} takes {'a multiple of ' if free else ''}{product} devices and there are {len(devices)};"
            " set one axis of mesh to -1, or change the sizes"
        )
    arranged = _arranged(tuple(sizes[axis] for axis in AXES), devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_parts(sizes: Mapping[str, int]) -> int:
    """Parts that a mesh of these sizes (axis -> size) makes of every batch: ``replica * fsdp``."""
    return sizes["replica"] * sizes["fsdp"]


def row_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(parts of every batch whose rows this process's devices hold, number of parts).

    A batch has ``batch_parts`` equal, consecutive parts. Processes whose devices differ only along ``context`` or
    ``tensor`` hold the same rows.
    """
    by_part = mesh.devices.reshape(batch_parts(mesh.shape), -1)
    own = jax.process_index()
    return tuple(part for part, group in enumerate(by_part) if any(d.process_index == own for d in group)), len(by_part)


def _arranged(shape: tuple[int, ...], devices: list[jax.Device]) -> Devices:
    """``devices`` in the ``shape`` of ``AXES``, neighbours on fast links; slices lie along ``replica``, then ``fsdp``.

    Raises:
        LclmError: the slices (TPU slices, or machines with NVLink) cannot be told apart along these two axes.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        if len(devices) < len(jax.devices()):  # a choice of devices has no shape of its own
            return np.asarray(devices).reshape(shape)
        return _on_torus(mesh_utils.create_device_mesh, shape, devices)
    replica, fsdp, context, tensor = shape
    across_replica = math.gcd(replica, slices)
    across_fsdp = slices // across_replica
    if fsdp % across_fsdp:
        raise LclmError(
            f"mesh replica={replica}, fsdp={fsdp} does not spread over {slices} slices, which only these two axes may"
            f" cross; make mesh.replica a multiple of {slices}"
        )
    within = (replica // across_replica, fsdp // across_fsdp, context, tensor)
    return _on_torus(mesh_utils.create_hybrid_device_mesh, within, (across_replica, across_fsdp, 1, 1), devices)


def without_context(mesh: Mesh) -> Mesh:
    """The devices of ``mesh`` with those along ``context`` along ``fsdp``: parameters lie on it as they did."""
    replica, fsdp, context, tensor = mesh.devices.shape
    devices = mesh.devices.reshape(replica, fsdp * context, 1, tensor)
    return mesh if context == 1 else Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def use_mesh(mesh: Mesh) -> AbstractContextManager[object]:
    """Context in which ``constrain`` acts (``with mesh:`` alone would silently ignore constraints)."""
    return jax.set_mesh(mesh)


def _on_torus(arrange: Callable[..., Devices], *arguments: object) -> Devices:
    """``arrange(*arguments)`` of ``mesh_utils``; axes that no sides of the torus make up take parts of its sides."""
    try:
        return arrange(*arguments)
    except NotImplementedError:
        return arrange(*arguments, allow_split_physical_axes=True)
