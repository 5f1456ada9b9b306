"""What poolings and adapters share: how a line of their registries is loaded, and how they tell their FLOPs."""

import importlib
from typing import Any, NamedTuple

from lclm_jax.config.model import ModelConfig


class Products(NamedTuple):
    """Multiply-adds of one latent in the forward pass; norms, softmax and other elementwise work is left out."""

    kernels: float
    """With parameters."""
    first: float
    """Of these, the ones that read the input: what a backward pass that ends here need not go through."""
    states: float = 0.0
    """Between activations, as in attention."""


def load(code: str, model: ModelConfig) -> Any:
    """The module that the registry's ``module:class`` names, of ``model``."""
    module, _, name = code.partition(":")
    return getattr(importlib.import_module(module), name)(model)
