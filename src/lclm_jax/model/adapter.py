"""The adapter: pooled states to latents in the decoder's embedding space.

An adapter is a ``Module`` with the attribute ``model``, and

- ``__call__(pooled_BLE, segments_BL, positions_BL, normed=False) -> latents_BLD``: see ``MlpAdapter``;
  ``normed`` is only given to one whose line of ``config/registry/adapters.py`` says ``norm_first``;
- ``products() -> Products``: its FLOPs.

Its parameters are ``adapter/...``; ``adapter/pool`` is the pooling's.
"""

from typing import cast

import flax.linen as nn
import jax

from lclm_jax.config import ModelConfig
from lclm_jax.model.block import StackOptions, attention_context, layers
from lclm_jax.model.layers import Module, Projection, RMSNorm
from lclm_jax.model.registry import Products, load

NORM_EPS = 1e-6
"""Fixed by the released adapters, whatever the backbones use."""


def adapter_of(model: ModelConfig) -> Module:
    """The adapter of ``model``."""
    return cast(Module, load(model.adapter.row.code, model))


class MlpAdapter(Module):
    """RMSNorm, Linear, erf GELU, Linear; with attention over the latents of one span before or after."""

    model: ModelConfig

    @nn.compact
    def __call__(
        self, pooled_BLE: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array, normed: bool = False
    ) -> jax.Array:
        """latents_BLD in the dtype of ``pooled_BLE``; ``segments_BL`` are spans, ``positions_BL`` the order in them.

        ``normed``: ``pooled_BLE`` went through the input norm already (see ``pooling.takes_norm``).
        """
        model, blocks, x_BLE = self.model, self.model.adapter.row.blocks, pooled_BLE
        if blocks == "encoder":
            x_BLE = self._attend(x_BLE, segments_BL, positions_BL)
        width = model.decoder.hidden_size
        if not normed:
            x_BLE = RMSNorm(model.latent_size, NORM_EPS, name="norm")(x_BLE)
        first = Projection(
            "BSE,ED->BSD", (model.latent_size, width), ("param_latent", "param_out"), bias=True, name="fc1"
        )
        hidden_BLD = nn.gelu(first(x_BLE), approximate=False)
        second = Projection("BSE,ED->BSD", (width, width), ("param_latent", "param_out"), bias=True, name="fc2")
        latents_BLD = second(hidden_BLD)
        if blocks == "decoder":
            latents_BLD = self._attend(latents_BLD, segments_BL, positions_BL)
        return self.constrained(latents_BLD, "batch", "latents", "embed")

    def products(self) -> Products:
        """Of the MLP; attention layers, if it has any, run over few positions and are left out."""
        latent, width = self.model.latent_size, self.model.decoder.hidden_size
        return Products(latent * width + width * width, latent * width)

    def _attend(self, x_BLE: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        shape = self.model.adapter_blocks
        assert shape is not None
        options = StackOptions.of(self.model, False, "batch", "latents")
        return layers(shape, options)(x_BLE, None, attention_context(shape, segments_BL, positions_BL))[0]
