from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.train.core.loss import LossSums, loss_sums, sum_nll


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


@pytest.mark.parametrize(("normalisation", "penalty"), [("per_token", 0.1 * 9), ("per_row", 0.1 * 7)])
def test_z_loss_is_weighed_as_the_loss_and_not_reported(monkeypatch, normalisation, penalty):
    nll, squares = jnp.array([[2.0, 4.0], [6.0, 9.0]]), jnp.array([[1.0, 3.0], [5.0, 9.0]])
    monkeypatch.setattr("lclm_jax.train.core.loss.forward", lambda *inputs: None)
    monkeypatch.setattr("lclm_jax.train.core.loss.token_nll_and_lse", lambda *inputs: (nll, jnp.sqrt(squares)))
    batch = SimpleNamespace(targets=None, loss_weights=jnp.array([[1.0, 1.0], [1.0, 0.0]]))
    without, sums = (loss_sums({}, None, batch, normalisation, z_loss=z_loss)[0] for z_loss in (0.0, 0.1))
    np.testing.assert_allclose(sums.objective() - without.objective(), penalty, rtol=1e-6)
    assert float(sums.mean()) == float(without.mean()) and float(without.z_loss) == 0.0


def test_shapes_must_agree():
    with pytest.raises(LclmError, match=r"\(1, 2\), weights \(2,\)"):
        sum_nll(jnp.zeros((1, 2)), jnp.zeros(2), "per_token")


def test_losses_are_told_apart_by_objective(monkeypatch):
    nll = jnp.array([[2.0, 4.0, jnp.nan], [6.0, 9.0, 5.0]])
    monkeypatch.setattr("lclm_jax.train.core.loss.forward", lambda *inputs: None)
    monkeypatch.setattr("lclm_jax.train.core.loss.token_nll_and_lse", lambda *inputs: (nll, nll))
    batch = SimpleNamespace(
        targets=None,
        loss_weights=jnp.array([[1.0, 0.5, 0.0], [1.0, 0.0, 1.0]]),
        objectives=jnp.array([[0, 2, 2], [2, 2, -1]], jnp.int8),
    )
    sums, _ = loss_sums({}, None, batch, "per_row", objectives=["cpt", "chat", "qa"])
    assert {name: pair.tolist() for name, pair in sums.by_objective.items()} == {
        "cpt": [2.0, 1.0], "chat": [0.5 * 4 + 6, 1.5], "qa": [0.0, 0.0]
    }  # fmt: skip
    added = LossSums.zero(["cpt", "chat", "qa"]).add(sums).add(sums)
    assert added.by_objective["chat"].tolist() == [16.0, 3.0]
