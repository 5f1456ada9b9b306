"""Attention on Hopper GPUs in Mosaic GPU: ``mosaic_flash`` with the bounds and the gradient rule of ``attention``.

``auto`` does not take it: no GPU has run it yet. ``model.attention: mosaic_gpu`` does.
"""

import re
from typing import NamedTuple

import jax

from lclm_jax.kernels.gpu.attention import blocked_attention, bounds_of
from lclm_jax.kernels.gpu.flash import Back, Operands
from lclm_jax.kernels.platform import device_kind
from lclm_jax.kernels.request import AttentionRequest
from lclm_jax.types import PyTree

_HOPPER = r"\b(GH|H)(100|200|800|20)\b"
"""In the name of a device."""


class Layout(NamedTuple):
    """The kernels in Mosaic; a tiling is positions of a block, of the other side's blocks, and stages."""

    forward: tuple[int, int, int]
    dq: tuple[int, int, int]
    dkv: tuple[int, int, int]
    causal: bool
    interpret: PyTree = None
    """Options of Mosaic's interpreter; None: on a GPU."""

    @property
    def block(self) -> int:
        """What lengths are padded to: the largest block; all are powers of two."""
        return max(size for tiling in self[:3] for size in tiling[:2])

    def output(self, x: Operands) -> list[jax.Array]:
        """Out and log-sum-exp."""
        from lclm_jax.kernels.gpu import mosaic_flash, mosaic_parts  # not with every version of JAX

        way = mosaic_parts.Pass(mosaic_parts.Tiling(*self.forward), self.causal, True, self.interpret)
        return mosaic_flash.forward(way, bounds_of(way, x[3:]), x)

    def gradients(self, x: Operands, back: Back) -> tuple[jax.Array, jax.Array, jax.Array]:
        """dq, dk, dv."""
        from lclm_jax.kernels.gpu import mosaic_flash, mosaic_parts

        by_queries = mosaic_parts.Pass(mosaic_parts.Tiling(*self.dq), self.causal, True, self.interpret)
        by_keys = mosaic_parts.Pass(mosaic_parts.Tiling(*self.dkv), self.causal, False, self.interpret)
        (dq,) = mosaic_flash.gradient_of_queries(by_queries, bounds_of(by_queries, x[3:]), x, back)
        dk, dv = mosaic_flash.gradients_of_keys(by_keys, bounds_of(by_keys, x[3:]), x, back)
        return dq, dk, dv


def unsupported_reason(request: AttentionRequest) -> str | None:
    """Why these kernels cannot honour ``request``; None: they can."""
    if request.platform != "gpu":
        return "runs on GPUs only"
    if jax.__version_info__ < (0, 11):
        return f"needs jax 0.11 or later and this is {jax.__version__}"
    if not re.search(_HOPPER, device_kind()):
        return f"is for Hopper GPUs (H100, H200) and this is {device_kind()}"
    if request.head_dim not in (64, 128):
        return "takes heads of width 64 or 128"
    if request.dtype != "bfloat16":
        return "takes bfloat16 only"
    if min(request.queries, request.keys) < 64:
        return "takes at least 64 queries and keys"
    return None


def layout_of(width: int, causal: bool) -> Layout:
    """Blocks that fit the registers and the shared memory of a Hopper (see docs/explanation/kernels.md)."""
    stages = 4 if width == 64 else 2
    return Layout((128, 128, stages), (128, 64, stages), (128, 64, stages), causal)


def run(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
) -> jax.Array:
    """As ``attention.attention``."""
    layout = layout_of(q_BSHd.shape[3], causal)
    return blocked_attention(layout, q_BSHd, k_BTKd, v_BTKd, segments, offset_B)
