"""Products of 8-bit operands in training, forward and backward (``model.quantize``), by qwix.

Each operand is scaled by its largest magnitude over what is contracted: activations and their gradients by position,
kernels by output, and, for a kernel's gradient, by channel over all positions of the batch. The backward pass takes the
forward's 8-bit operands again. In fp8, gradients have the wider range of e5m2 (arXiv 2209.05433). Sums are in 32 bits,
parameters and activations as ever.
"""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from lclm_jax.config.model import Quantization
from lclm_jax.errors import LclmError
from lclm_jax.kernels.platform import device_kind, platform
from lclm_jax.parallel.hardware import CHIPS, chip_of

if TYPE_CHECKING:
    from qwix._src.core.dot_general_qt import DotGeneralQtConfig

_DTYPES = {"int8": (jnp.int8, jnp.int8), "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}
"""Kind -> types of the forward operands and of gradients."""


def quantized_product(x: jax.Array, kernel: jax.Array, contracted: int, kind: Quantization) -> jax.Array:
    """The product of the last ``contracted`` axes of ``x`` with the first of ``kernel``, in the dtype of ``x``.

    Raises:
        LclmError: qwix is missing, or the device has no units for ``kind``.
    """
    _check_device(kind)
    config = _config(kind)
    from qwix._src.core.dot_general_qt import dot_general_qt

    axes = (tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted)))
    product: jax.Array = dot_general_qt(x, kernel.astype(x.dtype), (axes, ((), ())), config)
    return product


@functools.cache
def _config(kind: Quantization) -> "DotGeneralQtConfig":
    """What qwix quantizes, and how; its provider would have to find the kernels by intercepting JAX."""
    try:
        from qwix._src.core.dot_general_qt import DotGeneralQtConfig
    except ImportError as error:
        raise LclmError(
            f"model.quantize={kind} needs the package qwix ({error}); pip install 'lclm-jax[quantize]', or set none"
        ) from None
    forward, gradient = _DTYPES[kind]
    return DotGeneralQtConfig(lhs_qtype=forward, rhs_qtype=forward, dlhs_grad_qtype=gradient, drhs_grad_qtype=gradient)


def _check_device(kind: Quantization) -> None:
    """Refuse what a device would compute in more bits, and so more slowly than without; a CPU stands for any."""
    if platform() == "cpu":
        return
    chip = chip_of(device_kind())
    taken = CHIPS[chip].eight_bit if chip else None
    if taken is None or taken[0] != kind:
        use = f"{taken[0]} or none" if taken else "none"
        raise LclmError(f"model.quantize={kind} has no units of its own on {device_kind()}; set it to {use}")
