"""Which products of a block the backward pass takes again, and where the others wait."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from pydantic import ValidationError

from lclm_jax.config import MeshConfig
from lclm_jax.model.block import StackOptions, attention_context, layers
from lclm_jax.parallel import make_mesh, use_mesh


@pytest.fixture
def stack(make_model):
    """Settings of a model -> (loss of the encoder's layers as a function of their parameters, parameters)."""

    def make(**settings):
        model = make_model(**settings)
        config, segments_BS = model.encoder, jnp.ones((1, 8), jnp.int32)
        options = StackOptions.of(model, False, "encoder_rows", "encoder_seq")
        options = options._replace(remat=model.remat_of("encoder"), heads="encoder_heads", kv_heads="encoder_heads")
        module = layers(config, options._replace(mlp="encoder_mlp", width="encoder_embed"), initializing=True)
        context = attention_context(config, segments_BS, jnp.arange(8)[None])
        x_BSD = jnp.sin(jnp.arange(8.0 * config.hidden_size)).reshape(1, 8, -1)
        params = jax.tree.map(lambda box: box.value, module.init(jax.random.key(0), (x_BSD, None), None, context),
                              is_leaf=lambda node: hasattr(node, "axes"))  # fmt: skip
        return lambda params: jnp.sum(module.apply(params, (x_BSD, None), None, context)[0][0] ** 2), params

    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        yield make


def saving(**tensors):
    return {"remat": "full", "attention": "reference", "remat_tensors": {"encoder": tensors}}


def test_saved_products_are_not_taken_again_and_gradients_are_the_same(stack):
    counts, texts, gradients = [], [], []
    for settings in (saving(), saving(device=["q", "o"], host=["gate", "up"])):
        loss, params = stack(**settings)
        traced = jax.jit(jax.grad(loss)).trace(params)
        # As compilers do, what nobody reads is dropped.
        text = str(dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))[0])
        counts.append(text.count("dot_general["))
        texts.append(text.lower())
        gradients.append(traced.lower().compile({"xla_backend_optimization_level": 0})(params))
    assert counts[1] == counts[0] - 4
    assert "host" in texts[1] and "host" not in texts[0]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        # Fused multiply-adds round differently where a product is repeated, by a share of the sum's largest terms.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (saving(device=["q"], host=["q", "k"]), "name q twice"),
        (saving(device=["down"]), "'q', 'k', 'v', 'o', 'gate' or 'up'"),
        (saving(device=["q"]) | {"remat": "dots"}, "no effect with remat=dots, which saves every product; .* to full"),
    ],
)
def test_what_makes_no_sense_is_refused(make_model, settings, message):
    with pytest.raises(ValidationError, match=message):
        make_model(**settings)


def test_each_backbone_has_a_policy_of_its_own(make_model):
    model = make_model(remat="decoder_attention", remat_tensors={"decoder": {"device": ["q"], "host": ["up"]}})
    encoder, decoder = model.remat_of("encoder"), model.remat_of("decoder")
    assert (encoder.saves_attention, encoder.repeated) == (False, {"q", "k", "v", "o", "gate", "up"})
    assert (decoder.saves_attention, decoder.repeated) == (True, {"k", "v", "o", "gate"})
