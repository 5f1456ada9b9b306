import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lclm_jax.config import OptimizerConfig
from lclm_jax.errors import LclmError
from lclm_jax.train.core.optimizer import Group, Optimizer
from lclm_jax.train.core.schedule import Schedule
from lclm_jax.train.core.update_rules import update_rule

LABELS = {"a": {"w": "one"}, "b": {"w": "two"}, "c": {"w": None}}


def make(clip=1.0):
    groups = {"one": Group(Schedule(1e-2, 10, 2), 0.1), "two": Group(Schedule(1e-3, 10, 2), 0.0)}
    return Optimizer(OptimizerConfig(clip_norm=clip), LABELS, groups)


def params():
    return {name: {"w": jnp.array([1.0, -2.0, 3.0]) * (index + 1)} for index, name in enumerate("abc")}


def run(gradients, optimizer, apply=None):
    state, values, history = optimizer.init(params()), params(), []
    update = jax.jit(optimizer.update)
    for step, (a, b) in enumerate(gradients):
        grads = {"a": {"w": jnp.asarray(a)}, "b": {"w": jnp.asarray(b)}}
        applied = jnp.asarray(apply is None or apply[step])
        values, state, metrics = update(grads, state, values, jnp.int32(step), applied)
        history.append(metrics)
    return values, state, history


def random_gradients(steps, scale=1.0):
    random = np.random.default_rng(1)
    return [scale * random.standard_normal((2, 3)).astype(np.float32) for _ in range(steps)]


def test_agrees_with_torch_adamw_and_clipping():
    gradients = random_gradients(6)
    tensors = {name: torch.tensor(np.asarray(params()[name]["w"]), requires_grad=True) for name in "ab"}
    groups = [{"params": [tensors["a"]], "weight_decay": 0.1}, {"params": [tensors["b"]], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    schedules = [Schedule(1e-2, 10, 2), Schedule(1e-3, 10, 2)]
    norms = []
    for step, gradient in enumerate(gradients):
        for group, schedule in zip(adam.param_groups, schedules, strict=True):
            group["lr"] = float(schedule(step + 1))
        for tensor, values in zip(tensors.values(), gradient, strict=True):
            tensor.grad = torch.tensor(values)
        norms.append(float(torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)))
        adam.step()
    ours, _, history = run(gradients, make())
    for name in "ab":
        np.testing.assert_allclose(ours[name]["w"], tensors[name].detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose([float(metrics["grad_norm"]) for metrics in history], norms, rtol=1e-6)
    assert jnp.array_equal(ours["c"]["w"], params()["c"]["w"])


def test_a_group_without_signal_does_not_move_and_does_not_count():
    gradients = random_gradients(5)
    for step in (1, 3):
        gradients[step][0] = 0.0
    optimizer = make(clip=1e9)  # no clipping: what the other group sees must not matter
    values, state, history = run(gradients, optimizer)
    assert (int(state["one"].count), int(state["two"].count)) == (3, 5)
    assert [float(metrics["updated/one"]) for metrics in history] == [1, 0, 1, 0, 1]
    # The schedule goes on: the same updates, made at the steps 0, 2, 4.
    expected, moments = params()["a"]["w"], optimizer.init(params())["one"]
    for step in (0, 2, 4):
        rate = history[step]["learning_rate/one"]
        tree = {"a": {"w": expected}}
        towards, moments = update_rule(optimizer.settings).update({"a": {"w": gradients[step][0]}}, moments, tree)
        expected = expected - rate * (towards["a"]["w"] + 0.1 * expected)
    np.testing.assert_allclose(values["a"]["w"], expected, rtol=1e-6)


def test_a_tiny_gradient_is_a_signal():
    _, state, _ = run([np.full((2, 3), 1e-30, np.float32)], make())
    assert int(state["one"].count) == 1


def test_a_non_finite_gradient_or_a_refused_step_leaves_everything():
    gradients = random_gradients(3)
    gradients[1][1][0] = np.inf
    values, state, history = run(gradients, make(), apply=[True, True, False])
    once, state_once, _ = run(gradients[:1], make())
    assert jax.tree.all(jax.tree.map(jnp.array_equal, (values, state), (once, state_once)))
    assert not np.isfinite(history[1]["grad_norm"])


def of_kind(**settings):
    groups = {"one": Group(Schedule(1e-2, 10, 0, kind="constant"), 0.1)}
    labels = {"layers": {"attn": {"o": {"kernel": "one"}}, "norm": {"scale": "one"}}, "frozen": None}
    return Optimizer(OptimizerConfig(clip_norm=1e9, **settings), labels, groups)


def stacked():
    random = np.random.default_rng(2)
    kernel = jnp.asarray(random.standard_normal((3, 2, 4, 16)), jnp.float32)  # layers, heads, head width, model width
    return {"layers": {"attn": {"o": {"kernel": kernel}}, "norm": {"scale": jnp.ones((3, 16))}}, "frozen": jnp.ones(2)}


def one_update(optimizer, params, gradient):
    return jax.jit(optimizer.update)(gradient, optimizer.init(params), params, jnp.int32(0), jnp.asarray(True))


def test_muon_orthogonalises_every_layer_and_moves_as_far_as_adam():
    params = stacked()
    gradient = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), {"layers": params["layers"]})
    moved, state, metrics = one_update(of_kind(kind="muon"), params, gradient)
    step = (params["layers"]["attn"]["o"]["kernel"] * (1 - 1e-3) - moved["layers"]["attn"]["o"]["kernel"]) / 1e-2
    for layer in np.asarray(step).reshape(3, 8, 16):
        values = np.linalg.svd(layer, compute_uv=False) / (0.2 * 4)  # 0.2 * sqrt(16)
        assert values.min() > 0.6 and values.max() < 1.3  # five Newton-Schulz steps, not an exact projection
        assert np.sqrt((layer**2).mean()) == pytest.approx(0.2, rel=0.25)
    assert set(state["one"]) == {"matrices", "others"} and jnp.array_equal(moved["frozen"], params["frozen"])
    adam = one_update(of_kind(kind="adamw"), params, gradient)[0]
    np.testing.assert_allclose(moved["layers"]["norm"]["scale"], adam["layers"]["norm"]["scale"])
    assert float(metrics["update_norm/one"]) > 0


