"""The fused pooling kernels by name; ``reference``, their definition, is in ``kernels/normed_pooling.py``.

``auto`` takes the first row of the platform that can do the work, else the reference. A new one is a file in
``kernels/`` and a line here.
"""

from typing import Literal, NamedTuple


class PoolingKernelRow(NamedTuple):
    """What everything but its own file needs to know of a pooling kernel."""

    code: str
    """Module with the functions that ``kernels/normed_pooling.py`` lists; imported on use."""
    platform: Literal["cpu", "gpu", "tpu"]
    """The only platform that it runs on, outside of Pallas' interpreter."""
    programs: str = "pool_"
    """Regular expression that its name in a compiled program matches; it only adds up a few positions."""


POOLING_BACKENDS: dict[str, PoolingKernelRow] = {
    "pallas_tpu": PoolingKernelRow("lclm_jax.kernels.tpu.pooling", "tpu"),
    "pallas_gpu": PoolingKernelRow("lclm_jax.kernels.gpu.pooling", "gpu"),
}
