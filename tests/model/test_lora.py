"""Low-rank updates: nothing at the start, merged equals unmerged, dropout by key alone, every field used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.model import abstract_params, decode_cached, forward, init_cache, init_params, logical_axes, token_nll
from lclm_jax.model.lora import dropped, is_lora, low_rank_equations, update_of
from lclm_jax.parallel import batch_sharding, make_mesh, params_sharding, use_mesh
from lclm_jax.parallel.sharding import spec_for

ALL = ("q", "k", "v", "o", "gate", "up", "down")
BOTH = {"encoder": {"rank": 3, "alpha": 6.0}, "decoder": {"rank": 2, "alpha": 5.0}}


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shaken(params, seed=7, scale=0.3):
    """``params`` with random B, as after training."""
    keys = iter(jax.random.split(jax.random.key(seed), 100))

    def shake(path, leaf):
        return leaf + scale * jax.random.normal(next(keys), leaf.shape) if path[-1].key == "lora_b" else leaf

    return jax.tree_util.tree_map_with_path(shake, params)


@functools.partial(jax.jit, static_argnums=1)
def hidden(params, model, batch, key=None):
    return forward(params, model, batch, key)


@pytest.fixture
def case(make_model, batches, rng):
    """(model with LoRA on both towers, its parameters, a batch)."""
    model = make_model(lora=BOTH)
    batch = batches.build(model, [[batches.example(model, rng, [9, 3]), batches.example(model, rng, [6])]])
    return model, init_params(model, jax.random.key(3)), batch


def test_equations():
    assert low_rank_equations("BSD,DHd->BSHd", 1) == ("BSD,Dr->BSr", "BSr,rHd->BSHd")
    assert low_rank_equations("BSHd,HdD->BSD", 2) == ("BSHd,Hdr->BSr", "BSr,rD->BSD")


def test_leaves_stand_beside_their_kernels(case):
    model, params, _ = case
    leaves, plain = flat(params), flat(init_params(model.plain, jax.random.key(3)))
    lora = {path for path in leaves if is_lora(path)}
    assert len(lora) == 2 * 2 * len(ALL) and not any(path.startswith("adapter") for path in lora)
    for path in plain:
        np.testing.assert_array_equal(leaves[path], plain[path], err_msg=path)
    assert leaves["decoder/layers/attn/o/lora_a"].shape == (2, 4, 8, 2)
    assert leaves["decoder/layers/attn/o/lora_b"].shape == (2, 2, 16)
    assert leaves["encoder/layers/attn/q/lora_b"].shape == (2, 3, 2, 12)
    bound = 24**-0.5  # as in the peft package: uniform within 1 / sqrt(fan_in)
    lora_a = np.abs(leaves["encoder/layers/mlp/gate/lora_a"])
    assert 0.9 * bound < lora_a.max() <= bound and lora_a.mean() == pytest.approx(bound / 2, rel=0.2)
    assert not any(leaves[path].any() for path in lora if path.endswith("lora_b"))


def test_factors_lie_as_their_kernels_do(case):
    axes, width = flat_axes(logical_axes(case[0])), ("fsdp", "context")
    layers = {
        "attn/q": ((None, width, None), (None, None, "tensor", None)),
        "attn/o": ((None, "tensor", None, None), (None, None, width)),
        "mlp/gate": ((None, width, None), (None, None, "tensor")),
        "mlp/down": ((None, "tensor", None), (None, None, width)),
    }
    for target, specs in layers.items():
        found = tuple(tuple(spec_for(axes[f"decoder/layers/{target}/{leaf}"])) for leaf in ("lora_a", "lora_b"))
        assert found == specs, target


def flat_axes(node, prefix=""):
    if isinstance(node, tuple):
        return {prefix[:-1]: node}
    return {path: axes for k, v in node.items() for path, axes in flat_axes(v, f"{prefix}{k}/").items()}


def test_no_effect_at_the_start(case, mesh):
    model, params, batch = case
    plain = {path: leaf for path, leaf in flat(params).items() if not is_lora(path)}
    base = jax.tree.unflatten(jax.tree.structure(abstract_params(model.plain)), list(plain.values()))
    ours = hidden(params, model, batch)
    np.testing.assert_allclose(ours, hidden(base, model.plain, batch), atol=1e-5)  # XLA fuses the two otherwise
    dropping = model.model_copy(update={"lora": with_field(model, "dropout", 0.5)})
    np.testing.assert_allclose(hidden(params, dropping, batch, jax.random.key(1)), ours, atol=1e-5)


@pytest.mark.parametrize("how", [dict(), dict(scan_layers=False, remat="full")], ids=str)
def test_merged_equals_unmerged(how, case, mesh):
    model, params, batch = case
    model, params = model.model_copy(update=how), shaken(params)
    ours = hidden(params, model, batch)
    merged, plain = merge_lora(params, model)
    assert plain == model.plain and jax.tree.structure(merged) == jax.tree.structure(abstract_params(plain))
    assert float(jnp.abs(ours - hidden(base_of(params), plain, batch)).max()) > 0.1
    np.testing.assert_allclose(hidden(merged, plain, batch), ours, atol=2e-5)


def merge_lora(params, model):
    """``params`` with every update added to its kernel, on the host."""

    def merged(node, lora):
        kept = {name: merged(value, lora) if isinstance(value, dict) else value for name, value in node.items()}
        if "lora_a" in node:
            pairs = zip(kept.pop("lora_a"), kept.pop("lora_b"), strict=True)
            kept["kernel"] = node["kernel"] + np.stack([update_of(lora, a, b) for a, b in pairs])
        return kept

    loras = {"encoder": model.lora.encoder, "decoder": model.lora.decoder}
    return {part: merged(node, loras.get(part)) for part, node in jax.device_get(params).items()}, model.plain


def base_of(node):
    return {k: base_of(v) if isinstance(v, dict) else v for k, v in node.items() if not is_lora(k)}


def with_field(model, name, value):
    towers = {tower: getattr(model.lora, tower).model_copy(update={name: value}) for tower in ("encoder", "decoder")}
    return model.lora.model_copy(update=towers)


def test_dropout_depends_on_the_key_alone(case, mesh):
    model, params, batch = case
    model, params = model.model_copy(update={"lora": with_field(model, "dropout", 0.5)}), shaken(params)
    without = hidden(params, model, batch)
    one, again, other = (hidden(params, model, batch, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 1e-2 < float(jnp.abs(one - without).max())
    off = model.model_copy(update={"lora": with_field(model, "dropout", 0.0)})
    np.testing.assert_allclose(hidden(params, off, batch, jax.random.key(1)), without, atol=1e-5)


@pytest.mark.slow
def test_the_gradient_sees_the_mask_of_the_forward_pass(case, mesh):
    """Under remat the recomputed mask must be the same one: gradients agree with those that save everything."""
    model, params, batch = case
    model = model.model_copy(update={"lora": with_field(model, "dropout", 0.5)})

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, model):
        return jax.grad(lambda p: (forward(p, model, batch, jax.random.key(1)) ** 2).sum())(params)

    kept = gradient(shaken(params), model)
    again = gradient(shaken(params), model.model_copy(update={"remat": "full"}))
    for path, leaf in flat(kept).items():
        np.testing.assert_allclose(flat(again)[path], leaf, atol=1e-4 * max(1, float(jnp.abs(leaf).max())))


def test_dropout_keeps_the_mean():
    x = jnp.ones((50, 400))
    y = dropped(x, 0.25, jax.random.key(0))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert float(y.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.slow  # tests/model/test_fields.py has each field by itself
def test_every_field_matters(case, mesh):
    model, params, batch = case
    params = shaken(params)
    ours = hidden(params, model, batch)
    louder = model.model_copy(update={"lora": with_field(model, "alpha", 12.0)})
    assert float(jnp.abs(hidden(params, louder, batch) - ours).max()) > 1e-2
    wider = abstract_params(model.model_copy(update={"lora": with_field(model, "rank", 4)}))
    assert flat(wider)["decoder/layers/attn/q/lora_a"].shape == (2, 16, 4)
    for target in ALL:
        one = flat(abstract_params(model.model_copy(update={"lora": with_field(model, "targets", (target,))})))
        assert {path.split("/")[-2] for path in one if is_lora(path)} == {target}
    for tower in ("encoder", "decoder"):
        one = model.model_copy(update={"lora": model.lora.model_copy(update={tower: None})})
        assert not any(is_lora(path) and path.startswith(tower) for path in flat(abstract_params(one)))


def test_cached_decoding_uses_the_updates(case, rng, mesh):
    model, params, _ = case
    params = shaken(params)
    merged, plain = merge_lora(params, model)
    x_BSD = jnp.asarray(rng.normal(size=(1, 5, 16)), jnp.float32)
    positions_BS = jnp.arange(5)[None]
    ours, theirs = (
        decode_cached(p, m, x_BSD, positions_BS, init_cache(m, 1, 8))[0] for p, m in ((params, model), (merged, plain))
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.mesh
def test_eight_devices_compute_what_one_does(make_model, make_backbone, batches, rng):
    lora = {tower: {"rank": 2, "dropout": 0.3, "targets": ("q", "o", "down")} for tower in ("encoder", "decoder")}
    encoder = make_backbone(hidden_size=24, num_heads=2, num_kv_heads=2, head_dim=12, mlp_size=40)
    # Embeddings of an ordinary size: the norm of a vector that is nearly zero multiplies the rounding of sums that
    # eight devices and one make in another order.
    model = make_model(encoder=encoder, lora=lora, remat="full", embedding_std=0.2)
    batch = batches.build(model, [[batches.example(model, rng, [9, 3])] for _ in range(4)], S=24)

    def loss(params, batch):
        nll = token_nll(params, model, forward(params, model, batch, jax.random.key(5)), batch.targets)
        return (nll * batch.loss_weights).sum() / batch.loss_weights.sum()

    results = []
    for mesh in (make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(fsdp=4, tensor=2))):
        with use_mesh(mesh):
            places = params_sharding(mesh, logical_axes(model), abstract_params(model))
            params = jax.device_put(shaken(init_params(model, jax.random.key(0))), places)
            step = jax.jit(jax.value_and_grad(loss), in_shardings=(places, batch_sharding(mesh)))
            results.append(jax.device_get(step(params, batch)))
    (one_loss, one), (eight_loss, eight) = results
    np.testing.assert_allclose(eight_loss, one_loss, rtol=1e-5)
    for path, expected in flat(one).items():
        error = np.linalg.norm(flat(eight)[path] - expected)
        assert error < 1e-5 * max(1.0, np.linalg.norm(expected)), (path, error)
