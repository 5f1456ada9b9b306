"""The key/value cache of the decoder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lclm_jax.config.model import ModelConfig
from lclm_jax.kernels.platform import platform


class KVCache(NamedTuple):
    """Keys and values of what each row has read so far; rows may differ in length."""

    k: jax.Array
    """[num_layers, B, T, K, d], in the compute dtype; on CPUs the bits of bfloat16, as uint16."""
    v: jax.Array
    """[num_layers, B, T, K, d]."""
    length_B: jax.Array
    """[B] int32: positions filled."""


def init_cache(model: ModelConfig, rows: int, length: int) -> KVCache:
    """An empty cache for ``rows`` rows of at most ``length`` positions, in ``model.compute_dtype``.

    XLA for CPUs writes a slice of a bfloat16 array by converting the whole array to float32 and back; bits it writes in
    place.
    """
    decoder = model.decoder
    shape = (decoder.num_layers, rows, length, decoder.num_kv_heads, decoder.head_dim)
    dtype = jnp.dtype(model.compute_dtype)
    if dtype == jnp.bfloat16 and platform() == "cpu":
        dtype = jnp.dtype(jnp.uint16)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(rows, jnp.int32))


def write(cache_LBTKd: jax.Array, new_BSKd: jax.Array, layer: jax.Array, offset_B: jax.Array) -> jax.Array:
    """The cache with ``new_BSKd`` in ``layer``, at positions ``offset_B[b] + s`` of row b.

    The caller keeps them in range. Row by row, as a slice can be written in place: a scatter of all rows would copy the
    cache.
    """
    if cache_LBTKd.dtype == jnp.uint16:
        new_BSKd = jax.lax.bitcast_convert_type(new_BSKd.astype(jnp.bfloat16), jnp.uint16)
    new_BSKd = new_BSKd.astype(cache_LBTKd.dtype)
    for row in range(new_BSKd.shape[0]):
        place = (layer, row, offset_B[row], 0, 0)
        cache_LBTKd = jax.lax.dynamic_update_slice(cache_LBTKd, new_BSKd[row][None, None], place)
    return cache_LBTKd
