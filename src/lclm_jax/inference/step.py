"""One more token of every row.

A loop over stacked layers compiles one layer, but on a CPU it copies each layer's weights out of the stack before it
multiplies by them. That is nothing beside the products of many positions, and most of the time of one position a row:
there, layers are arrays of their own, views into the stack.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lclm_jax.config import ModelConfig
from lclm_jax.inference.windows import blank_batch
from lclm_jax.model.kv_cache import KVCache
from lclm_jax.model.lclm import decode_cached, decode_layers_cached, embed, final_norm, logits
from lclm_jax.types import Params

GROUP = 6
"""Layers that are compiled together: the time to compile grows with it, the time to begin programs with its inverse."""


class DecodingStep:
    """Appends a token to every row of a cache.

    Args:
        params: parameters of ``model``, on the mesh.
        model: the model.
        mesh: the mesh, entered by the caller.
    """

    def __init__(self, params: Params, model: ModelConfig, mesh: Mesh):
        self.params, self.model = params, model
        self.groups: list[list[Params]] = []
        if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
            layers = unstack(params["decoder"]["layers"], mesh.devices.flat[0])
            self.groups = [layers[first : first + GROUP] for first in range(0, len(layers), GROUP)]
            self.params = params | {"decoder": {k: v for k, v in params["decoder"].items() if k != "layers"}}

    def __call__(
        self, tokens_B: jax.Array, cache: KVCache, counts_B: jax.Array | None = None
    ) -> tuple[jax.Array, KVCache]:
        """(logits_BV after the tokens, the longer cache); ``cache`` is given up.

        Where ``counts_B`` (int32) is 0 a row gets no token, and its logits have no meaning.
        """
        counts_B = jnp.ones_like(cache.length_B) if counts_B is None else counts_B
        if not self.groups:
            return _advance(self.params, tokens_B, cache, counts_B, model=self.model)
        x_B1D = _embed(self.params, tokens_B, model=self.model)
        for number, layers in enumerate(self.groups):
            first = np.int32(number * GROUP)
            x_B1D, cache = _advance_layers(layers, x_B1D, first, cache, model=self.model)
        logits_BV, length_B = _finish(self.params, x_B1D, cache.length_B, counts_B, model=self.model)
        return logits_BV, cache._replace(length_B=length_B)


def unstack(stacked: Params, device: jax.Device) -> list[Params]:
    """The layers of parameters that carry them on axis 0; on a CPU they share the stack's memory."""
    leaves, structure = jax.tree.flatten(stacked)
    columns = [[jax.device_put(layer, device) for layer in np.asarray(leaf)] for leaf in leaves]
    return [jax.tree.unflatten(structure, layer) for layer in zip(*columns, strict=True)]


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def _advance(
    params: Params, tokens_B: jax.Array, cache: KVCache, counts_B: jax.Array, *, model: ModelConfig
) -> tuple[jax.Array, KVCache]:
    x_B1D = embed(params, model, blank_batch(decoder_tokens=tokens_B[:, None]))
    hidden_B1D, cache = decode_cached(params, model, x_B1D, cache.length_B[:, None], cache, counts_B)
    return logits(params, model, hidden_B1D)[:, 0], cache


@functools.partial(jax.jit, static_argnames=("model",))
def _embed(params: Params, tokens_B: jax.Array, *, model: ModelConfig) -> jax.Array:
    return embed(params, model, blank_batch(decoder_tokens=tokens_B[:, None]))


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def _advance_layers(
    layers: Sequence[Params], x_B1D: jax.Array, first: jax.Array, cache: KVCache, *, model: ModelConfig
) -> tuple[jax.Array, KVCache]:
    return decode_layers_cached(layers, model, x_B1D, cache.length_B[:, None], cache, first)


@functools.partial(jax.jit, static_argnames=("model",))
def _finish(
    params: Params, x_B1D: jax.Array, length_B: jax.Array, counts_B: jax.Array, *, model: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    return logits(params, model, final_norm(params, model, x_B1D))[:, 0], length_B + counts_B
