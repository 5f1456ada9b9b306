"""Rounding that keeps what it rounds away, on average: for parameters that are stored in bfloat16."""

import jax
import jax.numpy as jnp


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round float32 to one of the two nearest bfloat16 values, the nearer the likelier; the mean is ``x``.

    An update smaller than half the distance between two bfloat16 values (a 256th of the parameter) would be lost in
    every step by rounding to nearest (Gupta et al. 2015, arXiv 1502.02551; Zamirai et al. 2020, arXiv 2010.06192).
    bfloat16 is the upper half of a float32, so adding a uniform 16-bit number and cutting the lower half off is all.

    Args:
        x: float32, any shape.
        key: random key; equal keys round equally, on any mesh.

    Returns:
        bfloat16. What is not finite is rounded to nearest.
    """
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = jax.lax.bitcast_convert_type((words + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)
