"""How many parameters a model has, by part."""

import functools

import jax

from lclm_jax.config.model import BackboneConfig, ModelConfig
from lclm_jax.model.flops import kernel_sizes
from lclm_jax.model.lclm import abstract_params


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Number of parameters by part, LoRA left out."""
    width = model.decoder.hidden_size
    decoder = backbone_parameters(model.decoder)
    if not model.decoder.tie_embeddings:
        decoder += model.decoder.vocab_size * width
    return {
        "encoder": backbone_parameters(model.encoder),
        "adapter": _adapter_parameters(model.plain),
        "decoder": decoder,
        "memory_rows": 3 * width,
    }


@functools.cache
def _adapter_parameters(model: ModelConfig) -> int:
    """Of the adapter, and of a pooling that has any: as they declare them."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(model)["adapter"]))


def backbone_parameters(shape: BackboneConfig) -> int:
    """Table, blocks and final norm of a backbone, without an untied head."""
    norms = 2 * shape.hidden_size + 2 * shape.head_dim * shape.qk_norm
    biases = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim * shape.qkv_bias
    layers = shape.num_layers * (sum(kernel_sizes(shape).values()) + norms + biases)
    return shape.vocab_size * shape.hidden_size + layers + shape.hidden_size
