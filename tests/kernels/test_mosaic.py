"""Attention in Mosaic GPU, in its interpreter with race detection: the reference's numbers, nothing between segments.

The interpreter runs three threads for each program and takes seconds for a few of them, so there is one small case for
each thing. It needs a newer JAX than the oldest that is supported.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from tests.kernels.backends import arrays

from lclm_jax.kernels.gpu import mosaic
from lclm_jax.kernels.gpu.attention import blocked_attention
from lclm_jax.kernels.reference_attention import reference_attention
from lclm_jax.kernels.request import AttentionRequest

recent = pytest.mark.skipif(
    jax.__version_info__ < (0, 11), reason="Mosaic's interpreter detects races from JAX 0.11 on"
)
SEGMENTS = np.repeat([[5, 2, 7, 0]], [60, 100, 25, 7], axis=1).astype(np.int32)
HOPPER = "NVIDIA H100 80GB HBM3"


def interpreted(causal):
    return mosaic.layout_of(64, causal)._replace(interpret=plgpu.InterpretGPUParams(detect_races=True))


def with_gradients(run, q, k, v, weights):
    def loss(q, k, v):
        out = run(q, k, v).astype(jnp.float32)
        return (out * weights).sum(), out

    (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@recent
@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_output_and_gradients_are_the_references_without_a_race(causal):
    """192 positions, which no block divides; two heads share keys; a change in one segment moves no bit of others."""
    inputs = arrays(0, (1, 192, 2, 1, 64), jnp.bfloat16)
    both = (SEGMENTS, SEGMENTS)
    ours = functools.partial(blocked_attention, interpreted(causal), segments=both)
    got = with_gradients(ours, *inputs)
    exact = functools.partial(reference_attention, segments=both, causal=causal)
    for array, expected in zip(got, with_gradients(exact, *(x.astype(jnp.float32) for x in inputs)), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-2 * max(1.0, np.abs(expected).max()))
        assert (array[SEGMENTS == 0] == 0).all(), "padding returns zeros and has no gradient"
    if causal:
        moved = (SEGMENTS == 2)[:, :, None, None]
        after = with_gradients(ours, *(jnp.where(moved, 3 - x, x) for x in inputs))
        for old, new in zip(got, after, strict=True):
            np.testing.assert_array_equal(old[SEGMENTS != 2], new[SEGMENTS != 2])


@recent
@pytest.mark.slow
def test_offset_places_queries_and_other_blocks_are_not_read():
    """Queries from 64 on, of the second segment: NaN in keys that only the first one needs stays there."""
    q, k, v, _ = arrays(1, (1, 256, 2, 1, 64), jnp.bfloat16)
    segments = np.repeat([[1, 2]], [64, 192], axis=1).astype(np.int32)
    want = reference_attention(*(x.astype(jnp.float32) for x in (q, k, v)), (segments, segments), True)
    part, bad = slice(64, 192), (segments == 1)[:, :, None, None]
    layout = interpreted(True)._replace(forward=(128, 64, 2))
    k, v = (jnp.where(bad, jnp.nan, x) for x in (k, v))
    out = blocked_attention(layout, q[:, part], k, v, (segments[:, part], segments), jnp.array([64], jnp.int32))
    np.testing.assert_allclose(np.asarray(out, np.float32), want[:, part], atol=2e-2)


def test_refuses_what_it_cannot_do(monkeypatch):
    request = AttentionRequest("gpu", 1, 256, 256, 4, 2, 128, "bfloat16", causal=True, to_itself=True, offset=False)
    monkeypatch.setattr(mosaic, "device_kind", lambda: HOPPER)
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    assert mosaic.unsupported_reason(request) is None
    for changes, words in (
        ({"platform": "tpu"}, "GPUs only"),
        ({"head_dim": 96}, "64 or 128"),
        ({"dtype": "float32"}, "bfloat16 only"),
        ({"queries": 1}, "at least 64"),
    ):
        assert words in mosaic.unsupported_reason(dataclasses.replace(request, **changes))
    monkeypatch.setattr(mosaic, "device_kind", lambda: "NVIDIA A100-SXM4-80GB")
    assert "Hopper" in mosaic.unsupported_reason(request)
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    assert "0.11" in mosaic.unsupported_reason(request)
