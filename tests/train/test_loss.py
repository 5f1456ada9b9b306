import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.train.loss import sum_nll


@pytest.mark.parametrize(("normalisation", "total", "weight"), [("per_token", 9.0, 3.0), ("per_row", 7.0, 2.0)])
def test_both_normalisations(normalisation, total, weight):
    nll = jnp.array([[1.0, 3.0], [5.0, 9.0], [7.0, 7.0]])
    weights = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    sums = sum_nll(nll, weights, normalisation)
    assert (float(sums.total), float(sums.weight), float(sums.tokens)) == (total, weight, 3.0)
    np.testing.assert_allclose(sums.mean(), total / weight, rtol=1e-6)


def test_hidden_positions_hide_anything_and_no_token_is_no_loss():
    sums = sum_nll(jnp.array([[jnp.nan, 1.0]]), jnp.array([[0.0, 0.0]]), "per_row")
    assert float(sums.mean()) == 0.0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 2\), weights \(2,\)"):
        sum_nll(jnp.zeros((1, 2)), jnp.zeros(2), "per_token")
