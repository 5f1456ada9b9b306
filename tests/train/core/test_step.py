import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.train.core import programs

from lclm_jax.config import OBJECTIVES, MeshConfig, ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.model.lclm import abstract_params, init_params
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.train.core.initial_state import fresh_state, params_shardings
from lclm_jax.train.core.loss import sum_nll
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.step import put_batch


@functools.cache
def host_params(model):
    return jax.device_get(init_params(model, jax.random.key(0)))


def start(config, mesh):
    optimizer = make_optimizer(config.train.optimizer, config.stages["only"], abstract_params(config.model))
    step = programs.train_step(config, "only", optimizer, mesh)
    params = jax.device_put(host_params(config.model), params_shardings(config.model, mesh))
    return fresh_state(params, config.model, optimizer, mesh, seed=0), step


@pytest.fixture
def toy_loss(monkeypatch):
    """A loss that compiles in no time, over one leaf of every part."""

    def loss(params, model, batch, normalisation, key, z_loss, objectives):
        table, memory = params["decoder"]["embed"]["table"], params["decoder"]["memory_rows"]
        others = params["encoder"]["final_norm"]["scale"].sum() * params["adapter"]["fc1"]["kernel"].sum()
        nll = (table[batch.decoder_tokens].sum(-1) * others + memory.sum()) ** 2
        sums = sum_nll(nll, batch.loss_weights, normalisation)._replace(z_loss=z_loss * memory.sum())
        return sums, jnp.isfinite(nll).all(axis=1)

    monkeypatch.setattr("lclm_jax.train.core.step.loss_sums", loss)


def run(config, mesh, batches):
    """(initial parameters, final state, metrics by step, the step) on the host."""
    with use_mesh(mesh):
        state, step = start(config, mesh)
        before = jax.device_get(state.params)
        history = []
        for batch in batches:
            state, metrics = step(state, put_batch(batch, mesh))
            history.append(jax.device_get(metrics))
    return before, jax.device_get(state), history, step


def changed(before, after):
    flat = jax.tree_util.tree_flatten_with_path(jax.tree.map(lambda a, b: bool((a != b).any()), before, after))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, moved in flat if moved}


def test_frozen_parts_stay_bit_identical_without_optimizer_state(make_config, make_batch, mesh):
    config = make_config(lr={"adapter": 1e-2})
    before, state, history, step = run(config, mesh, [make_batch(config, 8, seed) for seed in range(3)])
    moved = changed(before, state.params)
    assert moved == {"decoder/memory_rows", *(f"adapter/{leaf}" for leaf in ADAPTER)}
    assert set(state.opt_state) == {"adapter", "memory_rows"}
    assert set(state.opt_state["memory_rows"].mu) == {"decoder"}
    assert jax.tree.leaves(state.opt_state["memory_rows"].mu)[0].shape == (3, config.model.decoder.hidden_size)
    assert int(state.step) == 3
    assert step._cache_size() == 1
    np.testing.assert_allclose(history[0]["learning_rate/memory_rows"], 6e-5 / 2, rtol=1e-6)


ADAPTER = ("norm/scale", "fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias")


def test_a_batch_without_spans_moves_neither_encoder_nor_adapter(make_config, make_batch, mesh):
    config = make_config()
    batches = [make_batch(config, 8, seed, spans=seed != 1) for seed in range(2)]
    _, state, history, _ = run(config, mesh, batches)
    assert {part: int(state.opt_state[part].count) for part in state.opt_state} == {
        "adapter": 1,
        "encoder": 1,
        "decoder": 2,
        "memory_rows": 2,  # a tied head: the three columns take part in every softmax
    }
    assert history[1]["updated/encoder"] == 0 and history[1]["grad_norm/encoder"] == 0
    before, after, _, _ = run(config, mesh, batches[:1])
    _, again, _, _ = run(config, mesh, batches[:1])
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), after, again))  # same inputs, same bits
    assert not changed(after.params["encoder"], state.params["encoder"])
    assert changed(before["encoder"], after.params["encoder"])


