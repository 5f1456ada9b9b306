"""The poolings by name.

A new one is a file in ``model/poolings/`` and a line here (``docs/how-to/add-a-pooling.md``).
"""

from typing import Literal, NamedTuple


class PoolingRow(NamedTuple):
    """What everything but its own file needs to know of a pooling.

    A pooling without parameters has a ``kernel``, one with parameters ``code``; one with learned markers has both.
    """

    kernel: Literal["mean", "concat", "eos"] | None = None
    """What the fused kernel does (``kernels/normed_pooling.py``)."""
    code: str | None = None
    """``module:class`` of a pooling with parameters (``model/pooling.py`` says how it is called); loaded on use."""
    width: int | Literal["ratio"] = 1
    """Width of a latent before the adapter, in widths of the encoder; ``ratio``: N."""
    markers: Literal["pad", "learned"] | None = None
    """A marker per latent behind each window: the encoder's pad token, or a learned input embedding per index."""
    any_ratio: bool = False
    """Whether the same weights serve every N, so that a stage can mix ratios."""
    published: bool = False
    """Whether the PyTorch implementation has it, so that a model can be exported."""


LATE_LAYERS = PoolingRow(any_ratio=True)
"""Stands in for the row of ``mean`` if layers run after it (``model.pool_before_last``): no kernel, not published."""

POOLINGS: dict[str, PoolingRow] = {
    "mean": PoolingRow(kernel="mean", any_ratio=True, published=True),
    "concat": PoolingRow(kernel="concat", width="ratio", published=True),
    "eos": PoolingRow(kernel="eos", markers="pad", published=True),
    "attention": PoolingRow(code="lclm_jax.model.poolings.attention:AttentionPooling", any_ratio=True),
    "slots": PoolingRow("eos", "lclm_jax.model.poolings.slots:Slots", markers="learned"),
}
