"""Learned memory slots: one per latent behind each window, whose states are the latents.

After ICAE (arXiv 2307.06945) and 500xCompressor (arXiv 2408.03094): slot k of a window has a learned input embedding.
What differs: both read one segment with a fixed number of slots and share one backbone between encoder (with LoRA) and
decoder; here every window has ceil(tokens / N) slots, encoder and decoder are two models, latents pass an adapter and
stand in for embeddings (500xCompressor hands on the keys and values of every layer). With one window per segment these
are AutoCompressor's summary tokens (arXiv 2305.14788) without its recurrence: no summary is seen by a later segment.
"""

import flax.linen as nn
import jax

from lclm_jax.config.model import ModelConfig
from lclm_jax.model.layers import Module, Products


class Slots(Module):
    """The table of learned markers; the kernel picks their states as it does those of ``eos``."""

    model: ModelConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        """[W / N, E], float32: input embeddings of the markers of a window, in order."""
        init, model = nn.initializers.normal(self.model.embedding_std), self.model
        shape = (model.window // model.ratio, model.encoder.hidden_size)
        return self.declare("markers", init, shape, ("encoder_vocab", "encoder_embed"))

    def products(self) -> Products:
        """A look-up has none; the encoder reads the markers."""
        return Products(0, 0)
