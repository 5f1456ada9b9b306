import jax
import jax.numpy as jnp
import numpy as np
import torch

from lclm_jax.config import OptimizerConfig
from lclm_jax.train.optimizer import Group, Optimizer
from lclm_jax.train.schedule import Schedule

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
        tree, moments = optimizer._move(
            optimizer.groups["one"], rate, {"a": {"w": gradients[step][0]}}, moments, {"a": {"w": expected}}
        )
        expected = tree["a"]["w"]
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
