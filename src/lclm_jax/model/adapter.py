"""The adapter: pooled states to latents in the decoder's embedding space.

An adapter is a ``Module`` with the attribute ``model``, and

- ``__call__(pooled_BLE, segments_BL, positions_BL) -> latents_BLD``: see ``MlpAdapter``. One whose line of
  ``config/registry/adapters.py`` says ``norm_first`` declares ``norm/scale`` and gets states that went through this
  norm: ``latents_of`` sees to it, or the pooling kernel has done so already;
- ``products() -> Products``: its FLOPs.

Its parameters are ``adapter/...``; ``adapter/pool`` is the pooling's.
"""

from typing import cast

import flax.linen as nn
import jax

from lclm_jax.config.model import ModelConfig
from lclm_jax.model.block import StackOptions, attention_context, layers
from lclm_jax.model.functional import rms_norm
from lclm_jax.model.layers import Module, Products, Projection, RMSNorm, load
from lclm_jax.types import Params

NORM_EPS = 1e-6
"""Fixed by the released adapters, whatever the backbones use."""


def adapter_of(model: ModelConfig) -> Module:
    """The adapter of ``model``."""
    return cast(Module, load(model.adapter.row.code, model))


def latents_of(
    params: Params, model: ModelConfig, pooled_BLE: jax.Array, spans: tuple[jax.Array, jax.Array], normed: bool = False
) -> jax.Array:
    """latents_BLD: pooled states through the adapter.

    Args:
        params: of the adapter.
        model: its configuration.
        pooled_BLE: as ``encode_pooled`` gives them.
        spans: (segments_BL, positions_BL): the span of each slot, 0 in gaps, and its order there.
        normed: the pooling kernel applied the adapter's input norm (``pooling.fused_norm_scale``).
    """
    if model.adapter.row.norm_first and not normed:
        pooled_BLE = rms_norm(pooled_BLE, input_norm_scale(params), NORM_EPS)
    return cast(jax.Array, adapter_of(model).apply({"params": params}, pooled_BLE, *spans))


def input_norm_scale(params: Params) -> jax.Array:
    """Scale of the norm that an adapter with ``norm_first`` begins with."""
    return cast(jax.Array, params["norm"]["scale"])


class MlpAdapter(Module):
    """RMSNorm, Linear, erf GELU, Linear; with attention over the latents of one span before or after."""

    model: ModelConfig

    @nn.compact
    def __call__(self, pooled_BLE: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """latents_BLD in the dtype of ``pooled_BLE``; ``segments_BL`` are spans, ``positions_BL`` the order in them."""
        model, blocks, x_BLE = self.model, self.model.adapter.row.blocks, pooled_BLE
        if blocks == "encoder":
            x_BLE = self._attend(x_BLE, segments_BL, positions_BL)
        width = model.decoder.hidden_size
        if self.is_initializing() or not model.adapter.row.norm_first:
            x_BLE = RMSNorm(model.latent_size, NORM_EPS, name="norm")(x_BLE)
        first = Projection(
            "BSE,ED->BSD", (model.latent_size, width), ("param_latent", "param_out"), bias=("norm",), name="fc1"
        )
        hidden_BLD = nn.gelu(first(x_BLE), approximate=False)
        second = Projection("BSE,ED->BSD", (width, width), ("param_latent", "param_out"), bias=("norm",), name="fc2")
        latents_BLD = second(hidden_BLD)
        if blocks == "decoder":
            latents_BLD = self._attend(latents_BLD, segments_BL, positions_BL)
        return self.constrained(latents_BLD, "batch", "latents", "embed")

    def products(self) -> Products:
        """Of the MLP; attention layers, if it has any, run over few positions and are left out."""
        latent, width = self.model.latent_size, self.model.decoder.hidden_size
        return Products(latent * width + width * width, latent * width)

    def _attend(self, x_BLE: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        shape = self.model.adapter_backbone
        assert shape is not None
        options = StackOptions.of(self.model, False, "batch", "latents")
        context = attention_context(shape, segments_BL, positions_BL)
        (x_BLE, _), _ = layers(shape, options, self.is_initializing())((x_BLE, None), None, context)
        return x_BLE
