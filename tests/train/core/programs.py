"""What tests of training compile, made once in a process: most of them train the same model with the same settings."""

import functools

import jax

from lclm_jax.train.core import step
from lclm_jax.train.core.initial_state import params_shardings, random_params

# They change neither the program of a step nor its shapes.
OUTSIDE_THE_STEP = {
    "name": True,
    "run_dir": True,
    "train": {"checkpoint", "log_every", "max_nonfinite_steps", "probe", "spike"},
}

_steps = {}


def train_step(config, stage, optimizer, mesh):
    """``make_train_step``, or what it gave before for the same settings, loss and devices, with what it compiled."""
    settings = config.model_dump_json(exclude=OUTSIDE_THE_STEP)
    key = (settings, stage, mesh, step.loss_sums)  # tests replace the loss
    if key not in _steps:
        _steps[key] = step.make_train_step(config, stage, optimizer, mesh)
    return _steps[key]


@functools.cache
def _on_host(model, seed, mesh):
    return jax.device_get(random_params(model, seed, mesh))


def initial_params(model, seed, mesh):
    """The parameters of ``random_params``, in arrays of their own: a state is donated."""
    return jax.device_put(_on_host(model, seed, mesh), params_shardings(model, mesh))
