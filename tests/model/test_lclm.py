"""The LCLM as a whole: its tree of parameters, and what must not change its numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.model import abstract_params, decode, embed, encode, forward, init_params, logical_axes, logits, token_nll

KERNELS = {"attn/k/kernel", "attn/o/kernel", "attn/q/kernel", "attn/v/kernel"}
LAYER = KERNELS | {"attn_norm/scale", "mlp/down/kernel", "mlp/gate/kernel", "mlp/up/kernel", "mlp_norm/scale"}
QK_NORM = {"attn/k_norm/scale", "attn/q_norm/scale"}
MLP_ADAPTER = {"norm/scale", "fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias"}


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def under(prefix, names):
    return {f"{prefix}/{name}" for name in names}


def test_parameters_are_born_in_the_agreed_tree(make_model, make_backbone):
    decoder = make_backbone(tie_embeddings=False, qk_norm=False)
    model = make_model(decoder=decoder, adapter={"type": "attn_mlp", "num_layers": 3})
    expected = under("encoder", {"embed/table", "final_norm/scale"}) | under("encoder/layers", LAYER | QK_NORM)
    expected |= under("decoder", {"embed/table", "final_norm/scale", "memory_rows", "head/kernel"})
    expected |= under("decoder/layers", LAYER)
    expected |= under("adapter", MLP_ADAPTER) | under("adapter/layers", LAYER | QK_NORM)
    shapes, axes = paths(abstract_params(model)), paths(logical_axes(model))
    assert set(shapes) == set(axes) == expected
    for path, leaf in shapes.items():
        assert leaf.dtype == jnp.float32 and len(axes[path]) == leaf.ndim, path
        assert ("layers/" in path) == (axes[path][0] == "layers"), path
    assert shapes["decoder/layers/attn/q/kernel"].shape == (2, 16, 4, 8)
    assert shapes["decoder/layers/attn/o/kernel"].shape == (2, 4, 8, 16)
    assert shapes["decoder/layers/mlp/down/kernel"].shape == (2, 32, 16)
    assert shapes["decoder/head/kernel"].shape == (16, 64)
    assert shapes["adapter/layers/attn/k/kernel"].shape == (3, 24, 1, 12)
    assert shapes["adapter/fc1/kernel"].shape == (24, 16)


def test_initial_values(model):
    params = init_params(model, jax.random.key(0))
    again = init_params(model, jax.random.key(0))
    other = init_params(model, jax.random.key(1))
    assert type(params["encoder"]) is dict
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, again)))
    assert not (params["decoder"]["memory_rows"] == other["decoder"]["memory_rows"]).any()
    layers = params["encoder"]["layers"]
    assert float(layers["attn"]["q"]["kernel"].std()) == pytest.approx(24**-0.5, rel=0.1)
    assert not (layers["attn"]["q"]["kernel"][0] == layers["attn"]["q"]["kernel"][1]).any()
    down = (0.5 / 2 / 40) ** 0.5
    assert float(layers["mlp"]["down"]["kernel"].std()) == pytest.approx(down, rel=0.1)
    assert float(params["decoder"]["embed"]["table"].std()) == pytest.approx(0.02, rel=0.1)


@functools.partial(jax.jit, static_argnums=1)
def loss_and_gradients(params, model, batch):
    def loss(params):
        nll = token_nll(params, model, forward(params, model, batch), batch.targets)
        return (nll * batch.loss_weights).sum()

    return jax.value_and_grad(loss)(params)


@pytest.fixture
def small(model, batches, rng):
    """(params, batch) of two rows of two packed examples."""
    rows = [[batches.example(model, rng, [9, 3]), batches.example(model, rng, [6])] for _ in range(2)]
    return init_params(model, jax.random.key(3)), batches.build(model, rows)


def assert_close(ours, expected, tolerance=1e-5):
    for path, leaf in paths(expected).items():
        scale = max(1.0, float(jnp.abs(leaf).max()))
        np.testing.assert_allclose(paths(ours)[path], leaf, atol=tolerance * scale, err_msg=path)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(scan_layers=False), marks=pytest.mark.slow),
        pytest.param(dict(remat="full"), marks=pytest.mark.slow),
        pytest.param(dict(remat="dots", scan_layers=False), marks=pytest.mark.slow),
        dict(attention="chunked"),
        dict(loss_chunk=7, remat="full"),
    ],
    ids=str,
)
def test_how_it_runs_does_not_change_the_numbers(changes, model, small, mesh):
    params, batch = small
    loss, gradients = loss_and_gradients(params, model, batch)
    other_loss, other_gradients = loss_and_gradients(params, model.model_copy(update=changes), batch)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
    assert_close(other_gradients, gradients)


def test_mask_matters(make_model, small, mesh):
    params, batch = small
    run = jax.jit(encode, static_argnums=1)
    causal, bidirectional = (run(params, make_model(mask=mask), batch) for mask in ("causal", "bidirectional"))
    first = np.asarray(batch.latent_positions == 0) & np.asarray(batch.latent_segments > 0)
    assert (np.abs(causal - bidirectional).max(-1)[first] > 1e-4).all()


@functools.partial(jax.jit, static_argnums=1)
def hidden_of(params, model, batch):
    return forward(params, model, batch)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(dict(), marks=pytest.mark.slow),
        dict(mask="bidirectional", adapter={"type": "attn_mlp"}),
        pytest.param(dict(pooling="eos"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_packed_equals_separate_and_padding_is_inert(changes, make_model, batches, rng, mesh):
    model = make_model(**changes)
    params = init_params(model, jax.random.key(3))
    examples = [batches.example(model, rng, spans) for spans in ([9, 3], [], [6])]
    packed = hidden_of(params, model, batches.build(model, [examples]))[0]
    apart = batches.build(model, [[example] for example in examples], S=40, M=5, R=16)
    apart = garbage_in_padding(apart, rng)
    separate = hidden_of(params, model, apart)
    at = 0
    for row, example in enumerate(examples):
        length = len(example["tokens"])
        np.testing.assert_allclose(packed[at : at + length], separate[row, :length], atol=2e-5)
        at += length


def garbage_in_padding(batch, rng):
    """``batch`` with random tokens and positions wherever the segment is 0."""
    changes = {}
    for side in ("decoder", "encoder"):
        inside = getattr(batch, f"{side}_segments") > 0
        for name in (f"{side}_tokens", f"{side}_positions"):
            array = getattr(batch, name)
            changes[name] = np.where(inside, array, rng.integers(0, 60, array.shape)).astype(np.int32)
    return batch._replace(**changes)


def test_memory_rows_stand_in_for_the_table(make_model, make_backbone, small, mesh):
    for tied in (True, False):
        model = make_model(decoder=make_backbone(tie_embeddings=tied))
        params, batch = init_params(model, jax.random.key(3)), small[1]
        decoder = params["decoder"]
        ids = jnp.asarray(model.memory_token_ids)
        merged = {"embed": {"table": decoder["embed"]["table"].at[ids].set(decoder["memory_rows"])}}
        wiped = {"embed": {"table": decoder["embed"]["table"].at[ids].set(jnp.nan)}}
        ours, same = (params | {"decoder": decoder | change} for change in (wiped, merged))
        x_BSD = embed(ours, model, batch)
        assert (x_BSD == embed(same, model, batch)).all()
        table = merged["embed"]["table"] if tied else decoder["head"]["kernel"].T
        expected = jnp.einsum("BSD,VD->BSV", x_BSD, table, precision="highest")
        np.testing.assert_allclose(logits(ours, model, x_BSD), expected, atol=1e-5)


def test_bfloat16_compute_leaves_float32_gradients(model, small, mesh):
    params, batch = small
    half = model.model_copy(update=dict(compute_dtype="bfloat16"))
    assert jax.eval_shape(lambda params: encode(params, half, batch), params).dtype == jnp.bfloat16
    loss, gradients = loss_and_gradients(params, half, batch)
    exact, _ = loss_and_gradients(params, model, batch)
    assert loss.dtype == jnp.float32 and abs(float(loss / exact) - 1) < 1e-2
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


def test_concat_and_attention_adapter_run_on_the_pooled_width(make_model, batches, rng, mesh):
    model = make_model(pooling="concat", adapter={"type": "attn_mlp"})
    params = abstract_params(model)
    assert params["adapter"]["layers"]["attn"]["q"]["kernel"].shape == (1, 96, 2, 12)
    batch = batches.build(model, [[batches.example(model, rng, [6])]])
    assert jax.eval_shape(lambda params: encode(params, model, batch), params).shape == (
        1,
        batch.latent_segments.shape[1],
        16,
    )


def test_errors(make_model, small, mesh):
    params, batch = small
    for ids, text in [(None, "memory_token_ids is not set"), ((1, 1, 2), "three different"), ((1, 2, 64), "below")]:
        with pytest.raises(LclmError, match=text):
            embed(params, make_model(memory_token_ids=ids), batch)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_layers_in_a_scan_keep_masks_block_by_block(make_model, remat, mesh):
    """What no layer changes is computed before the scan over layers: masks must not be, there are S * S values."""
    S, model = 1536, make_model(attention="chunked", remat=remat)
    x_BSD = jax.ShapeDtypeStruct((1, S, model.decoder.hidden_size), jnp.float32)
    order_BS = jnp.arange(S)[None]

    def loss(params, x_BSD, segments_BS):
        return decode(params, model, x_BSD, segments_BS, order_BS).sum()

    segments_BS = jax.ShapeDtypeStruct((1, S), jnp.int32)
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(abstract_params(model), x_BSD, segments_BS))
    sizes = {np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"\[([\d,]+)\]", text)}
    assert max(sizes) < S * S, "with one row, masks alone are that large"
