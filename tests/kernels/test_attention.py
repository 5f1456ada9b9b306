"""The reference against the definition, and the entry; what other backends owe the reference is in test_backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.kernels.attention import attention
from lclm_jax.kernels.chunked_attention import chunked_attention
from lclm_jax.kernels.reference_attention import reference_attention


def inputs(rng, B=2, S=11, T=11, H=4, K=2, d=6):
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(B, S, H, d), (B, T, K, d), (B, T, K, d)])
    segments = np.sort(rng.integers(0, 3, (B, T))).astype(np.int32)
    segments[0] = [1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0][:T]
    return q, k, v, segments


def by_loops(q, k, v, segments, causal, offset):
    """The definition, one query at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    q_segments, kv_segments = segments
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, s, h in np.ndindex(*q.shape[:3]):
        seen = [
            t
            for t in range(k.shape[1])
            if q_segments[b, s] == kv_segments[b, t] != 0 and (not causal or t <= offset[b] + s)
        ]
        if seen:
            scores = k[b, seen, h // group] @ q[b, s, h] / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, s, h] = weights / weights.sum() @ v[b, seen, h // group]
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_matches_the_definition(rng, causal):
    q, k, v, segments = inputs(rng)
    out = reference_attention(q, k, v, (segments, segments), causal, None)
    np.testing.assert_allclose(out, by_loops(q, k, v, (segments, segments), causal, [0, 0]), atol=1e-5)
    assert (np.asarray(out)[segments == 0] == 0).all()


def test_offset_places_queries_among_the_keys(rng):
    q, k, v, _ = inputs(rng, S=3)
    ones = (np.ones((2, 3), np.int32), np.ones((2, 11), np.int32))
    offset = np.array([2, 8], np.int32)
    out = reference_attention(q, k, v, ones, True, jnp.asarray(offset))
    np.testing.assert_allclose(out, by_loops(q, k, v, ones, True, offset), atol=1e-5)


def test_chunked_never_builds_the_scores():
    S = 96
    q, k = jnp.zeros((1, S, 2, 4)), jnp.zeros((1, S, 1, 4))
    segments = jnp.ones((1, S), jnp.int32)

    def loss(q, k):
        return chunked_attention(q, k, k, (segments, segments), True, None, 16).sum()

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(q, k))
    assert "16,16]" in text and f"{S},{S}]" not in text


def test_auto_takes_the_linear_backend_for_long_rows(rng):
    q = jnp.zeros((1, 1100, 2, 4))
    segments = jnp.ones((1, 1100), jnp.int32)
    text = str(jax.make_jaxpr(lambda q: attention(q, q, q, segments=(segments, segments), causal=True))(q))
    assert "1100,1100]" not in text


def test_bfloat16_keeps_float32_softmax(rng):
    q, k, v, segments = inputs(rng)
    exact = reference_attention(q, k, v, (segments, segments), True)
    for run in (reference_attention, lambda *a: chunked_attention(*a, block=4)):
        out = run(*(x.astype(jnp.bfloat16) for x in (q, k, v)), (segments, segments), True, None)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=3e-2)


def test_errors_name_the_shapes_and_the_fix(rng):
    q, k, v, segments = inputs(rng)
    both = (segments, segments)
    with pytest.raises(LclmError, match="backend 'flash' is unknown; set model"):
        attention(q, k, v, segments=both, causal=True, backend="flash")
    with pytest.raises(LclmError, match="key heads must divide"):
        attention(q[:, :, :3], k, v, segments=both, causal=True)
    with pytest.raises(LclmError, match="equal k, v"):
        attention(q, k, v[:, :5], segments=both, causal=True)
    with pytest.raises(LclmError, match="one id per query"):
        attention(q, k, v, segments=(segments[:, :3], segments), causal=True)
