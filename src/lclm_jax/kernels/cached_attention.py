"""Attention of few new positions to a cache of keys and values, of which only the filled part is read."""

import jax
import jax.numpy as jnp

from lclm_jax.kernels.chunked_attention import LOWEST, online_softmax

BLOCK = 512
"""Keys read at a time."""


def values(x: jax.Array) -> jax.Array:
    """What part of a cache says: a cache may hold the bits of bfloat16 as uint16 (``model/kv_cache.py``)."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def cached_attention(
    q_BSHd: jax.Array,
    k_LBTKd: jax.Array,
    v_LBTKd: jax.Array,
    layer: jax.Array,
    offset_B: jax.Array,
    block: int = BLOCK,
) -> jax.Array:
    """Causal attention to one layer of a cache that holds the new positions already; every row is one segment.

    Blocks of keys are read straight from the cache up to the last filled one: time does not depend on its capacity T.

    Args:
        q_BSHd: queries of positions ``offset_B[b] + s``.
        k_LBTKd: keys of all layers, or their bits (``values``).
        v_LBTKd: values, likewise.
        layer: int32 scalar.
        offset_B: int32.
        block: keys read at a time; need not divide T.

    Returns:
        [B, S, H, d] in the queries' dtype.
    """
    rows, queries, heads, width = q_BSHd.shape
    _, _, capacity, kv_heads, _ = k_LBTKd.shape
    block = min(block, capacity)
    q_BSKGd = q_BSHd.reshape(rows, queries, kv_heads, heads // kv_heads, width)
    order_BS = offset_B[:, None] + jnp.arange(queries, dtype=jnp.int32)[None, :]

    def fold(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        begin = i * block
        start = jnp.minimum(begin, capacity - block)  # the last block may overlap the one before

        def read(x_LBTKd: jax.Array) -> jax.Array:
            size = (1, rows, block, kv_heads, width)
            return values(jax.lax.dynamic_slice(x_LBTKd, (layer, 0, start, 0, 0), size)[0]).astype(q_BSHd.dtype)

        place_T = start + jnp.arange(block, dtype=jnp.int32)
        mask_BST = (place_T[None, None] <= order_BS[..., None]) & (place_T >= begin)[None, None]
        return online_softmax(carry, q_BSKGd, read(k_LBTKd), read(v_LBTKd), mask_BST)

    lowest_BKGS = jnp.full((rows, kv_heads, heads // kv_heads, queries), LOWEST, jnp.float32)
    zero_BKGSd = jnp.zeros((*lowest_BKGS.shape, width), jnp.float32)
    blocks = (jnp.max(offset_B) + queries + block - 1) // block
    _, sum_BKGS, out_BKGSd = jax.lax.fori_loop(0, blocks, fold, (lowest_BKGS, jnp.zeros_like(lowest_BKGS), zero_BKGSd))
    out_BSKGd = jnp.moveaxis(out_BKGSd / sum_BKGS[..., None], 3, 1)
    return out_BSKGd.reshape(q_BSHd.shape).astype(q_BSHd.dtype)
