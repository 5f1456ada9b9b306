"""Weights that are gathered once a step, and not again for each pass of each microbatch (``train.gather_once``)."""

import jax

from lclm_jax.config import ModelConfig
from lclm_jax.model.lclm import logical_axes
from lclm_jax.parallel import constrain
from lclm_jax.parallel.sharding import Axes, constrain_stored
from lclm_jax.types import Params, PyTree

GATHERED = ("param_embed", "param_latent", "encoder_embed")
"""Logical axes whose pieces are brought together; what is cut over ``tensor`` alone is used as it is."""
KEPT = ("vocab", "encoder_vocab", "memory_row")
"""A leaf with one of these axes stays cut: look-ups and the cross-entropy read it piece by piece."""


def gather(params: Params, model: ModelConfig) -> Params:
    """``params`` whose products need no further gathering: in ``compute_dtype`` and whole along ``GATHERED``.

    Products cast their weights to ``compute_dtype`` anyway, so nothing that is computed changes. Needs a mesh.
    """

    def whole(leaf: jax.Array, axes: Axes) -> jax.Array:
        if not is_gathered(axes):
            return leaf
        return constrain(leaf.astype(model.compute_dtype), *(None if name in GATHERED else name for name in axes))

    gathered: Params = jax.tree.map(whole, params, logical_axes(model))
    return gathered


def scatter(grads: PyTree, axes: PyTree) -> PyTree:
    """``grads`` with the partitions of ``axes`` (logical names, a tuple a leaf): those of the parameters themselves."""
    return jax.tree.map(lambda leaf, names: constrain_stored(leaf, *names) if is_gathered(names) else leaf, grads, axes)


def is_gathered(axes: Axes) -> bool:
    """Whether ``gather`` brings together a parameter with these logical axes."""
    return any(name in GATHERED for name in axes) and not any(name in KEPT for name in axes)
