"""Attention pooling: learned queries look at the N hidden states of a group, in several heads.

As pooling by multi-head attention in the Set Transformer (arXiv 1810.00825), with one seed and without its feed-forward
layers: head h has a learned query; keys and values are projections of the group's states; the heads' results, side by
side, are projected back and added to the group's mean. Queries and the projection back start small, so that training
starts near mean pooling.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config.model import ModelConfig
from lclm_jax.model.layers import Module, Products, Projection


class AttentionPooling(Module):
    """Heads and their width are the encoder's."""

    model: ModelConfig

    @nn.compact
    def __call__(self, hidden_BLNE: jax.Array, weights_BLN: jax.Array) -> jax.Array:
        """pooled_BLE in the dtype of ``hidden_BLNE``; scores, softmax and mean in float32."""
        c, real_BLN = self.model.encoder, weights_BLN > 0
        heads, axes = (c.num_heads, c.head_dim), ("encoder_heads", "head_dim")
        into = functools.partial(Projection, "BLNE,EHd->BLNHd", (c.hidden_size, *heads), ("param_latent", *axes))
        query_Hd = self.declare("query", nn.initializers.normal(0.02), heads, axes)
        keys_BLNHd = into(name="k")(hidden_BLNE).astype(jnp.float32)
        scores_BLNH = jnp.einsum("BLNHd,Hd->BLNH", keys_BLNHd, query_Hd) * c.head_dim**-0.5
        shares_BLNH = jax.nn.softmax(jnp.where(real_BLN[..., None], scores_BLNH, -1e30), axis=2)
        values_BLNHd = into(name="v")(hidden_BLNE)
        out_BLHd = jnp.einsum("BLNH,BLNHd->BLHd", shares_BLNH.astype(values_BLNHd.dtype), values_BLNHd)
        shape = (*heads, c.hidden_size)
        back = Projection("BLHd,HdE->BLE", shape, (*axes, "param_latent"), contracted=2, gain=0.01, name="o")
        mean_BLE = jnp.einsum("BLN,BLNE->BLE", weights_BLN, hidden_BLNE.astype(jnp.float32))
        mean_BLE = mean_BLE / weights_BLN.sum(-1)[..., None]
        return mean_BLE.astype(hidden_BLNE.dtype) + back(out_BLHd)

    def products(self) -> Products:
        """Keys and values of N states, scores, the weighted sum, the projection back, and the mean."""
        c, N = self.model.encoder, self.model.ratio
        kernel = c.hidden_size * c.num_heads * c.head_dim
        inputs = 2 * N * kernel
        return Products(inputs + kernel, inputs, N * (2 * c.num_heads * c.head_dim + c.hidden_size))
