"""The device mesh: four named axes, always all four, so that one sharding table fits every run."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from lclm_jax.config import MeshConfig

AXES = ("replica", "fsdp", "context", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arrange ``devices`` (default: all of JAX's) as ``config`` says.

    Raises:
        ValueError: a size is not positive (or -1, once), or the product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: getattr(config, axis) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    bad = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    free = [axis for axis, size in sizes.items() if size == -1]
    if bad or len(free) > 1:
        raise ValueError(f"mesh {shown}: sizes are positive and at most one is -1; change {', '.join(bad or free)}")
    product = math.prod(size for size in sizes.values() if size > 0)
    if free and len(devices) % product == 0:
        sizes[free[0]] = len(devices) // product
        product = len(devices)
    if product != len(devices):
        raise ValueError(
            f"mesh {shown} takes {'a multiple of ' if free else ''}{product} devices and there are {len(devices)};"
            " set one axis of mesh to -1, or change the sizes"
        )
    shape = tuple(sizes[axis] for axis in AXES)
    if len(devices) == len(jax.devices()):
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def use_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Context in which ``constrain`` acts (``with mesh:`` alone would silently ignore constraints)."""
    return jax.set_mesh(mesh)
