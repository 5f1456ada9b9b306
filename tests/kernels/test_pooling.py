import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.kernels.pooling import pool

HIDDEN = jnp.arange(1 * 2 * 4 * 3, dtype=jnp.float32).reshape(1, 2, 4, 3)
WEIGHTS = jnp.asarray([[[1, 1, 1, 0], [0, 0, 0, 0]]], jnp.float32)


def test_mean_is_over_the_tokens_present():
    pooled = np.asarray(pool(HIDDEN, WEIGHTS, 2, "mean"))
    hidden = np.asarray(HIDDEN)[0, 0]
    np.testing.assert_allclose(pooled[0], [hidden[:2].mean(0), hidden[2], np.zeros(3), np.zeros(3)])


def test_concat_pads_a_short_group_with_zeros():
    pooled = np.asarray(pool(HIDDEN, WEIGHTS, 2, "concat"))
    hidden = np.asarray(HIDDEN)[0, 0]
    np.testing.assert_allclose(pooled[0, 0], hidden[:2].reshape(-1))
    np.testing.assert_allclose(pooled[0, 1], [*hidden[2], 0, 0, 0])
    assert (pooled[0, 2:] == 0).all()


def test_eos_reads_markers_and_leaves_gaps_zero():
    markers = jnp.asarray([[3, 5, 0, 0]])
    pooled = np.asarray(pool(HIDDEN, WEIGHTS, 2, "eos", markers))
    np.testing.assert_allclose(pooled[0, 0], HIDDEN[0, 0, 3])
    np.testing.assert_allclose(pooled[0, 1], HIDDEN[0, 1, 1])
    assert (pooled[0, 2:] == 0).all()


def test_mean_of_bfloat16_sums_in_float32():
    hidden = jnp.full((1, 1, 256, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(256.0)
    pooled = pool(hidden, jnp.ones((1, 1, 256)), 256, "mean")
    assert pooled.dtype == jnp.bfloat16 and float(pooled[0, 0, 0]) == 2.0


def test_errors():
    with pytest.raises(LclmError, match="multiple of ratio=3"):
        pool(HIDDEN, WEIGHTS, 3, "mean")
    with pytest.raises(LclmError, match="pooling 'max' is unknown"):
        pool(HIDDEN, WEIGHTS, 2, "max")
    with pytest.raises(LclmError, match="marker_index"):
        pool(HIDDEN, WEIGHTS, 2, "eos")
