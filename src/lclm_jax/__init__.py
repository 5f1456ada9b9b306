"""Pretraining of latent context language models (context compressors) in JAX.

The names below are the public API; they load when they are first used, so ``import lclm_jax`` starts no JAX.
Everything else is internal and may move.
"""

import importlib
from typing import TYPE_CHECKING

from lclm_jax.version import __version__

if TYPE_CHECKING:
    from lclm_jax.api import (
        evaluate_run,
        export_run,
        load_model,
        load_run,
        plan_stages,
        prepare_data,
        register_adapter,
        register_pooling,
        train_stages,
    )
    from lclm_jax.config import Config, load_config
    from lclm_jax.errors import LclmError
    from lclm_jax.inference.generate import Generation, Generator
    from lclm_jax.inference.sampling import Sampling
    from lclm_jax.plan.plans import StagePlan
    from lclm_jax.train.core.hooks import Hook, StepInfo

_HOME = {
    "Config": "lclm_jax.config",
    "Generation": "lclm_jax.inference.generate",
    "Generator": "lclm_jax.inference.generate",
    "Hook": "lclm_jax.train.core.hooks",
    "LclmError": "lclm_jax.errors",
    "Sampling": "lclm_jax.inference.sampling",
    "StagePlan": "lclm_jax.plan.plans",
    "StepInfo": "lclm_jax.train.core.hooks",
    "evaluate_run": "lclm_jax.api",
    "export_run": "lclm_jax.api",
    "load_config": "lclm_jax.config",
    "load_model": "lclm_jax.api",
    "load_run": "lclm_jax.api",
    "plan_stages": "lclm_jax.api",
    "prepare_data": "lclm_jax.api",
    "register_adapter": "lclm_jax.api",
    "register_pooling": "lclm_jax.api",
    "train_stages": "lclm_jax.api",
}

__all__ = [
    "Config",
    "Generation",
    "Generator",
    "Hook",
    "LclmError",
    "Sampling",
    "StagePlan",
    "StepInfo",
    "__version__",
    "evaluate_run",
    "export_run",
    "load_config",
    "load_model",
    "load_run",
    "plan_stages",
    "prepare_data",
    "register_adapter",
    "register_pooling",
    "train_stages",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'lclm_jax' has no attribute {name!r}; the public names are {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
