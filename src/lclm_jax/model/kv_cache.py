"""The key/value cache of the decoder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.config.model import ModelConfig


class KVCache(NamedTuple):
    """Keys and values of what each row has read so far; rows may differ in length."""

    k: jax.Array
    """[num_layers, B, T, K, d], in the cache's dtype."""
    v: jax.Array
    """[num_layers, B, T, K, d]."""
    length_B: jax.Array
    """[B] int32: positions filled."""


def init_cache(model: ModelConfig, rows: int, length: int) -> KVCache:
    """An empty cache for ``rows`` rows of at most ``length`` positions, in ``model.compute_dtype``."""
    decoder = model.decoder
    shape = (decoder.num_layers, rows, length, decoder.num_kv_heads, decoder.head_dim)
    dtype = jnp.dtype(model.compute_dtype)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(rows, jnp.int32))


def write(cache_BTKd: jax.Array, new_BSKd: jax.Array, offset_B: jax.Array) -> jax.Array:
    """``cache_BTKd`` with ``new_BSKd`` at positions ``offset_B[b] + s`` of row b; the caller keeps them in range."""

    def row(cache_TKd: jax.Array, new_SKd: jax.Array, offset: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache_TKd, new_SKd, (offset, 0, 0))

    return jax.vmap(row)(cache_BTKd, new_BSKd.astype(cache_BTKd.dtype), offset_B)
