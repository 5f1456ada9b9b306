"""Weights gathered once a step: the same step, and gathers that do not grow with the number of microbatches."""

import jax
import numpy as np
import pytest
from tests.train.core import programs

from lclm_jax.config import MeshConfig
from lclm_jax.model.lclm import abstract_params, logical_axes
from lclm_jax.parallel import make_mesh, use_mesh
from lclm_jax.plan import hlo
from lclm_jax.train.core.gather import is_gathered
from lclm_jax.train.core.initial_state import fresh_state
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.step import put_batch

MESH = MeshConfig(fsdp=2, context=2, tensor=2)


def one_step(config, batch):
    """(parameters after two steps, metrics of the second, bytes that a device's all-gathers return in a step)."""
    mesh = make_mesh(MESH)
    with use_mesh(mesh):
        optimizer = make_optimizer(config.train.optimizer, config.stages["only"], abstract_params(config.model))
        step = programs.train_step(config, "only", optimizer, mesh)
        state = fresh_state(programs.initial_params(config.model, 0, mesh), config.model, optimizer, mesh, seed=0)
        batch = put_batch(batch, mesh)
        compiled = step.lower(state, batch).compile()
        state, _ = compiled(state, batch)
        state, metrics = compiled(state, batch)
    return jax.device_get(state.params), jax.device_get(metrics), gathered_bytes(compiled.as_text())


def gathered_bytes(text):
    ran = hlo.parse(text).executions()
    gathers = [one for one in ran if one.instruction.opcode in ("all-gather", "all-gather-start")]
    return sum(one.times * sum(array.bytes for array in one.instruction.arrays) for one in gathers)


@pytest.mark.mesh
@pytest.mark.parametrize("frozen", [False, True])
def test_the_step_is_the_same_and_its_gathers_do_not_grow(make_config, make_batch, frozen):
    rates = {"adapter": 1e-2, "encoder": 1e-2, "decoder": None if frozen else 1e-2}

    def config(once, microbatches):
        return make_config(lr=rates, microbatches=microbatches, train={"gather_once": once})

    batch = make_batch(config(False, 2), 8, 0)
    params, metrics, each = one_step(config(False, 4), batch)
    found, found_metrics, once = one_step(config(True, 4), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, params)
    np.testing.assert_allclose(found_metrics["loss_nats"], metrics["loss_nats"], rtol=1e-6)
    few = [one_step(config(kept, 2), batch)[2] for kept in (False, True)]
    model = config(True, 2).model
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda node: isinstance(node, tuple))
    leaves = jax.tree.leaves(abstract_params(model))
    weights = sum(leaf.size * 4 for leaf, names in zip(leaves, axes, strict=True) if is_gathered(names))
    assert weights < once < 1.2 * weights
    assert once - few[1] < 0.05 * weights
    assert each - few[0] > 3 * weights  # two more microbatches of two passes each


def test_what_is_looked_up_and_what_is_not_cut_stay_as_they_are(make_config):
    axes = logical_axes(make_config().model)
    assert is_gathered(axes["decoder"]["layers"]["mlp"]["gate"]["kernel"])
    assert not is_gathered(axes["decoder"]["embed"]["table"])
    assert not is_gathered(axes["decoder"]["memory_rows"])
    assert not is_gathered(axes["encoder"]["final_norm"]["scale"])
