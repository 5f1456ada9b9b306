"""Attention to a cache equals attention to its filled part, and reads nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.kernels.cached_attention import cached_attention
from lclm_jax.kernels.reference_attention import reference_attention


@pytest.mark.parametrize("queries", [1, 3])
def test_it_reads_the_filled_part_of_its_layer(rng, queries):
    """Capacity 11 in blocks of 4: the last block overlaps the one before. What lies beyond the filled part is NaN."""
    lengths, layer = np.array([7, 3]), 1
    q = jnp.asarray(rng.normal(size=(2, queries, 4, 8)), jnp.float32)
    k, v = (np.full((2, 2, 11, 2, 8), np.nan, np.float32) for _ in range(2))
    for x in (k, v):
        for row, length in enumerate(lengths):
            x[layer, row, : length + queries] = rng.normal(size=(length + queries, 2, 8))
    beyond = int(lengths.max()) + queries
    for x in (k, v):  # a masked key may be anything but a NaN where its block is read
        x[layer, :, :beyond] = np.nan_to_num(x[layer, :, :beyond])
        x[layer, :, beyond : -(-beyond // 4) * 4] = 0
    found = jax.jit(lambda *x: cached_attention(*x, block=4))(
        q, jnp.asarray(k), jnp.asarray(v), jnp.int32(layer), jnp.asarray(lengths, jnp.int32)
    )
    for row, length in enumerate(lengths):
        here = (slice(row, row + 1), slice(0, length + queries))
        keys, values = jnp.asarray(k[layer][here]), jnp.asarray(v[layer][here])
        ids = jnp.ones(keys.shape[:2], jnp.int32)
        offset = jnp.array([length], jnp.int32)
        wanted = reference_attention(q[row : row + 1], keys, values, (ids[:, :queries], ids), True, offset)
        np.testing.assert_allclose(found[row : row + 1], wanted, atol=1e-6)
