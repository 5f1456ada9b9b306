"""Floating-point operations that the model needs for the tokens of a batch: what MFU counts."""

from typing import NamedTuple

import jax
import numpy as np

from lclm_jax.config import BackboneConfig, ModelConfig, StageConfig
from lclm_jax.model.lclm import abstract_params
from lclm_jax.model.pooling import pooling_of


class Part(NamedTuple):
    """Multiply-adds of a part of the model, times two."""

    forward: float
    trains: bool
    """Whether its own weights get gradients."""
    carries: bool
    """Whether gradients pass through it to its inputs."""

    @property
    def step(self) -> float:
        """Of a training step: a backward pass costs one forward pass for inputs and one for weights."""
        return self.forward * (1 + self.trains + self.carries)


def step_flops(model: ModelConfig, stage: StageConfig, encoder: np.ndarray, decoder: np.ndarray) -> float:
    """Of a step on rows with these segments ([rows, positions], 0 is padding); recomputation does not count.

    Attention counts visible pairs, products the positions in use. A frozen part costs its forward pass, and the
    gradient of its inputs if something before it trains: the memory rows do in every stage.
    """
    latents = np.count_nonzero(encoder) / model.ratio
    sizes = kernel_sizes(model)
    trains = {part: stage.peak_lr(part) is not None for part in ("encoder", "adapter", "decoder")}
    causal = model.mask == "causal"
    late = model.encoder_stacks[1][0] / model.encoder.num_layers  # they see latents; their attention is left out
    read = np.count_nonzero(encoder) * (1 - late) + latents * late
    positions = {"encoder": read, "adapter": latents, "decoder": np.count_nonzero(decoder)}
    head = model.decoder.vocab_size * model.decoder.hidden_size
    parts = [
        Part(2.0 * positions["encoder"] * sizes["encoder"], trains["encoder"], trains["encoder"]),
        Part(2.0 * latents * sizes["adapter"], trains["adapter"], trains["encoder"]),
        Part(2.0 * latents * _pooling(model), trains["adapter"], trains["encoder"]),
        Part(2.0 * positions["decoder"] * sizes["decoder"], trains["decoder"], True),
        Part(2.0 * positions["decoder"] * head, trains["decoder"], True),
        # Both operands of attention's products are activations: a backward pass costs two forward passes or none.
        Part(_attention(model.encoder, encoder, causal) * (1 - late), trains["encoder"], trains["encoder"]),
        Part(_attention(model.decoder, decoder, True), True, True),
    ]
    return sum(part.step for part in parts)


def prompt_flops(model: ModelConfig, text: int, span: int = 0) -> float:
    """Of reading one prompt up to its first new token; the head reads one position.

    Args:
        model: its configuration.
        text: tokens that the decoder reads as they are, tags included.
        span: encoder tokens of a memory span beside them; 0: there is none.
    """
    sizes, latents = kernel_sizes(model), -(-span // model.ratio)
    decoder = np.ones((1, text + latents), np.int32)
    windows = np.arange(-(-span // model.window) * model.window).reshape(-1, model.window) < span
    head = model.decoder.vocab_size * model.decoder.hidden_size
    products = span * sizes["encoder"] + latents * sizes["adapter"] + decoder.size * sizes["decoder"] + head
    pairs = _attention(model.encoder, windows.astype(np.int32), model.mask == "causal")
    return 2.0 * products + pairs + _attention(model.decoder, decoder, True)


def kernel_sizes(model: ModelConfig) -> dict[str, int]:
    """Elements of the matrices that every position of a part (of the adapter: every latent) is multiplied with."""
    params = abstract_params(model.plain)
    sizes = {}
    for part in ("encoder", "adapter", "decoder"):
        leaves = jax.tree_util.tree_leaves_with_path({**params[part], "pool": {}})
        kernels = [(path, leaf) for path, leaf in leaves if path[-1].key == "kernel" and path[0].key != "head"]
        sizes[part] = sum(leaf.size for _, leaf in kernels)
    return sizes


def _pooling(model: ModelConfig) -> float:
    """Multiply-adds of a latent in a pooling with parameters."""
    pooling = pooling_of(model)
    return 0.0 if pooling is None else pooling.products().kernels


def _attention(shape: BackboneConfig, segments: np.ndarray, causal: bool) -> float:
    pairs = 0.0
    for row in segments:
        counts = np.bincount(row[row > 0]).astype(float)
        pairs += (counts * (counts + 1) / 2).sum() if causal else (counts**2).sum()
    return 4.0 * pairs * shape.num_heads * shape.head_dim * shape.num_layers
