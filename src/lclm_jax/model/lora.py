"""Low-rank updates (LoRA, arXiv 2106.09685): their arithmetic, and their leaves among the parameters.

Beside a projection's ``kernel`` stand ``lora_a`` (the kernel's input axes, then the rank) and ``lora_b`` (the rank,
then its output axes); both are stacked over the layers as the kernel is. ``r`` is the rank in equations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.config.model import LoraConfig
from lclm_jax.kernels.masks import precision_of
from lclm_jax.model.functional import product

NAMES = ("lora_a", "lora_b")
"""Last component of the paths of LoRA leaves."""


def is_lora(path: str) -> bool:
    """Whether ``decoder/layers/attn/q/lora_a``, say, is the path of a LoRA leaf."""
    return path.rsplit("/", 1)[-1] in NAMES


def low_rank_equations(equation: str, contracted: int) -> tuple[str, str]:
    """The two einsums that stand in for ``equation`` of an input and a kernel that starts with ``contracted`` axes.

    Example:
        ``"BSD,DHd->BSHd"`` with one contracted axis gives ``"BSD,Dr->BSr"`` and ``"BSr,rHd->BSHd"``.
    """
    operands, output = equation.split("->")
    inputs, kernel = operands.split(",")
    inner = inputs.removesuffix(kernel[:contracted]) + "r"
    return f"{inputs},{kernel[:contracted]}r->{inner}", f"{inner},r{kernel[contracted:]}->{output}"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def widened(equation: str, narrow: jax.Array, lora_b: jax.Array) -> jax.Array:
    """``product(equation, narrow, lora_b)``, whose backward pass transposes the narrow array for the gradient of B.

    JAX's own rule puts the wide gradient first, and XLA on CPUs transposes what comes first: with what it fuses into
    that (all of SwiGLU's derivative), a fifth of a step of SmolLM2.
    """
    return product(equation, narrow, lora_b)


def _widen(equation: str, narrow: jax.Array, lora_b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(equation, narrow, lora_b), (narrow, lora_b)


def _widen_backward(equation: str, saved: tuple[jax.Array, jax.Array], bar: jax.Array) -> tuple[jax.Array, jax.Array]:
    narrow, lora_b = saved
    operands, wide = equation.split("->")
    inner, kernel = operands.split(",")
    b_bar = jnp.einsum(f"{inner},{wide}->{kernel}", narrow, bar, precision=precision_of(bar.dtype))
    return product(f"{wide},{kernel}->{inner}", bar, lora_b), b_bar.astype(lora_b.dtype)


widened.defvjp(_widen, _widen_backward)


def dropped(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """``x`` with each element zero with probability ``rate`` and the others scaled to keep the mean."""
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x))


def update_of(lora: LoraConfig, lora_a: np.ndarray, lora_b: np.ndarray) -> np.ndarray:
    """``alpha / rank * A @ B`` of one layer, float32, in the kernel's shape; products and sums in float64."""
    update = np.tensordot(lora_a.astype(np.float64), lora_b.astype(np.float64), axes=1)
    return (update * (lora.alpha / lora.rank)).astype(np.float32)
