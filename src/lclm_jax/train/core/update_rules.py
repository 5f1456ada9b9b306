"""How a group's gradient becomes the direction of its update, before learning rate and decay: optax's transformations.

``adamw``: Adam with bias correction. ``adafactor``: gradient over its factored root mean square, clipped by block
(Shazeer & Stern 2018, arXiv 1804.04235), without second moments of full size. ``muon``: orthogonalised momentum for
the matrices inside the layers and the adapter (Jordan et al. 2024), scaled to the size of AdamW's updates so that
learning rates carry over (Liu et al. 2025, arXiv 2502.16982); Adam for tables, norms, biases and LoRA.
"""

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyEntry
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from lclm_jax.config import OptimizerConfig
from lclm_jax.train.core.freeze import merge, path_name, select
from lclm_jax.types import PyTree

_ADAM_RMS = 0.2

"""Root mean square of an AdamW update in units of the learning rate, to which Muon's is scaled (arXiv 2502.16982)."""

_FACTORED = 32

"""Adafactor keeps full second moments of matrices whose smaller side is below this."""


def update_rule(settings: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation that ``settings.kind`` names; its state has moments in ``settings.moment_dtype``."""
    if settings.kind == "adamw":
        return _adam(settings)
    if settings.kind == "adafactor":
        return optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=_FACTORED, decay_rate=0.8),
            optax.clip_by_block_rms(1.0),
        )
    return _muon(settings)


def _adam(settings: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(settings.b1, settings.b2, settings.eps, mu_dtype=settings.moment_dtype)


def _muon(settings: OptimizerConfig) -> optax.GradientTransformation:
    """Muon on matrices, Adam on the rest; the state is ``{"matrices": ..., "others": ...}``, empty ones left out."""

    def parts(tree: PyTree) -> dict[str, tuple[optax.GradientTransformation, PyTree]]:
        axes = jax.tree_util.tree_map_with_path(_axes, tree)
        labels = jax.tree.map(lambda one: "others" if one is None else "matrices", axes, is_leaf=_is_axes)
        matrices, others = (select(tree, labels, (name,)) for name in ("matrices", "others"))
        muon = scale_by_muon(
            beta=settings.b2,
            mu_dtype=settings.moment_dtype,
            weight_dimension_numbers=select(axes, labels, ("matrices",)),
        )
        found = {"matrices": (muon, matrices), "others": (_adam(settings), others)}
        return {name: part for name, part in found.items() if part[1]}

    def init(params: PyTree) -> PyTree:
        return {name: transform.init(branch) for name, (transform, branch) in parts(params).items()}

    def update(gradients: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        moved, new = [], {}
        for name, (transform, branch) in parts(gradients).items():
            updates, new[name] = transform.update(branch, state[name])
            if name == "matrices":
                updates = jax.tree_util.tree_map_with_path(_to_adam_size, updates)
            moved.append(updates)
        return merge(*moved), new

    return optax.GradientTransformation(init, update)


def _axes(path: tuple[KeyEntry, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
    """Input and output axes of a matrix (a stack of layers is a batch of matrices); None for what is no matrix."""
    names = path_name(path).split("/")
    if names[-1] != "kernel" or names[-2] == "head":
        return None
    first = 1 if "layers" in names else 0
    middle = leaf.ndim - 1 if names[-2] == "o" else first + 1
    return MuonDimensionNumbers(tuple(range(first, middle)), tuple(range(middle, leaf.ndim)))


def _is_axes(node: PyTree) -> bool:
    return node is None or isinstance(node, MuonDimensionNumbers)


def _to_adam_size(path: tuple[KeyEntry, ...], leaf: jax.Array) -> jax.Array:
    """Scale an orthogonal matrix of a by b, whose root mean square is 1 over sqrt(max(a, b)), to ``_ADAM_RMS``."""
    axes = _axes(path, leaf)
    assert axes is not None
    sides = [1, 1]
    for side, numbers in enumerate(axes):
        for axis in numbers:
            sides[side] *= leaf.shape[axis]
    scaled: jax.Array = leaf * (_ADAM_RMS * max(sides) ** 0.5)
    return scaled


def stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Stochastic rounding of float32 to one of the two nearest bfloat16 values; the expected value is ``x``.

    An update smaller than half the distance between two bfloat16 values (a 256th of the parameter) would be lost in
    every step by rounding to nearest (Gupta et al. 2015, arXiv 1502.02551; Zamirai et al. 2020, arXiv 2010.06192).
    bfloat16 is the upper half of a float32, so adding a uniform 16-bit number and cutting the lower half off is all.

    Args:
        x: float32, any shape.
        key: random key; equal keys round equally, on any mesh.

    Returns:
        bfloat16. What is not finite is rounded to nearest.
    """
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    cut = jax.lax.bitcast_convert_type((words + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16)
