import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.model.functional import apply_rope, rms_norm, rope_tables, rotate_by_product, silu_gate
from lclm_jax.model.splice import splice


def test_rms_norm_in_float32(rng):
    x = rng.normal(size=(2, 3, 8)).astype(np.float32)
    scale = rng.normal(size=8).astype(np.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(scale), 1e-6), expected, atol=1e-6)
    half = rms_norm(jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale), 1e-6)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=3e-2)


def test_rope_depends_on_relative_position_and_theta(rng):
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at_q, at_k, theta):
        rotated = [apply_rope(x, *rope_tables(jnp.array([[at]]), 8, theta)) for x, at in ((q, at_q), (k, at_k))]
        return float((rotated[0] * rotated[1]).sum())

    assert abs(score(7, 3, 1e4) - score(104, 100, 1e4)) < 1e-4
    assert abs(score(7, 3, 1e4) - score(8, 3, 1e4)) > 1e-3
    assert abs(score(7, 3, 1e4) - score(7, 3, 1e2)) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotation_by_a_product_is_the_rotation(rng, dtype):
    x, weight = (jnp.asarray(rng.normal(size=(2, 5, 3, 128)), dtype) for _ in range(2))
    tables = rope_tables(jnp.asarray(rng.integers(0, 20_000, (2, 5))), 128, 1e6)

    def by_product(x, cos_BSd, sin_BSd):
        return rotate_by_product(x, cos_BSd[:, :, None, :], sin_BSd[:, :, None, :])

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradient(rotate, x):
        value, pull = jax.vjp(lambda x: rotate(x, *tables), x)
        return value, *pull(weight)

    for expected, found in zip(value_and_gradient(apply_rope, x), value_and_gradient(by_product, x), strict=True):
        assert found.dtype == dtype
        # The compiler may fuse a product with the sum behind it or not: one rounding of float32 apart.
        one_apart = 2e-6 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(np.float32(found), np.float32(expected), rtol=one_apart, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gates_gradients_are_those_that_jax_derives(rng, dtype):
    gate, up, wanted = (jnp.asarray(3 * rng.normal(size=(64, 128)), dtype) for _ in range(3))

    def gradients(function, *arrays):
        return jax.jit(lambda gate, up, wanted: jax.vjp(function, gate, up)[1](wanted))(*arrays)

    found, derived = (
        gradients(function, gate, up, wanted) for function in (silu_gate, lambda g, u: jax.nn.silu(g) * u)
    )
    exact = gradients(lambda g, u: jax.nn.silu(g) * u, *(x.astype(jnp.float32) for x in (gate, up, wanted)))
    for ours, theirs, right in zip(found, derived, exact, strict=True):
        if dtype == jnp.float32:
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_array_equal(ours, right.astype(dtype))


def test_rope_tables_are_float32_far_out():
    cos, sin = rope_tables(jnp.array([[200_000]]), 64, 5e6)
    angles = 200_000 * 5e6 ** (-np.arange(0, 64, 2) / 64)
    assert cos.dtype == jnp.float32
    np.testing.assert_allclose(cos[0, 0], np.cos(angles), atol=3e-2)
    np.testing.assert_allclose(sin[0, 0], np.sin(angles), atol=3e-2)


def test_splice_is_a_gather_and_a_select():
    text = jnp.full((1, 4, 2), -1.0)
    latents = jnp.arange(6.0).reshape(1, 3, 2)
    spliced = splice(text, latents, jnp.array([[-1, 2, 0, -1]]))
    np.testing.assert_array_equal(spliced[0], [[-1, -1], [4, 5], [0, 1], [-1, -1]])
