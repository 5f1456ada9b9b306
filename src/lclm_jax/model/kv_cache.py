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


def write(cache_LBTKd: jax.Array, new_BSKd: jax.Array, layer: jax.Array, offset_B: jax.Array) -> jax.Array:
    """The cache with ``new_BSKd`` in ``layer``, at positions ``offset_B[b] + s`` of row b.

    The caller keeps them in range. Row by row, as a slice can be written in place: a scatter of all rows would copy the
    cache.
    """
    new_BSKd = new_BSKd.astype(cache_LBTKd.dtype)
    for row in range(new_BSKd.shape[0]):
        place = (layer, row, offset_B[row], 0, 0)
        cache_LBTKd = jax.lax.dynamic_update_slice(cache_LBTKd, new_BSKd[row][None, None], place)
    return cache_LBTKd
