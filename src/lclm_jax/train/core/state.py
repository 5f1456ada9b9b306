"""What training carries from step to step."""

from typing import NamedTuple

import jax

from lclm_jax.types import Params, PyTree


class TrainState(NamedTuple):
    """Everything an optimizer step reads and writes."""

    step: jax.Array
    """int32 scalar: updates made, skipped ones included."""
    params: Params
    """Nested dict of arrays in ``model.param_dtype``."""
    opt_state: PyTree
    """``Optimizer.init``'s state: only trainable leaves have any."""
    rng: jax.Array
    """[2] uint32: key data of the stage; a step's own key is ``fold_in(key, step)``."""


def step_key(state: TrainState) -> jax.Array:
    """The random key of the step that ``state`` is about to make."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
