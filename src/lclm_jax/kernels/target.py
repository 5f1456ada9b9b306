"""What the current computation is compiled for."""

import jax


def platform() -> str:
    """``cpu``, ``tpu`` or ``gpu``: of the devices of the mesh in use, not of this process.

    A program compiled ahead of time for another machine gets that machine's kernels. Without a mesh: JAX's default
    devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return "gpu" if device.platform in ("cuda", "rocm") else device.platform
