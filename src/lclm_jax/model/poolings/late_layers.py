"""Pooling before the encoder's last layers (``model.pool_before_last``): they run over the latents of each window.

After ARC-Encoder (arXiv 2510.20535), which averages the states that go into its last layer by groups and lets the
averages attend to the states of all tokens; positions of the averages count from 0. What differs here: the averages
attend to each other (a variant that its code has as well), any number of layers can follow, windows bound what is seen,
the final norm is kept, and the adapter is this project's. Its released encoders are bidirectional (``model.mask``) and
leave the last two layers of their backbone out (``model.encoder.num_layers``).
"""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.batch import Batch
from lclm_jax.config.model import ModelConfig
from lclm_jax.kernels.pooling import pool
from lclm_jax.model.block import attention_context, layers
from lclm_jax.model.encoder import encoder_options
from lclm_jax.model.layers import DROPOUT, Module, RMSNorm
from lclm_jax.parallel.sharding import constrain
from lclm_jax.types import Params


def runs_late_layers(model: ModelConfig) -> bool:
    """Whether pooling happens before the encoder's last layers."""
    return model.pool_before_last > 0


def first_layers(model: ModelConfig, encoder: Params) -> tuple[ModelConfig, Params]:
    """The model whose encoder ends where pooling happens, and its part of the encoder's parameters."""
    if not runs_late_layers(model):
        return model, encoder
    count = model.encoder.num_layers - model.pool_before_last
    return _of_layers(model, count), encoder | {"layers": jax.tree.map(lambda leaf: leaf[:count], encoder["layers"])}


def read_latents(
    model: ModelConfig, encoder: Params, x_BRE: jax.Array, batch: Batch, rows: str, key: jax.Array | None
) -> jax.Array:
    """pooled_BLE of rows whose residual stream stands before the last layers: means, layers, final norm.

    Args:
        model: with mean pooling.
        encoder: the encoder's parameters.
        x_BRE: what ``first_layers`` gave.
        batch: ``pool_weights`` and ``encoder_segments`` of these rows, M = 1.
        rows: logical axis of the rows.
        key: of LoRA's dropout; None: nothing is dropped.
    """
    means_BLE = pool(x_BRE[:, None], batch.pool_weights, model.ratio, "mean")
    segments_BL = latent_windows(batch.pool_weights[:, 0], batch.encoder_segments[:, 0], model.ratio)
    last = jax.tree.map(lambda leaf: leaf[-model.pool_before_last :], encoder["layers"])
    params = {"params": {"layers": last, "final_norm": encoder["final_norm"]}}
    means_BLE = constrain(means_BLE, rows, "latents", "embed")
    rngs = None if key is None else {DROPOUT: jax.random.fold_in(key, 1)}
    module = LastLayers(_of_layers(model, model.pool_before_last))
    pooled_BLE = cast(jax.Array, module.apply(params, means_BLE, segments_BL, rows, rngs=rngs))
    return jnp.where((segments_BL > 0)[..., None], pooled_BLE, 0)


def latent_windows(weights_BR: jax.Array, segments_BR: jax.Array, ratio: int) -> jax.Array:
    """Window of each latent slot, int32 [B, L]; 0 in gaps. A group may hold context of a window that it does not pool.

    With N = 2, weights ``1 1 | 1 0 | 0 1`` and segments ``1 1 | 1 1 | 0 2`` it is ``1 1 2``.
    """
    pooled_BR = jnp.where(weights_BR > 0, segments_BR, 0)
    return pooled_BR.reshape(pooled_BR.shape[0], -1, ratio).max(-1)


class LastLayers(Module):
    """The encoder's blocks and final norm over latents."""

    model: ModelConfig

    @nn.compact
    def __call__(self, x_BLE: jax.Array, segments_BL: jax.Array, rows: str) -> jax.Array:
        """[B, L, E] in and out; latents attend inside their window, positions count from 0 in it."""
        config = self.model.encoder
        order_BL = jnp.broadcast_to(jnp.arange(segments_BL.shape[1])[None], segments_BL.shape)
        before_BL = jnp.pad(segments_BL[:, :-1], ((0, 0), (1, 0)))
        first_BL = jax.lax.cummax(jnp.where(segments_BL != before_BL, order_BL, 0), axis=1)
        context = attention_context(config, segments_BL, order_BL - first_BL)
        stack = layers(config, encoder_options(self.model, rows, "latents"), self.is_initializing())
        (x_BLE, _), _ = stack((x_BLE, None), None, context)
        return RMSNorm(config.hidden_size, config.norm_eps, name="final_norm")(x_BLE)


def _of_layers(model: ModelConfig, count: int) -> ModelConfig:
    return model.model_copy(update={"encoder": model.encoder.model_copy(update={"num_layers": count})})
