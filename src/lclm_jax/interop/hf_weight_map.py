"""The one table between our parameter paths and Hugging Face tensor names.

Every row of the table is one tensor of a Hugging Face file: which leaf (and layer of a stacked leaf) it is, its shape
there and here, and whether the axes are reversed in between (torch stores linear layers as [out, in]).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lclm_jax.config import BackboneConfig, ModelConfig
from lclm_jax.config.registry.adapters import ADAPTERS
from lclm_jax.config.registry.poolings import POOLINGS
from lclm_jax.errors import LclmError

TABLE_PATH = "decoder/embed/table"
MEMORY_ROWS_PATH = "decoder/memory_rows"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a Hugging Face file and the leaf it belongs to."""

    folder: str
    """decoder, encoder or adapter."""
    name: str
    """Name in the file."""
    path: str
    """Path of our leaf, from the root of the parameters."""
    layer: int | None
    """Index on axis 0 of a stacked leaf; None: the whole leaf."""
    shape: tuple[int, ...]
    """Shape in the file."""
    our_shape: tuple[int, ...]
    """Shape of the leaf, without the axis of layers."""
    reverse: bool
    """Whether the file stores the axes reversed, output first."""

    @property
    def parameter(self) -> str:
        """Name as the PyTorch implementation's optimizer sees it: folder, dot, name."""
        return f"{self.folder}.{self.name}"

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """The tensor of the file (or consecutive rows of it), in the leaf's layout; dtype unchanged."""
        turned = array.T if self.reverse else array
        return turned.reshape(self.our_shape) if turned.size == math.prod(self.shape) else turned

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The leaf (its layer, or what ``index`` cuts out), in the file's layout; dtype unchanged."""
        return array.reshape(self.shape[1], -1).T if self.reverse else array.reshape(-1, *self.shape[1:])

    def index(self, rows: slice) -> tuple[int | slice, ...]:
        """Where ``rows`` of the file's tensor (one of ``row_blocks``) lie in the leaf."""
        layer: tuple[int | slice, ...] = () if self.layer is None else (self.layer,)
        if rows == slice(0, self.shape[0]):
            return layer
        return (*layer, slice(None), rows) if self.reverse else (*layer, rows)

    def row_blocks(self, limit: int = 2**24) -> Iterator[slice]:
        """Consecutive rows of the file's tensor, of at most ``limit`` bytes in float32.

        Only whole leaves are cut (tables, heads): one layer of a stacked leaf is small.
        """
        rows = self.shape[0]
        step = rows
        if self.layer is None and len(self.shape) == len(self.our_shape) == 2:
            step = max(1, limit // (4 * self.shape[1]))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


def tensor_table(model: ModelConfig) -> list[Tensor]:
    """Every tensor of an exported model, in file order. ``decoder/memory_rows`` has no row: it lives in the table."""
    return [
        *backbone_tensors(model.decoder, "decoder", "model."),
        *backbone_tensors(model.encoder, "encoder", ""),
        *adapter_tensors(model),
    ]


def backbone_tensors(backbone: BackboneConfig, folder: str, prefix: str) -> list[Tensor]:
    """Tensors of a backbone; ``prefix`` is ``"model."`` in causal-LM files, empty in base models.

    Only ``folder="decoder"`` has an output head, and only if it is untied.
    """
    vocab, width = backbone.vocab_size, backbone.hidden_size
    table = [_whole(folder, f"{prefix}embed_tokens.weight", "embed/table", (vocab, width))]
    for layer in range(backbone.num_layers):
        table += _block(backbone, folder, f"{prefix}layers.{layer}.", layer)
    table.append(_whole(folder, f"{prefix}norm.weight", "final_norm/scale", (width,)))
    if folder == "decoder" and not backbone.tie_embeddings:
        table.append(
            Tensor(folder, "lm_head.weight", "decoder/head/kernel", None, (vocab, width), (width, vocab), True)
        )
    return table


def adapter_tensors(model: ModelConfig) -> list[Tensor]:
    """Tensors of ``adapter.safetensors``: norm, two linear layers, and attention layers if the type has them.

    Raises ``LclmError`` for a model that has no place in the published format.
    """
    _check_published(model)
    pooled, width = model.latent_size, model.decoder.hidden_size
    table = [
        _whole("adapter", "norm.weight", "norm/scale", (pooled,)),
        Tensor("adapter", "fc1.weight", "adapter/fc1/kernel", None, (width, pooled), (pooled, width), True),
        _whole("adapter", "fc1.bias", "fc1/bias", (width,)),
        Tensor("adapter", "fc2.weight", "adapter/fc2/kernel", None, (width, width), (width, width), True),
        _whole("adapter", "fc2.bias", "fc2/bias", (width,)),
    ]
    backbone = model.adapter_backbone
    if backbone is not None:
        for layer in range(model.adapter.num_layers):
            table += _block(backbone, "adapter", f"attention_layers.{layer}.decoder_layer.", layer)
    return table


def _check_published(model: ModelConfig) -> None:
    """The format is what the PyTorch implementation and vLLM read: what they do not have cannot be written for them."""
    if model.pool_before_last:
        raise LclmError(
            f"model.pool_before_last={model.pool_before_last} is not part of the published format (0 is), so this model"
            " cannot be exported; evaluate it from its checkpoints"
        )
    published = {
        "pooling": (model.pooling, [name for name, row in POOLINGS.items() if row.published]),
        "adapter.type": (model.adapter.type, [name for name, row in ADAPTERS.items() if row.published]),
    }
    for name, (value, known) in published.items():
        if value not in known:
            raise LclmError(
                f"model.{name}={value} is not part of the published format (only {', '.join(known)} are), so this model"
                " cannot be exported; evaluate it from its checkpoints"
            )


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, leaf) of nested parameters, paths joined with ``/``."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def leaf(params: Mapping[str, Any], path: str) -> Any:
    """The leaf at ``path``; raises ``LclmError`` naming the path if the parameters lack it."""
    node: Any = params
    for part in path.split("/"):
        if not isinstance(node, Mapping) or part not in node:
            raise LclmError(f"the parameters have no {path}; they do not belong to this model configuration")
        node = node[part]
    return node


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parameters from (path, leaf); the inverse of ``flatten``."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _whole(folder: str, name: str, path: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(folder, name, f"{folder}/{path}", None, shape, shape, False)


