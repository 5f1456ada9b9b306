"""Eight devices: where parameters lie (a reviewed snapshot), and that numbers do not depend on it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.model import abstract_params, forward, init_params, logical_axes, token_nll
from lclm_jax.parallel import batch_sharding, make_mesh, params_sharding, use_mesh

SNAPSHOT = Path(__file__).with_name("sharding_snapshot.json")


def everything(make_model, make_backbone):
    """A model with every kind of parameter there is, whose sizes divide the meshes below."""
    encoder = make_backbone(hidden_size=24, num_heads=2, num_kv_heads=2, head_dim=12, mlp_size=40)
    adapter = {"type": "attn_mlp", "num_layers": 1}
    return make_model(encoder=encoder, decoder=make_backbone(tie_embeddings=False), adapter=adapter)


def test_shardings_match_the_snapshot(make_model, make_backbone):
    model, mesh = everything(make_model, make_backbone), make_mesh(MeshConfig(fsdp=4, tensor=2))
    shardings = params_sharding(mesh, logical_axes(model), abstract_params(model))
    leaves = jax.tree_util.tree_leaves_with_path(shardings)
    found = {"/".join(entry.key for entry in path): list(sharding.spec) for path, sharding in leaves}
    expected = json.loads(SNAPSHOT.read_text())
    assert found == expected, f"shardings changed; if this is meant, write to {SNAPSHOT.name}: {json.dumps(found)}"


@pytest.mark.parametrize("sizes", [dict(fsdp=4, tensor=2), dict(replica=2, fsdp=2, context=2)], ids=str)
def test_eight_devices_compute_what_one_does(sizes, make_model, make_backbone, batches, rng):
    model = everything(make_model, make_backbone).model_copy(update=dict(remat="full", loss_chunk=8))
    batch = batches.build(model, [[batches.example(model, rng, [9, 3])] for _ in range(4)], S=24)

    def loss(params, batch):
        nll = token_nll(params, model, forward(params, model, batch), batch.targets)
        return (nll * batch.loss_weights).sum() / batch.loss_weights.sum()

    results = []
    for mesh in (make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(**sizes))):
        with use_mesh(mesh):
            places = params_sharding(mesh, logical_axes(model), abstract_params(model))
            params = jax.device_put(init_params(model, jax.random.key(0)), places)
            step = jax.jit(jax.value_and_grad(loss), in_shardings=(places, batch_sharding(mesh)))
            results.append(jax.device_get(step(params, batch)))
    (one_loss, one), (eight_loss, eight) = results
    np.testing.assert_allclose(eight_loss, one_loss, rtol=1e-5)
    for ours, expected in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * max(1.0, np.abs(expected).max()))
