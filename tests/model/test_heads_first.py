"""What TPUs get of the model, heads before positions and rotation by a product, is the same model."""

import jax
import numpy as np
import pytest
from tests.model.test_lora import BOTH, shaken

from lclm_jax.config import MeshConfig
from lclm_jax.model import abstract_params, block, forward, functional, init_params, token_nll
from lclm_jax.parallel import make_mesh, use_mesh

CASES = {
    "plain": ({}, 1e-5),
    "updates of low rank": ({"lora": BOTH}, 1e-5),
    # Where the last bit of an operand differs, it may round to the next of 127 steps.
    "8-bit products": ({"quantize": {"encoder": "int8", "decoder": "int8"}}, 2e-2),
}
"""What changes of the tiny model, and how far a gradient may be off, beside its largest value."""


def loss_and_gradients(model, params, batch):
    """A new function each time, as ``platform`` is read while it is traced."""

    def loss(params):
        return token_nll(params, model, forward(params, model, batch), batch.targets).mean()

    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(("changes", "off"), CASES.values(), ids=CASES)
def test_the_model_of_tpus(make_model, batches, rng, monkeypatch, changes, off):
    model = make_model(**changes)
    biased = {tower: getattr(model, tower).model_copy(update={"qkv_bias": True}) for tower in ("encoder", "decoder")}
    model = model.model_copy(update=biased)
    params = jax.tree.map(
        lambda x: x + 0.05 * rng.normal(size=x.shape).astype(x.dtype), init_params(model, jax.random.key(3))
    )
    params = shaken(params)
    batch = batches.build(model, [[batches.example(model, rng, [9, 3]), batches.example(model, rng, [6])]])
    expected = loss_and_gradients(model, params, batch)
    monkeypatch.setattr(block, "device_kind", lambda: "TPU v6 lite")
    monkeypatch.setattr(functional, "platform", lambda: "tpu")
    assert jax.tree.map(lambda x: x.shape, abstract_params(model)) == jax.tree.map(lambda x: x.shape, params)
    found = loss_and_gradients(model, params, batch)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=10 * off, atol=off * float(np.abs(other).max()))