def _block(backbone: BackboneConfig, folder: str, prefix: str, layer: int) -> list[Tensor]:
    """Tensors of one transformer block; queries, keys and values keep heads and head width apart in our layout."""
    width, mlp, d = backbone.hidden_size, backbone.mlp_size, backbone.head_dim
    heads, kv_heads = backbone.num_heads, backbone.num_kv_heads
    plain = [("input_layernorm", "attn_norm/scale", width), ("post_attention_layernorm", "mlp_norm/scale", width)]
    if backbone.qk_norm:
        plain += [("self_attn.q_norm", "attn/q_norm/scale", d), ("self_attn.k_norm", "attn/k_norm/scale", d)]
    linear = [
        ("self_attn.q_proj", "attn/q/kernel", (heads * d, width), (width, heads, d)),
        ("self_attn.k_proj", "attn/k/kernel", (kv_heads * d, width), (width, kv_heads, d)),
        ("self_attn.v_proj", "attn/v/kernel", (kv_heads * d, width), (width, kv_heads, d)),
        ("self_attn.o_proj", "attn/o/kernel", (width, heads * d), (heads, d, width)),
        ("mlp.gate_proj", "mlp/gate/kernel", (mlp, width), (width, mlp)),
        ("mlp.up_proj", "mlp/up/kernel", (mlp, width), (width, mlp)),
        ("mlp.down_proj", "mlp/down/kernel", (width, mlp), (mlp, width)),
    ]
    biases = [
        ("self_attn.q_proj", "attn/q/bias", (heads, d)),
        ("self_attn.k_proj", "attn/k/bias", (kv_heads, d)),
        ("self_attn.v_proj", "attn/v/bias", (kv_heads, d)),
    ] * backbone.qkv_bias
    root = f"{folder}/layers/"
    return [
        *(Tensor(folder, f"{prefix}{n}.weight", root + p, layer, (size,), (size,), False) for n, p, size in plain),
        *(Tensor(folder, f"{prefix}{n}.weight", root + p, layer, s, ours, True) for n, p, s, ours in linear),
        *(Tensor(folder, f"{prefix}{n}.bias", root + p, layer, (h * d,), (h, d), False) for n, p, (h, _) in biases),
    ]
