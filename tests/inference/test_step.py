"""One more token of every row, through stacked layers and through layers that are views into the stack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.inference.step import DecodingStep, unstack
from lclm_jax.model import init_cache, init_params
from lclm_jax.parallel import make_mesh


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_of_their_own_give_what_a_loop_over_the_stack_gives(dtype, make_model, make_backbone, mesh, monkeypatch):
    monkeypatch.setattr("lclm_jax.inference.step.GROUP", 2)
    deep = make_model(decoder=make_backbone(num_layers=3), compute_dtype=dtype, memory_token_ids=(3, 4, 5))
    params = init_params(deep, jax.random.key(0))
    apart, stacked = DecodingStep(params, deep, mesh), DecodingStep(params, deep, mesh)
    assert [len(group) for group in apart.groups] == [2, 1]
    stacked.groups, stacked.params = [], params
    found = []
    for step in (apart, stacked):
        cache = init_cache(deep, rows=2, length=8)
        for tokens, counts in (([7, 8], None), ([4, 9], None), ([6, 6], [1, 0])):
            counts = counts and jnp.array(counts, jnp.int32)
            logits_BV, cache = step(jnp.array(tokens, jnp.int32), cache, counts)
        assert cache.length_B.tolist() == [3, 2]
        found.append(logits_BV)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(*found, rtol=tolerance, atol=tolerance)


def test_layers_share_the_memory_of_the_stack(mesh):
    stack = {"norm": jnp.ones((3, 16)), "kernel": jnp.arange(3 * 16 * 8, dtype=jnp.float32).reshape(3, 16, 8)}
    layers = unstack(stack, jax.devices()[0])
    assert len(layers) == 3
    np.testing.assert_array_equal(layers[2]["kernel"], stack["kernel"][2])
    start = stack["kernel"].unsafe_buffer_pointer()
    assert [layer["kernel"].unsafe_buffer_pointer() - start for layer in layers] == [0, 512, 1024]


def test_several_devices_keep_the_stack(make_model):
    model = make_model()
    assert not DecodingStep({"decoder": {}}, model, make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])).groups
