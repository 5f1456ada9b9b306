"""The decoder: embedding with memory rows, a causal backbone, and the output head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lclm_jax.config.model import ModelConfig
from lclm_jax.errors import LclmError
from lclm_jax.model.block import AttentionContext, Cache, StackOptions, attention_context, layers
from lclm_jax.model.layers import Embedding, Module, RMSNorm, lookup
from lclm_jax.types import PyTree


class Head(Module):
    """The untied output head."""

    width: int
    rows: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernel [D, V], float32."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
        return self.declare("kernel", init, (self.width, self.rows), ("param_embed", "vocab"))


class Decoder(Module):
    """A stock causal language model, save that three rows of its table are a leaf of their own.

    ``memory_rows`` (order: memory_start, memory_end, memory) stand in for the table's rows of these tokens, on the way
    in and, if the head is tied, on the way out: so they train while the table is frozen.
    """

    model: ModelConfig

    def setup(self) -> None:
        """Declare the parts."""
        config = self.model.decoder
        self.embed = Embedding(config.vocab_size, config.hidden_size, self.model.embedding_std)
        self.layers = layers(config, decoder_options(self.model), self.is_initializing())
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        init, axes = nn.initializers.normal(self.model.embedding_std), ("memory_row", "param_embed")
        self.memory_rows = self.declare("memory_rows", init, (3, config.hidden_size), axes)
        if not config.tie_embeddings:
            self.head = Head(config.hidden_size, config.vocab_size)

    def lookup(self, tokens_BS: jax.Array) -> jax.Array:
        """Embeddings [B, S, D] in the compute dtype, memory rows overlaid."""
        dtype = self.model.compute_dtype
        table_VD = self.embed()
        if self.is_initializing():
            x_BSD = table_VD[tokens_BS]
        else:
            x_BSD = lookup(table_VD, tokens_BS, self.embed.axes, ("batch", "seq"), dtype)
        memory_rows_3D = self.memory_rows.astype(dtype)
        for order, token in enumerate(memory_ids(self.model)):
            row_BSD = memory_rows_3D[order][None, None, :]
            x_BSD = jnp.where((tokens_BS == token)[..., None], row_BSD, x_BSD)
        return x_BSD

    def __call__(self, x_BSD: jax.Array, context: AttentionContext, cache: Cache = None) -> tuple[jax.Array, Cache]:
        """(hidden_BSD after the final norm, cache) from spliced embeddings."""
        x_BSD = self.constrained(x_BSD.astype(self.model.compute_dtype), "batch", "seq", "embed")
        numbers_L = None if cache is None else jnp.arange(self.model.decoder.num_layers, dtype=jnp.int32)
        (x_BSD, cache), _ = self.layers((x_BSD, cache), numbers_L, context)
        return self.finish(x_BSD), cache

    def finish(self, x_BSD: jax.Array) -> jax.Array:
        """Hidden states from what the last layer gives."""
        return self.final_norm(x_BSD)

    def output(self) -> tuple[jax.Array, jax.Array | None]:
        """(table_VD, memory_rows_3D) of the output head; an untied head keeps its own rows: None."""
        if self.model.decoder.tie_embeddings:
            return self.embed(), self.memory_rows
        return self.head().T, None

    def everything(self, tokens_BS: jax.Array) -> PyTree:
        """Touch every parameter (initialisation)."""
        hidden_BSD, _ = self(self.lookup(tokens_BS), attention_context(self.model.decoder, tokens_BS, tokens_BS))
        return hidden_BSD, self.output()


def decoder_options(model: ModelConfig) -> StackOptions:
    """How the decoder's layers are built."""
    options = StackOptions.of(model, True, "batch", "seq")
    options = options._replace(remat=model.remat_of("decoder"), quantize=model.quantize.decoder)
    return options._replace(lora=model.lora.decoder)


def memory_ids(model: ModelConfig) -> tuple[int, int, int]:
    """Ids of the memory tokens; raises ``LclmError`` while they are not resolved or lie outside the table."""
    ids = model.memory_token_ids
    if ids is None:
        raise LclmError("model.memory_token_ids is not set; resolve it from the decoder's tokenizer before running")
    rows = model.decoder.vocab_size
    if len(set(ids)) != 3 or min(ids) < 0 or max(ids) >= rows:
        raise LclmError(f"model.memory_token_ids={ids} must be three different ids below vocab_size={rows}")
    return ids