@pytest.mark.parametrize("normalisation", ["per_token", pytest.param("per_row", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("toy_loss")
def test_microbatches_agree_on_ragged_masks(make_config, make_batch, mesh, normalisation):
    compare_microbatches(make_config, make_batch, mesh, normalisation, (1, 2, 4))


@pytest.mark.slow
def test_microbatches_of_the_model_agree(make_config, make_batch, mesh):
    compare_microbatches(make_config, make_batch, mesh, "per_token", (1, 4))


def compare_microbatches(make_config, make_batch, mesh, normalisation, numbers):
    results = []
    for microbatches in numbers:
        config = make_config(microbatches=microbatches, train={"loss_normalisation": normalisation})
        batch = make_batch(config, 8)
        batch.loss_weights[3] = 0  # a row without loss
        batch.loss_weights[5, 4:] = 0
        results.append(run(config, mesh, [batch]))
    (_, one, (first,), _), *others = results
    for _, state, (metrics,), _ in others:
        for name in first:
            np.testing.assert_allclose(metrics[name], first[name], rtol=2e-5, err_msg=name)
        compare = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7)
        jax.tree.map(compare, state.opt_state["encoder"].mu, one.opt_state["encoder"].mu)


@pytest.mark.usefixtures("toy_loss")
def test_z_loss_is_trained_on_and_not_reported(make_config, make_batch, mesh):
    configs = [make_config(train={"z_loss": z_loss}) for z_loss in (0.0, 10.0)]
    (without,), (with_z,) = (run(config, mesh, [make_batch(config, 8)])[2] for config in configs)
    assert without["loss_nats"] == with_z["loss_nats"]
    assert without["grad_norm/memory_rows"] != with_z["grad_norm/memory_rows"]


@pytest.mark.usefixtures("toy_loss")
def test_skipped_and_non_finite_steps_advance_only_the_count(make_config, make_batch, mesh):
    config = make_config(skip_steps=["0-1"])
    good = make_batch(config, 8)
    bad = good._replace(loss_weights=np.where(good.loss_weights > 0, np.inf, 0).astype(np.float32))
    _, state, history, step = run(config, mesh, [good, good, bad, good])
    assert [metrics["skipped"] for metrics in history] == [1, 1, 0, 0]
    assert [metrics["nonfinite"] for metrics in history] == [0, 0, 1, 0]
    assert int(state.step) == 4
    assert all(int(part.count) == 1 for part in state.opt_state.values())
    assert history[3]["loss_nats"] == history[0]["loss_nats"]  # nothing moved before
    assert history[3]["learning_rate/adapter"] > history[0]["learning_rate/adapter"]
    assert step._cache_size() == 1


@pytest.mark.mesh
def test_a_mesh_of_eight_devices_gives_the_same_step(make_config, make_batch, mesh):
    config = make_config(microbatches=2, mixture={"cpt": 1, "qa": 1})
    kinds = [OBJECTIVES.index(name) for name in ("cpt", "qa")] * 4
    batches = [make_batch(config, 8, seed) for seed in range(2)]
    batches = [
        one._replace(objectives=np.repeat(np.int8(kinds)[:, None], one.targets.shape[1], axis=1)) for one in batches
    ]
    eight = make_mesh(MeshConfig(replica=2, fsdp=2, context=2))
    _, _, history, step = run(config, eight, batches)
    _, _, expected_history, _ = run(config, mesh, batches)
    for metrics, reference in zip(history, expected_history, strict=True):
        for name in reference:
            np.testing.assert_allclose(metrics[name], reference[name], rtol=1e-4, err_msg=name)
        parts = [(metrics[f"loss_nats/{name}"], metrics[f"loss_tokens/{name}"]) for name in ("cpt", "qa")]
        assert sum(tokens for _, tokens in parts) == metrics["loss_tokens"]
        whole = sum(nats * tokens for nats, tokens in parts) / metrics["loss_tokens"]
        np.testing.assert_allclose(whole, metrics["loss_nats"], rtol=1e-5)
        assert parts[0][0] != parts[1][0]
    assert step._cache_size() == 1


@pytest.mark.slow
def test_bfloat16_parameters_compute_what_their_values_do_in_float32(make_config, make_batch, mesh, monkeypatch):
    wide = make_config(microbatches=2)
    narrow = wide.model_copy(update={"model": wide.model.model_copy(update={"param_dtype": "bfloat16"})})
    values = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), host_params(wide.model))
    found = []
    for config, dtype in ((wide, np.float32), (narrow, jnp.bfloat16)):
        held = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), values)
        monkeypatch.setitem(globals(), "host_params", lambda model, held=held: held)
        found.append(run(config, mesh, [make_batch(config, 8, 0)]))
    (_, _, (expected,), _), (_, state, (metrics,), _) = found
    assert metrics["loss_nats"] == expected["loss_nats"]
    for name in ("grad_norm/encoder", "grad_norm/adapter", "grad_norm/decoder"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=4e-3, err_msg=name)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(jnp.bfloat16)}


def test_rows_that_do_not_divide_over_the_mesh_are_an_error(make_config):
    config = make_config(microbatches=4)
    with pytest.raises(LclmError, match="batch_rows a multiple of 32"):
        start(config, make_mesh(MeshConfig()))


def test_ratios_of_spans_share_one_program(make_config, make_batch, mesh, model, toy_loss):
    config = make_config(model=ModelConfig(**model.model_dump() | {"span_ratios": (4, 8)}))
    batches = [make_batch(config, 8, seed) for seed in range(3)]
    batches = [batch._replace(latent_ratios=batch.latent_ratios + 4 * (k % 2 + 1)) for k, batch in enumerate(batches)]
    _, state, _, step = run(config, mesh, batches)
    assert step._cache_size() == 1
    assert int(state.step) == 3


def test_each_ratio_of_a_stage_compiles_once_and_reaches_the_model(make_config, make_batch, mesh, monkeypatch):
    seen = []

    def loss(params, model, batch, normalisation, key, z_loss, objectives):
        seen.append(model.ratio)
        nll = (params["adapter"]["fc1"]["kernel"].sum() * batch.decoder_tokens) ** 2
        return sum_nll(nll, batch.loss_weights, normalisation), jnp.isfinite(nll).all(axis=1)

    monkeypatch.setattr("lclm_jax.train.core.step.loss_sums", loss)
    config = make_config(ratios=[4, 8])
    narrow = config.model_copy(update={"model": config.model.model_copy(update={"ratio": 8})})
    batches = {4: make_batch(config, 8), 8: make_batch(narrow, 8)}
    _, state, _, step = run(config, mesh, [batches[n] for n in (4, 8, 8, 4, 8)])
    assert sorted(seen) == [4, 8]
    assert step._cache_size() == 2
    assert int(state.step) == 5
