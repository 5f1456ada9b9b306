"""What training carries from step to step, born in its place on the mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import abstract_params, init_params, logical_axes
from lclm_jax.parallel import params_sharding
from lclm_jax.train.optimizer import Optimizer


class TrainState(NamedTuple):
    """Everything an optimizer step reads and writes."""

    step: Any
    """int32 scalar: updates made, skipped ones included."""
    params: Any
    """Nested dict of float32 arrays."""
    opt_state: Any
    """``Optimizer.init``'s state: only trainable leaves have any."""
    rng: Any
    """[2] uint32: key data of the stage; a step's own key is ``fold_in(key, step)``."""


def step_key(state: TrainState) -> jax.Array:
    """The random key of the step that ``state`` is about to make."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)


def params_shardings(model: ModelConfig, mesh: Mesh) -> Any:
    """Shardings of the parameters; raises ``ValueError`` where the mesh does not divide a size."""
    return params_sharding(mesh, logical_axes(model), abstract_params(model))


def state_shardings(model: ModelConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shardings of a whole state: moments like their parameters, scalars on every device."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = params_shardings(model, mesh)
    return TrainState(replicated, params, optimizer.state_shardings(params, replicated), replicated)


def abstract_state(model: ModelConfig, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a state: what a restore needs."""
    params = abstract_params(model)
    shapes = jax.eval_shape(lambda tree: _fresh(tree, optimizer, 0), params)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(model, optimizer, mesh),
    )


def random_params(model: ModelConfig, seed: int, mesh: Mesh) -> Any:
    """Random parameters, made where they belong; a pure function of (model, seed)."""
    init = jax.jit(lambda: init_params(model, jax.random.key(seed)), out_shardings=params_shardings(model, mesh))
    return init()


def fresh_state(params: Any, model: ModelConfig, optimizer: Optimizer, mesh: Mesh, seed: int) -> TrainState:
    """State at step 0 around ``params`` (sharded arrays, given up to the state)."""
    make = jax.jit(
        lambda tree: _fresh(tree, optimizer, seed),
        out_shardings=state_shardings(model, optimizer, mesh),
        donate_argnums=0,
    )
    return make(params)


def _fresh(params: Any, optimizer: Optimizer, seed: int) -> TrainState:
    rng = jax.random.key_data(jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng)
