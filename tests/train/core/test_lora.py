"""LoRA in the step: its own parts, a base that stays as it is, dropout drawn from (seed, step, microbatch)."""

import functools

import jax
import numpy as np
import pytest
from tests.train.core import programs

from lclm_jax.config import ConfigError
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params, init_params
from lclm_jax.model.lora import is_lora
from lclm_jax.parallel import use_mesh
from lclm_jax.train.core.freeze import FROZEN, label_leaves, path_name, stage_rules
from lclm_jax.train.core.initial_state import fresh_state, params_shardings
from lclm_jax.train.core.loss import LossSums, loss_sums
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.state import step_key
from lclm_jax.train.core.step import put_batch

LORA = {
    "encoder": {"rank": 2, "targets": ["q", "down"]},
    "decoder": {"rank": 2, "targets": ["v", "o", "up"], "dropout": 0.5},
}
RATES = {"encoder_lora": 1e-2, "decoder_lora": 2e-2}


@pytest.fixture
def lora_model(make_model):
    return make_model(lora=LORA)


@functools.cache
def host_params(model):
    """Random parameters with random B, as in the middle of a stage."""
    params = jax.device_get(init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def shake(path, leaf):
        if path[-1].key != "lora_b":
            return leaf
        return rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(shake, params)


def run(config, mesh, batches):
    """(state before, state after, metrics by step) on the host."""
    optimizer = make_optimizer(config.train.optimizer, config.stages["only"], abstract_params(config.model))
    step = programs.train_step(config, "only", optimizer, mesh)
    params = jax.device_put(host_params(config.model), params_shardings(config.model, mesh))
    with use_mesh(mesh):
        state = fresh_state(params, config.model, optimizer, mesh, seed=0)
        before, history = jax.device_get(state), []
        for batch in batches:
            state, metrics = step(state, put_batch(batch, mesh))
            history.append(jax.device_get(metrics))
    return before, jax.device_get(state), history


def by_path(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_base_stays_bit_identical_while_lora_moves(make_config, make_batch, lora_model, mesh):
    config = make_config(lr=RATES, model=lora_model, weight_decay={"decoder_lora": 0.1})
    before, after, history = run(config, mesh, [make_batch(config, 8, seed) for seed in range(2)])
    old, new = by_path(before.params), by_path(after.params)
    moved = {path for path in old if not np.array_equal(old[path], new[path])}
    assert moved == {path for path in old if is_lora(path)} | {"decoder/memory_rows"}
    assert set(after.opt_state) == {"encoder_lora", "decoder_lora", "memory_rows"}
    for tower in ("encoder", "decoder"):
        names = set(by_path(after.opt_state[f"{tower}_lora"].mu))
        assert names == {path for path in old if is_lora(path) and path.startswith(tower)}
    assert history[1]["learning_rate/decoder_lora"] == pytest.approx(2e-2)
    # A batch without spans reaches the decoder alone.
    _, textual, (metrics,) = run(config, mesh, [make_batch(config, 8, spans=False)])
    assert (metrics["updated/encoder_lora"], metrics["updated/decoder_lora"]) == (0, 1)
    assert int(textual.opt_state["encoder_lora"].count) == 0


@pytest.mark.slow
def test_dropout_is_a_function_of_seed_step_and_microbatch(make_config, make_batch, lora_model, mesh):
    config = make_config(lr=RATES, model=lora_model, microbatches=2, skip_steps=["0-1"])  # nothing moves
    batch = make_batch(config, 8)
    before, _, history = run(config, mesh, [batch, batch])
    _, _, again = run(config, mesh, [batch, batch])
    losses = [float(metrics["loss_nats"]) for metrics in history]
    assert losses == [float(metrics["loss_nats"]) for metrics in again]
    assert abs(losses[0] - losses[1]) > 1e-3
    sums = jax.jit(functools.partial(loss_sums, model=config.model, normalisation="per_token"))
    total = LossSums.zero()
    for number in range(2):
        rows = jax.tree.map(lambda leaf, number=number: leaf[number::2], batch)
        total = total.add(sums(before.params, batch=rows, key=jax.random.fold_in(step_key(before), number))[0])
    assert float(total.mean()) == pytest.approx(losses[0], rel=1e-5)
    assert (
        abs(float(sums(before.params, batch=batch, key=None)[0].mean()) - losses[0]) > 1e-4
    )  # evaluation drops nothing


def labels_of(config, model):
    labels = label_leaves(stage_rules(config.stages["only"], abstract_params(model)), abstract_params(model))
    leaves = jax.tree_util.tree_leaves_with_path(labels, is_leaf=lambda leaf: leaf is None)
    return {path_name(path): group for path, group in leaves}


def test_lora_and_its_tower_train_or_not_as_the_stage_says(make_config, lora_model):
    kernel, lora = "decoder/layers/attn/v/kernel", "decoder/layers/attn/v/lora_a"
    for lr, expected in (
        ({"decoder": 1e-3}, ("decoder", FROZEN)),
        ({"decoder_lora": 1e-3}, (FROZEN, "decoder_lora")),
        ({"decoder": 1e-3, "decoder_lora": 1e-3}, ("decoder", "decoder_lora")),
        ({"adapter": 1e-3}, (FROZEN, FROZEN)),
    ):
        labels = labels_of(make_config(lr=lr, model=lora_model), lora_model)
        assert (labels[kernel], labels[lora]) == expected
        assert labels["encoder/layers/attn/q/lora_b"] is FROZEN
    with pytest.raises(LclmError, match=r"'decoder/\..*lora.*' takes no parameter"):
        labels_of(make_config(lr={"decoder_lora": 1e-3}, model=lora_model), lora_model.plain)


def test_what_cannot_be_meant_is_an_error(make_config, lora_model, make_model):
    with pytest.raises(ConfigError, match=r"lr.encoder_lora=0.1 trains a LoRA that the model lacks; set model.lora"):
        make_config(lr={"encoder_lora": 0.1})
    for wrong, message in (
        ({"targets": ["q", "q"]}, "names a projection twice"),
        ({"targets": []}, "at least 1 item"),
        ({"targets": ["head"]}, "Input should be 'q'"),
        ({"rank": 0}, "greater than 0"),
        ({"alpha": 0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make_model(lora={"decoder": wrong})
    assert make_model(lora=None) == make_model() == lora_model.plain
