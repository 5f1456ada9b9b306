"""What every attention backend owes: the reference's numbers, and not one bit from another segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.backends import RUN, B, S, anything, arrays, compiled, runs

OTHERS = [name for name in RUN if name != "reference"]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_output_and_gradients_are_the_references(name, causal):
    @settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @given(segments=runs() | anything(), seed=st.integers(0, 9), size=st.sampled_from([0.1, 1.0, 8.0]))
    def check(segments, seed, size):
        q, k, v, weights = arrays(seed)
        ours, expected = (compiled(run, causal)(size * q, k, v, weights, segments) for run in (name, "reference"))
        for array, reference in zip(ours, expected, strict=True):
            assert np.isfinite(array).all()
            np.testing.assert_allclose(array, reference, atol=3e-5 * max(1.0, np.abs(reference).max()))
        for array in ours:
            assert (array[segments == 0] == 0).all(), "padding returns zeros and has no gradient"

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_any_shape_and_dtype(name):
    """Each example compiles anew."""
    heads = st.sampled_from([(1, 1), (3, 3), (4, 1), (6, 2)])
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 160), heads, st.sampled_from([8, 64, 128]))

    @settings(max_examples=6, deadline=None, derandomize=True, database=None)
    @given(data=st.data(), shape=shapes, causal=st.booleans(), dtype=st.sampled_from(["float32", "bfloat16"]))
    def check(data, shape, causal, dtype):
        rows, length, heads, width = shape
        segments = data.draw(runs(length, rows) | anything(length, rows))
        inputs = arrays(length, (rows, length, *heads, width), dtype)
        exact = compiled("reference", causal)(*(x.astype(jnp.float32) for x in inputs), segments)
        tolerance = 3e-5 if dtype == "float32" else 2e-2
        for array, expected in zip(compiled(name, causal)(*inputs, segments), exact, strict=True):
            assert array.dtype == dtype and array.shape == expected.shape
            worst = tolerance * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(array.astype(np.float32), expected, atol=worst)

    check()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", RUN)
def test_a_segment_never_moves_another_by_a_bit(name, causal, rng):
    segments = np.repeat([[1, 2, 3, 0], [4, 0, 2, 1]], [30, 23, 31, 16], axis=1).astype(np.int32)
    inputs = arrays(0)
    before = compiled(name, causal)(*inputs, segments)
    for other in (2, 0):
        noise = [jnp.asarray(rng.normal(size=x.shape) * 30, x.dtype) for x in inputs]
        moved = (segments == other)[:, :, None, None]
        after = compiled(name, causal)(*(jnp.where(moved, n, x) for n, x in zip(noise, inputs, strict=True)), segments)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old[segments != other], new[segments != other])
        assert other == 0 or (before[0][segments == other] != after[0][segments == other]).any()


@pytest.mark.parametrize("name", ["reference", "chunked", "pallas_tpu", "pallas_gpu"])
def test_offset_places_queries_among_the_keys(name):
    q, k, v, _ = arrays(3)
    segments = np.repeat([[1, 2, 3, 0], [4, 1, 2, 1]], [30, 23, 31, 16], axis=1).astype(np.int32)
    whole = compiled("reference", True)(q, k, v, jnp.ones_like(q), segments)[0]
    offset, queries = np.array([20, 55], np.int32), 45

    def part(x):
        return jnp.stack([x[b, offset[b] : offset[b] + queries] for b in range(B)])

    ours = jax.jit(RUN[name], static_argnums=4)(part(q), k, v, (part(segments), segments), True, jnp.asarray(offset))
    np.testing.assert_allclose(ours, part(whole), atol=1e-5)


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_bfloat16_keeps_a_float32_softmax(name):
    q, k, v, weights = arrays(1)
    segments = np.repeat([[1, 2, 3, 0], [4, 0, 2, 1]], [30, 23, 31, 16], axis=1).astype(np.int32)
    exact = compiled("reference", True)(q, k, v, weights, segments)
    half = compiled(name, True)(*(x.astype(jnp.bfloat16) for x in (q, k, v, weights)), segments)
    for ours, expected in zip(half, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(np.float32), expected, atol=2e-2 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_what_is_not_counted_is_not_read(name):
    """NaN in keys that no query of a segment may see would show, were a pair of tiles computed that need not be."""
    q, k, v, weights = arrays(0)
    segments = np.repeat([[1, 2, 3]] * B, [32, 32, S - 64], axis=1).astype(np.int32)
    clean = compiled(name, True)(q, k, v, weights, segments)[0]
    for begin, end in ((0, 32), (32, 64), (64, S), (0, 16)):
        outside = (np.arange(S) < begin) | (np.arange(S) >= end)
        k_bad, v_bad = (jnp.where(outside[None, :, None, None], jnp.nan, x) for x in (k, v))
        out = compiled(name, True)(q, k_bad, v_bad, weights, segments)[0]
        np.testing.assert_array_equal(out[:, begin:end], clean[:, begin:end])
