"""What every pooling with parameters must do, whoever adds one, and the arithmetic of those that are here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from lclm_jax.batch import Batch, batch_shapes
from lclm_jax.config import MeshConfig, PackConfig, StageConfig
from lclm_jax.config.registry.adapters import ADAPTERS
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.data.packing.rows import assemble_batch, pack_for
from lclm_jax.errors import LclmError
from lclm_jax.interop.hf_weight_map import tensor_table
from lclm_jax.model import abstract_params, init_params, logical_axes
from lclm_jax.model.adapter import adapter_of
from lclm_jax.model.flops import step_flops
from lclm_jax.model.lclm import encode, encode_pooled
from lclm_jax.model.pooling import dummy_groups, pool_rows, pooling_of
from lclm_jax.model.poolings.late_layers import latent_windows
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.parameters import parameter_counts
from lclm_jax.plan.program_cost import count
from lclm_jax.text.example import expand
from lclm_jax.text.outline import make_outline
from lclm_jax.train.core.step import put_batch

LEARNED = [name for name, row in POOLINGS.items() if row.code is not None and row.markers is None]
OURS = [{"pooling": name} for name, row in POOLINGS.items() if not row.published]
OURS += [{"adapter": {"type": name}} for name, row in ADAPTERS.items() if not row.published]
OURS += [{"pool_before_last": 1}]
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
    def some(model):  # few leaves, so that little is compiled
        params = init_params(model, jax.random.key(0))
        return params["encoder"]["final_norm"]["scale"], params["adapter"]["fc2"]["kernel"]

    found, plain = jax.jit(lambda: (some(learned), some(make_model())))()
    assert jax.tree.all(jax.tree.map(lambda ours, theirs: bool((ours == theirs).all()), found, plain))


@pytest.mark.parametrize("changes", OURS, ids=str)
def test_what_the_published_format_lacks_is_not_exported(changes, make_model):
    name, value = next(iter(changes.items()))
    name, value = ("adapter.type", value["type"]) if name == "adapter" else (name, value)
    with pytest.raises(LclmError, match=f"model.{name}={value} is not part of the published format"):
        tensor_table(make_model(**changes))


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


def test_pooling_vmaps_over_stacked_parameters(learned, batches, mesh):
    x_BRE = jax.random.normal(jax.random.key(1), (1, 12, learned.encoder.hidden_size))
    batch = batches.build(learned, [[]])._replace(pool_weights=WEIGHTS[None, None])
    one, other = random_params(learned), jax.tree.map(lambda leaf: leaf + 1, random_params(learned))

    @jax.jit
    def run(one, other):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
        alone = pool_rows(other, learned, x_BRE, batch, "batch", None)
        return jax.vmap(lambda params: pool_rows(params, learned, x_BRE, batch, "batch", None))(stacked)[1], alone

    np.testing.assert_allclose(*run(one, other), rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnums=1)
def pooled_by(params, model, batch):
    return encode_pooled(params, model, batch)


def test_slots_are_markers_with_embeddings_of_their_own(make_model, batches, rng, mesh):
    model = make_model(pooling="slots")
    batch = batches.build(model, [[batches.example(model, rng, [13, 3])]])
    params, padded = random_params(model), np.where(batch.encoder_tokens < 64, batch.encoder_tokens, 0)
    pad_E = params["encoder"]["embed"]["table"][0]
    assert params["adapter"]["pool"]["markers"].shape == (2, 24) and (padded != batch.encoder_tokens).sum() == 5

    def pooled(batch, *markers):
        changed = params | {"adapter": params["adapter"] | {"pool": {"markers": jnp.stack(markers)}}}
        return np.asarray(pooled_by(changed, model, batch))

    same = pooled(batch, pad_E, pad_E)
    np.testing.assert_allclose(same, pooled(batch._replace(encoder_tokens=padded), pad_E, pad_E), atol=1e-6)
    moved = np.abs(pooled(batch, pad_E, pad_E + 1) - same).max(-1)[0] > 1e-3
    # The second latents of two windows; the span of 3 has one latent.
    assert np.flatnonzero(moved).tolist() == [1, moved.size // batch.encoder_tokens.shape[1] + 1]


def test_late_layers_over_latents_of_one_token_are_layers_over_tokens(make_model, mesh, rng):
    """Three windows in two encoder rows, one with left context: layers, positions and windows are the same."""
    early, late = (make_model(ratio=1, pool_before_last=count) for count in (0, 1))
    segments = np.array([[[1, 1, 1, 1, 1, 0], [1, 1, 2, 2, 2, 0]]], np.int32)
    weights = (segments > 0).astype(np.float32)
    positions = np.array([[[0, 1, 2, 3, 4, 0], [0, 1, 0, 1, 2, 0]]], np.int32)
    tokens = rng.integers(0, 60, segments.shape).astype(np.int32)
    fields = dict(encoder_tokens=tokens, encoder_segments=segments, encoder_positions=positions, pool_weights=weights)
    batch = Batch(*[None] * len(Batch._fields))._replace(**fields)
    params = random_params(early)
    np.testing.assert_allclose(pooled_by(params, late, batch), pooled_by(params, early, batch), atol=1e-5)


def spans_example(model, spans, ratios):
    """One example of nothing but spans, each with its N."""
    start, end, placeholder = model.memory_token_ids
    gaps = 2 * np.arange(len(spans)) + 1
    outline = make_outline([np.array([start, end] * len(spans))], [np.zeros(2 * len(spans))], gaps.tolist(), spans)
    return expand(outline, np.array(ratios), placeholder)


@pytest.mark.mesh
def test_spans_with_ratios_of_their_own_have_the_latents_and_gradients_of_these(make_model, mesh, rng):
    lengths, ratios = (5, 39, 22, 16), (2, 8, 4, 8)
    spans = [rng.integers(0, 60, length).astype(np.int32) for length in lengths]
    wanted = [rng.normal(size=(-(-size // n), 16)).astype(np.float32) for size, n in zip(lengths, ratios, strict=True)]

    def latents_by(model, chosen, mesh, copies=1):
        """(latents of the chosen spans, gradient of their products with ``wanted``) in one batch of ``model``."""
        own = [ratios[i] if model.span_ratios else model.ratio for i in chosen]
        example = spans_example(model, [spans[i] for i in chosen], own)
        pack = pack_for([[example]], model)
        batch = assemble_batch([[example]] * copies, model, pack)
        where = batch.latent_index[0][batch.latent_index[0] >= 0]
        target = np.concatenate([wanted[i] for i in chosen])

        def product(params, batch):
            found_BLD = encode(params, model, batch)[:, where]
            return (found_BLD * target[None]).sum() / copies, found_BLD[0]

        options = {"xla_backend_optimization_level": 0}
        with use_mesh(mesh):
            run = jax.jit(jax.value_and_grad(product, has_aux=True), compiler_options=options)
            (_, found), gradient = run(random_params(model), put_batch(batch, mesh))
        return np.split(jax.device_get(found), np.cumsum([len(wanted[i]) for i in chosen])[:-1]), gradient

    keys = dict(window=16, overlap=3, mask="bidirectional", adapter={"type": "attn_mlp"})
    mixed = make_model(ratio=2, span_ratios=(2, 4, 8), **keys)
    found, gradient = latents_by(mixed, (0, 1, 2, 3), mesh)
    total = jax.tree.map(jnp.zeros_like, gradient)
    for ratio in mixed.span_ratios:
        chosen = [i for i, one in enumerate(ratios) if one == ratio]
        expected, part = latents_by(make_model(ratio=ratio, **keys), chosen, mesh)
        for i, latents in zip(chosen, expected, strict=True):
            np.testing.assert_allclose(found[i], latents, rtol=1e-5, atol=1e-5)
        total = jax.tree.map(jnp.add, total, part)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), gradient, total)
    eight = make_mesh(MeshConfig(fsdp=8), jax.devices())
    again, spread = latents_by(mixed, (0, 1, 2, 3), eight, copies=8)
    np.testing.assert_allclose(np.concatenate(again), np.concatenate(found), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4), spread, gradient)


def test_ratios_of_spans_that_cannot_be_are_refused(make_model):
    for ratios in [(4, 8), (2, 4, 6), (2, 2)]:
        with pytest.raises(ValidationError, match="must begin with ratio=2, and each be a multiple"):
            make_model(ratio=2, window=24, span_ratios=ratios)
    with pytest.raises(ValidationError, match=r"a multiple of ratio=16; set model.window to 16 or 32"):
        make_model(ratio=2, window=24, span_ratios=(2, 16))
    for other in ({"pooling": "concat"}, {"pooling": "eos"}, {"pooling": "attention"}, {"pool_before_last": 1}):
        with pytest.raises(ValidationError, match="needs pooling=mean and pool_before_last=0"):
            make_model(ratio=2, window=16, span_ratios=(2, 4), **other)


def test_a_slot_belongs_to_the_window_that_it_pools():
    weights_BR, segments_BR = np.array([[1, 1, 1, 0, 0, 1.0, 0, 0]]), np.array([[1, 1, 1, 1, 0, 2, 2, 2]])
    assert latent_windows(jnp.asarray(weights_BR), jnp.asarray(segments_BR), 2).tolist() == [[1, 1, 2, 0]]


def test_late_layers_execute_the_flops_of_the_formula(make_model, mesh, rng):
    model = make_model(pool_before_last=1, mask="bidirectional", window=16, attention="reference")
    stage = StageConfig(lr={"decoder": 1.0}, steps=1, mixture={"a": 1}, batch_rows=1)
    pack = PackConfig(row_length=16, encoder_rows=2, encoder_row_length=16)
    shapes = batch_shapes(model, pack, 1)
    batch = Batch(**{name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()})
    lowered = jax.jit(lambda params, batch: encode_pooled(params, model, batch)).lower(abstract_params(model), batch)
    flops = step_flops(model, stage, pack, "reference").encoder
    assert flops.inputs == flops.weights == 0
    assert count(parse(lowered.compile().as_text()), 1).dot_flops == pytest.approx(flops.executed, rel=0.02)


def test_poolings_before_the_last_layers_are_checked(make_model):
    with pytest.raises(ValidationError, match="pool_before_last=2 needs pooling=mean, not mean, and more than 2"):
        make_model(pool_before_last=2)
    with pytest.raises(ValidationError, match="needs pooling=mean, not concat"):
        make_model(pool_before_last=1, pooling="concat")


@pytest.mark.parametrize("kind", [name for name, row in ADAPTERS.items() if row.blocks is None])
def test_products_of_adapters_are_those_that_the_compiler_counts(kind, make_model, mesh):
    model = make_model(adapter={"type": kind})
    zeros = np.zeros((1, 3), np.int32)
    run = jax.jit(lambda params, *arrays: adapter_of(model).apply({"params": params}, *arrays))
    lowered = run.lower(abstract_params(model)["adapter"], np.zeros((1, 3, 24), np.float32), zeros, zeros)
    assert count(parse(lowered.compile().as_text()), 1).dot_flops == 3 * 2 * adapter_of(model).products().kernels


def test_the_linear_adapter_is_nothing_at_first_where_widths_agree(make_model, make_backbone, mesh):
    model = make_model(encoder=make_backbone(), adapter={"type": "linear"})
    params = jax.jit(lambda: init_params(model, jax.random.key(0))["adapter"])()
    pooled_BLE, zeros_BL = jax.random.normal(jax.random.key(1), (1, 3, 16)), np.zeros((1, 3), np.int32)
    latents_BLD = adapter_of(model).apply({"params": params}, pooled_BLE, zeros_BL, zeros_BL)
    np.testing.assert_allclose(latents_BLD, pooled_BLE, atol=1e-6)
