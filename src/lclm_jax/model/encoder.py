"""The encoder: a backbone over windows, every window on its own.

Encoder rows know nothing of each other, so they are spread over all mesh axes that divide them (``widest``), and the
encoder has neither tensor nor context parallelism: parameters are gathered, activations never move.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config.model import ModelConfig
from lclm_jax.model.block import StackOptions, attention_context, layers
from lclm_jax.model.layers import Embedding, Module, RMSNorm, lookup
from lclm_jax.parallel.sharding import ENCODER_ROWS, widest


class Encoder(Module):
    """Backbone whose last hidden state, after the final norm, is what gets pooled.

    The model pools and normalises in one kernel: it takes the states before the norm, and the norm's scale.
    """

    model: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens_BMR: jax.Array,
        segments_BMR: jax.Array,
        positions_BMR: jax.Array,
        normed: bool = True,
        markers_KE: jax.Array | None = None,
    ) -> jax.Array:
        """hidden_BMRE in the compute dtype; attention stays inside a segment (a window), causal or not by config.

        ``normed=False``: the residual stream, without the final norm. ``markers_KE``: input embeddings of the tokens
        behind the vocabulary (learned markers).
        """
        config, rows = self.model.encoder, tokens_BMR.shape[0] * tokens_BMR.shape[1]
        tokens_BS, segments_BS, positions_BS = (
            x.reshape(rows, x.shape[2]) for x in (tokens_BMR, segments_BMR, positions_BMR)
        )
        spread = ENCODER_ROWS[0] if self.is_initializing() else widest(ENCODER_ROWS, rows)
        axes = ("encoder_vocab", "encoder_embed")
        table_VD = Embedding(config.vocab_size, config.hidden_size, self.model.embedding_std, axes, name="embed")()
        if self.is_initializing():
            x_BSD = table_VD[tokens_BS]
        else:
            where = (axes, (spread, "encoder_seq"), self.model.compute_dtype)
            if markers_KE is None:
                x_BSD = lookup(table_VD, tokens_BS, *where)
            else:
                x_BSD = lookup(table_VD, jnp.minimum(tokens_BS, config.vocab_size - 1), *where)
                order_BS = tokens_BS - config.vocab_size
                markers_BSD = lookup(markers_KE, jnp.maximum(order_BS, 0), *where)
                x_BSD = jnp.where((order_BS >= 0)[..., None], markers_BSD, x_BSD)
        options = encoder_options(self.model, spread, "encoder_seq")
        context = attention_context(config, segments_BS, positions_BS)
        (x_BSD, _), _ = layers(config, options, self.is_initializing())((x_BSD, None), None, context)
        if normed:
            x_BSD = RMSNorm(config.hidden_size, config.norm_eps, name="final_norm")(x_BSD)
        return x_BSD.reshape(*tokens_BMR.shape, config.hidden_size)


def encoder_options(model: ModelConfig, rows: str, positions: str) -> StackOptions:
    """How the encoder's layers run over these logical axes."""
    return StackOptions.of(model, model.mask == "causal", rows, positions)._replace(
        heads="encoder_heads",
        kv_heads="encoder_heads",
        mlp="encoder_mlp",
        width="encoder_embed",
        lora=model.lora.encoder,
        quantize=model.quantize.encoder,
        remat=model.remat_of("encoder"),
    )


def dummy_windows(model: ModelConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Smallest inputs that the encoder can be initialised with."""
    zeros_BMR = jnp.zeros((1, 1, model.ratio), jnp.int32)
    return zeros_BMR, zeros_BMR, zeros_BMR