def test_adafactor_keeps_rows_and_columns_only():
    params = {"layers": {"attn": {"o": {"kernel": jnp.ones((3, 64, 48))}}, "norm": {"scale": jnp.ones((3, 16))}}}
    optimizer = of_kind(kind="adafactor")
    optimizer = Optimizer(optimizer.settings, {"layers": optimizer.labels["layers"]}, optimizer.groups)
    gradient = jax.tree.map(lambda leaf: leaf * 0.3, params)
    moved, state, _ = one_update(optimizer, params, gradient)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert (3, 64, 48) not in shapes and {(3, 64), (3, 48)} <= shapes
    # A gradient of one sign and size has the direction 1 everywhere: the learning rate, and the decay.
    np.testing.assert_allclose(moved["layers"]["attn"]["o"]["kernel"], 1 - 1e-2 * 1.1, rtol=1e-4)
    places = optimizer.state_shardings(params, jax.tree.map(lambda leaf: "own", params), "everywhere")
    assert set(jax.tree.leaves(places)) == {"own", "everywhere"}  # the scale's moments are of full size


def test_averages_and_bfloat16_moments():
    optimizer = of_kind(ema_decay=0.9, moment_dtype="bfloat16")
    params = stacked()
    gradient = jax.tree.map(jnp.sin, {"layers": params["layers"]})
    moved, state, _ = one_update(optimizer, params, gradient)
    assert {leaf.dtype for leaf in jax.tree.leaves(state["one"].mu)} == {jnp.dtype("bfloat16")}
    want = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, params["layers"], moved["layers"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state["ema"], {"layers": want})
    held = jax.jit(optimizer.update)(gradient, state, moved, jnp.int32(1), jnp.asarray(False))[1]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, held["ema"], state["ema"]))


def test_bfloat16_parameters_move_by_updates_too_small_for_them():
    optimizer = of_kind(ema_decay=0.9)
    leaf = jnp.ones((64, 64), jnp.bfloat16)
    params = {"layers": {"attn": {"o": {"kernel": leaf}}, "norm": {"scale": leaf}}, "frozen": leaf}
    state = optimizer.init(params)
    kept = jax.tree.leaves((state["one"].mu, state["one"].nu, state["ema"]))
    assert {leaf.dtype for leaf in kept} == {np.dtype("float32")}
    gradient = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), {"layers": params["layers"]})
    rate = 1e-3  # Adam moves by it; a bfloat16 below 1 is 0.004 from the next
    group = Group(Schedule(rate, 100, 0, kind="constant"), 0.0)
    optimizer = Optimizer(optimizer.settings, optimizer.labels, {"one": group})
    update = jax.jit(optimizer.update)
    for step in range(20):
        key = jax.random.fold_in(jax.random.key(0), step)
        params, state, metrics = update(gradient, state, params, jnp.int32(step), jnp.asarray(True), key)
    kernel = params["layers"]["attn"]["o"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and jnp.array_equal(params["frozen"], leaf)
    assert float(kernel.astype(jnp.float32).mean()) == pytest.approx(1 - 20 * rate, abs=3e-4)
    assert not jnp.array_equal(kernel, params["layers"]["norm"]["scale"])  # each leaf is rounded by numbers of its own
    assert float(metrics["update_norm/one"]) > 0
    with pytest.raises(LclmError, match="need stochastic rounding; give"):
        optimizer.update(gradient, state, params, jnp.int32(0), jnp.asarray(True))
