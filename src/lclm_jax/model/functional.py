"""The plain functions that blocks are made of: products, RMSNorm, rotary positions.

Here B stands for rows, S for positions and D for the width of the residual stream; the encoder and the adapter
call the same functions with their own rows, positions and widths.
"""

import jax
import jax.numpy as jnp

from lclm_jax.kernels.masks import precision_of


def product(equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """``einsum`` in the dtype of ``x``: full precision in float32; bfloat16 accumulates in float32 and rounds once."""
    return jnp.einsum(equation, x, kernel.astype(x.dtype), precision=precision_of(x.dtype))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """``x / rms(x) * scale`` over the last axis, in float32, returned in the dtype of ``x`` (arXiv 1910.07467)."""
    x_f32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True)
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    return (x_f32 * jax.lax.rsqrt(mean_square + eps) * scale).astype(x.dtype)


def rope_tables(positions_BS: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [B, S, d / 2], float32, of ``position * theta ** (-2 i / d)`` (arXiv 2104.09864)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles_BSd = positions_BS.astype(jnp.float32)[..., None] * frequencies[None, None, :]
    return jnp.cos(angles_BSd), jnp.sin(angles_BSd)


def apply_rope(x_BSHd: jax.Array, cos_BSd: jax.Array, sin_BSd: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + d / 2) of every head: the layout of Hugging Face's Llama and Qwen weights."""
    cos_BSHd, sin_BSHd = cos_BSd[:, :, None, :], sin_BSd[:, :, None, :]
    first_BSHd, second_BSHd = jnp.split(x_BSHd.astype(jnp.float32), 2, axis=-1)
    rotated = (first_BSHd * cos_BSHd - second_BSHd * sin_BSHd, second_BSHd * cos_BSHd + first_BSHd * sin_BSHd)
    return jnp.concatenate(rotated, axis=-1).astype(x_BSHd.dtype)
