import jax
import jax.numpy as jnp
import numpy as np

from lclm_jax.train.core.update_rules import stochastic_round


def rounded(value, count=20_000, seed=0):
    return np.asarray(stochastic_round(jnp.full(count, value, jnp.float32), jax.random.key(seed)), np.float64)


def test_gives_the_two_neighbours_and_the_value_on_average():
    step = 2.0**-7  # between bfloat16 values from 1 to 2
    for sign in (1.0, -1.0):
        found = rounded(sign * (1.0 + 0.25 * step))
        assert set(found) == {sign, sign * (1.0 + step)}
        np.testing.assert_allclose(found.mean(), sign * (1.0 + 0.25 * step), atol=4 * step * 0.5 / np.sqrt(len(found)))


def test_what_bfloat16_holds_stays_as_it_is():
    for value in (0.0, -0.0, 1.5, -3.0e-39, 2.0**-100):
        exact = float(jnp.bfloat16(value))
        assert set(rounded(exact, 1000)) == {exact}


def test_what_is_not_finite_stays_so():
    assert np.isnan(rounded(np.nan, 1000)).all()
    assert (rounded(np.inf, 1000) == np.inf).all() and (rounded(-np.inf, 1000) == -np.inf).all()


def test_equal_keys_round_equally():
    assert np.array_equal(rounded(0.1, seed=3), rounded(0.1, seed=3))
    assert not np.array_equal(rounded(0.1, seed=3), rounded(0.1, seed=4))
