"""The model: encoder, adapter, splice, decoder, and the LCLM that joins them."""

from lclm_jax.model.kv_cache import KVCache, init_cache
from lclm_jax.model.lclm import (
    abstract_params,
    decode,
    decode_cached,
    decode_layers_cached,
    embed,
    encode,
    encode_pooled,
    final_norm,
    forward,
    init_params,
    logical_axes,
    logits,
    token_nll,
)

__all__ = [
    "KVCache",
    "abstract_params",
    "decode",
    "decode_cached",
    "decode_layers_cached",
    "embed",
    "encode",
    "encode_pooled",
    "final_norm",
    "forward",
    "init_cache",
    "init_params",
    "logical_axes",
    "logits",
    "token_nll",
]
