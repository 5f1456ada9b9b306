"""Eight devices: where parameters lie (a reviewed snapshot), and that numbers do not depend on it."""

import functools
import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from lclm_jax.config import MeshConfig, ModelConfig
from lclm_jax.config.model import BACKBONES
from lclm_jax.model import abstract_params, forward, init_params, logical_axes, token_nll
from lclm_jax.parallel import batch_sharding, make_mesh, params_sharding, use_mesh

SNAPSHOT = Path(__file__).with_name("sharding_snapshot.json")


def everything(make_model, make_backbone):
    """A model with every kind of parameter there is, whose sizes divide the meshes below."""
    encoder = make_backbone(hidden_size=24, num_heads=2, num_kv_heads=2, head_dim=12, mlp_size=40)
    adapter = {"type": "attn_mlp", "num_layers": 1}
    return make_model(encoder=encoder, decoder=make_backbone(tie_embeddings=False), adapter=adapter)


PRESETS = {
    "0.6b-4b": ("qwen3_embedding_0p6b", "qwen3_4b"),
    "0.6b-8b": ("qwen3_embedding_0p6b", "qwen3_8b"),
    "0.6b-32b": ("qwen3_embedding_0p6b", "qwen3_32b"),
    "4b-4b": ("qwen3_embedding_4b", "qwen3_4b"),
    "search": ("qwen3_0p6b", "qwen3_0p6b"),
    "1.7b-1.7b": ("qwen3_1p7b", "qwen3_1p7b"),
    "smollm2": ("smollm2_135m", "smollm2_135m"),
}


def placements(model, mesh):
    """path -> shape and specification, and the parameters that one device holds."""
    shapes = abstract_params(model)
    shardings = params_sharding(mesh, logical_axes(model), shapes)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    found, local = {}, 0
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        spec = [part if isinstance(part, str) else "+".join(part or ()) for part in sharding.spec]
        found["/".join(entry.key for entry in path)] = ", ".join(
            f"{size} {axes}".strip() for size, axes in zip(leaf.shape, spec, strict=True)
        )
        local += np.prod(sharding.shard_shape(leaf.shape))
    return found | {"parameters on a device": int(local)}


def test_shardings_match_the_snapshot(make_model, make_backbone):
    mesh = make_mesh(MeshConfig(fsdp=2, context=2, tensor=2))
    found = {"everything": placements(everything(make_model, make_backbone), mesh)}
    for name, (encoder, decoder) in PRESETS.items():
        # Nine heads of SmolLM2 divide no tensor axis.
        sizes = dict(fsdp=4, tensor=2) if name != "smollm2" else dict(fsdp=8)
        model = ModelConfig(encoder={"preset": encoder}, decoder={"preset": decoder})
        found[name] = placements(model, make_mesh(MeshConfig(**sizes)))
    text = json.dumps(found, indent=1) + "\n"
    if text != SNAPSHOT.read_text():
        changed = SNAPSHOT.with_suffix(".new.json")
        changed.write_text(text)
        pytest.fail(
            f"shardings changed; if this is meant, review {changed.name} and put it in place of {SNAPSHOT.name}"
        )


def test_every_released_backbone_is_in_the_snapshot():
    assert {name for pair in PRESETS.values() for name in pair} == set(BACKBONES)


# Every axis alone or beside each other one; replica=2 is how two slices of four devices lie.
COVERING = [
    dict(replica=2, fsdp=4),
    dict(fsdp=4, tensor=2),
    dict(fsdp=2, context=4),
    dict(replica=2, context=2, tensor=2),
    dict(replica=2, fsdp=2, context=2),
    dict(fsdp=2, context=2, tensor=2),
]
ALL = [
    dict(replica=r, fsdp=f, context=c, tensor=t)
    for devices in (1, 2, 4, 8)
    for r, f, c, t in itertools.product((1, 2, 4, 8), repeat=4)
    if r * f * c * t == devices
]


def loss_and_gradients(model, batch, mesh):
    """Both, on the host."""

    def loss(params, batch):
        nll = token_nll(params, model, forward(params, model, batch), batch.targets)
        return (nll * batch.loss_weights).sum() / batch.loss_weights.sum()

    with use_mesh(mesh):
        places, rows = params_sharding(mesh, logical_axes(model), abstract_params(model)), batch_sharding(mesh)
        params = jax.device_put(initial(model), places)
        step = jax.jit(jax.value_and_grad(loss), in_shardings=(places, rows), out_shardings=(None, places))
        batch = jax.device_put(batch, rows)
        # Compiled once, run once: what LLVM would gain it would not give back.
        quick = step.lower(params, batch).compile(compiler_options={"xla_backend_optimization_level": 0})
        return jax.device_get(quick(params, batch))


@functools.cache
def initial(model):
    return jax.device_get(init_params(model, jax.random.key(0)))


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    flat = jax.tree_util.tree_leaves_with_path(expected[1])
    for ours, (path, theirs) in zip(jax.tree.leaves(found[1]), flat, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 1e-5, (jax.tree_util.keystr(path), error)


def compare(model, batch, meshes):
    one = loss_and_gradients(model, batch, make_mesh(MeshConfig(), jax.devices()[:1]))
    for sizes in meshes:
        mesh = make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])
        assert_same(loss_and_gradients(model, batch, mesh), one)


def divisible(make_model, make_backbone, **changes):
    """A model whose sizes eight devices divide along any axis."""
    heads = dict(num_heads=16, num_kv_heads=8, head_dim=4)
    encoder = make_backbone(hidden_size=24, mlp_size=40, **heads)
    return make_model(encoder=encoder, decoder=make_backbone(**heads), **changes)


def eight_rows(model, batches, rng):
    return batches.build(model, [[batches.example(model, rng, [9, 3])] for _ in range(8)], S=32)


@pytest.mark.mesh
def test_six_meshes_compute_what_one_device_does(make_model, make_backbone, batches, rng):
    model = divisible(make_model, make_backbone)
    compare(model, eight_rows(model, batches, rng), [dict(fsdp=1) | sizes for sizes in COVERING])


KINDS = {
    "mean": {"adapter": {"type": "attn_mlp", "num_layers": 1}},
    "eos": {"pooling": "eos"},
    "attention": {"pooling": "attention"},
    "slots": {"pooling": "slots"},
    "late layers": {"pool_before_last": 1, "adapter": {"type": "linear"}},
}


@pytest.mark.mesh
@pytest.mark.parametrize("kind", KINDS)
def test_all_meshes_compute_what_one_device_does(kind, make_model, make_backbone, batches, rng):
    model = divisible(make_model, make_backbone, remat="full", **KINDS[kind])
    batch = eight_rows(model, batches, rng)
    compare(model, batch, ALL if kind == "mean" else [dict(fsdp=1) | sizes for sizes in COVERING])
