"""One matrix from latents to the decoder's embedding space; the identity at first where the widths agree.

With mean pooling, a frozen adapter and an encoder that starts from the decoder's weights this is average pooling
without training, the baseline of GistPool (arXiv 2504.08934). What differs: GistPool averages the activations of every
layer of one model (its keys and values), here the decoder reads averages of last hidden states in place of embeddings.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config.model import ModelConfig
from lclm_jax.model.functional import product
from lclm_jax.model.layers import Module, Products


class LinearAdapter(Module):
    """No norm, no bias."""

    model: ModelConfig

    @nn.compact
    def __call__(self, pooled_BLE: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array) -> jax.Array:
        """latents_BLD in the dtype of ``pooled_BLE``; spans do not matter."""
        shape = (self.model.latent_size, self.model.decoder.hidden_size)
        init = _identity if shape[0] == shape[1] else nn.initializers.lecun_normal()
        kernel_ED = self.declare("kernel", init, shape, ("param_latent", "param_out"))
        return self.constrained(product("BLE,ED->BLD", pooled_BLE, kernel_ED), "batch", "latents", "embed")

    def products(self) -> Products:
        """The matrix."""
        size = self.model.latent_size * self.model.decoder.hidden_size
        return Products(size, size)


def _identity(key: jax.Array, shape: tuple[int, int], dtype: type) -> jax.Array:
    return jnp.eye(*shape).astype(dtype)
