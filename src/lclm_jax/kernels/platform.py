"""What the current computation is compiled for."""

import jax
from jax.sharding import AbstractDevice


def platform() -> str:
    """``cpu``, ``tpu`` or ``gpu``: of the devices of the mesh in use, not of this process.

    A program compiled ahead of time for another machine gets that machine's kernels. Without a mesh: JAX's default
    devices.
    """
    name = _device().platform
    return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
    """What those devices call themselves, for example ``TPU v6 lite``."""
    return _device().device_kind


def _device() -> jax.Device | AbstractDevice:
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
