"""What every pooling with parameters must do, whoever adds one, and the arithmetic of those that are here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from lclm_jax.config.poolings import POOLINGS
from lclm_jax.interop.names import tensor_table
from lclm_jax.model import abstract_params, init_params, logical_axes
from lclm_jax.model.lclm import encode_pooled
from lclm_jax.model.pooling import dummy_groups, pool_rows, pooling_of
from lclm_jax.plan.census import count
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.memory import parameter_counts

LEARNED = [name for name, row in POOLINGS.items() if row.code is not None]
WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], np.float32)
"""Of one encoder row at N = 4: a whole group, a short tail, a gap."""


def random_params(model):
    """Parameters of encoder norm and pooling, every leaf random."""
    leaves, tree = jax.tree.flatten(abstract_params(model))
    keys = jax.random.split(jax.random.key(5), len(leaves))
    drawn = [jax.random.normal(key, leaf.shape) * 0.5 for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


@pytest.fixture(params=LEARNED)
def learned(request, make_model):
    """A model with a pooling that has parameters."""
    return make_model(pooling=request.param)


def test_groups_are_pooled_each_on_its_own(learned, batches, mesh):
    params = random_params(learned)
    x_BRE = jax.random.normal(jax.random.key(1), (1, 12, learned.encoder.hidden_size))
    batch = batches.build(learned, [[]])._replace(pool_weights=WEIGHTS[None, None])

    def pooled(params, x_BRE):
        return pool_rows(params, learned, x_BRE, batch, "batch", None)[0]

    @jax.jit
    def run(params, x_BRE):
        jacobian = jax.jacrev(pooled, 1)(params, x_BRE)[:, :, 0]
        gradient = jax.grad(lambda pool: (pooled(merged(pool), x_BRE) ** 2).sum())(params["adapter"]["pool"])
        return pooled(params, x_BRE), jnp.abs(jacobian).max((1, 3)), gradient

    def merged(pool):
        return params | {"adapter": params["adapter"] | {"pool": pool}}

    pooled_LE, reached_LR, gradient = run(params, x_BRE)
    assert pooled_LE.shape == (3, learned.latent_size)
    allowed = np.zeros((3, 12), bool)
    allowed[0, :4] = allowed[1, 4:6] = True  # neither the padding of the tail nor the gap
    np.testing.assert_array_equal(np.asarray(reached_LR) > 0, allowed)
    assert not np.asarray(pooled_LE[2]).any()
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_products_are_those_that_the_compiler_counts(learned):
    pooling, groups = pooling_of(learned), dummy_groups(learned)
    params = {"params": abstract_params(learned)["adapter"]["pool"]}
    text = jax.jit(pooling.apply).lower(params, *groups).compile().as_text()
    products = pooling.products()
    assert count(parse(text), 1).dot_flops == 2 * (products.kernels + products.states)


def test_parameters_stand_with_the_adapters(learned, make_model):
    shapes, plain = abstract_params(learned), abstract_params(make_model())
    axes = logical_axes(learned)["adapter"]["pool"]
    pool = shapes["adapter"].pop("pool")
    assert jax.tree.structure(pool) == jax.tree.structure(axes, is_leaf=lambda node: isinstance(node, tuple))
    size = sum(leaf.size for leaf in jax.tree.leaves(pool))
    if learned.latent_size == make_model().latent_size:
        assert shapes == plain  # nothing else changes
        counted, without = (parameter_counts(m)["adapter"] for m in (learned, make_model()))
        assert counted - without == size > 0


def test_the_rest_starts_with_the_values_that_it_has_without(learned, make_model):
    params, plain = (init_params(m, jax.random.key(0)) for m in (learned, make_model()))
    assert bool((params["encoder"]["embed"]["table"] == plain["encoder"]["embed"]["table"]).all())
    assert bool((params["adapter"]["fc2"]["kernel"] == plain["adapter"]["fc2"]["kernel"]).all())


def test_models_of_the_machinery_alone_are_not_exported(learned):
    with pytest.raises(ValueError, match=f"model.pooling={learned.pooling} is not part of the published format"):
        tensor_table(learned)


def test_an_unknown_pooling_is_refused_with_the_choices(make_model):
    with pytest.raises(ValidationError, match="'max' is unknown; use one of mean, concat, eos"):
        make_model(pooling="max")


def test_attention_pooling_is_what_numpy_computes(make_model):
    model = make_model(pooling="attention")
    pool = random_params(model)["adapter"]["pool"]
    rng = np.random.default_rng(0)
    hidden_BLNE = rng.normal(size=(1, 2, 4, 24)).astype(np.float32)
    weights_BLN = np.array([[[1, 1, 1, 1], [1, 1, 0, 0]]], np.float32)
    found = jax.jit(pooling_of(model).apply)({"params": pool}, hidden_BLNE, weights_BLN)
    q, k, v, o = (np.asarray(leaf, np.float64) for leaf in (pool["query"], *(pool[n]["kernel"] for n in "kvo")))
    for group, real in enumerate((4, 2)):
        states = hidden_BLNE[0, group, :real].astype(np.float64)
        expected = states.mean(0)
        for head in range(2):
            scores = states @ k[:, head] @ q[head] / 12**0.5
            shares = np.exp(scores) / np.exp(scores).sum()
            expected = expected + shares @ (states @ v[:, head]) @ o[head]
        np.testing.assert_allclose(found[0, group], expected, rtol=1e-4, atol=1e-5)


def test_encoding_vmaps_over_stacked_parameters(make_model, batches, rng, mesh):
    model = make_model(pooling="attention")
    batch = batches.build(model, [[batches.example(model, rng, [9])]])
    two = [random_params(model), jax.tree.map(lambda leaf: -leaf, random_params(model))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *two)
    together = jax.jit(jax.vmap(lambda params: encode_pooled(params, model, batch)))(stacked)
    alone = jax.jit(lambda params: encode_pooled(params, model, batch))(two[1])
    np.testing.assert_allclose(together[1], alone, rtol=1e-4, atol=1e-5)
