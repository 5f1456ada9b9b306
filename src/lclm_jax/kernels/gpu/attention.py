"""Attention on GPUs with our own kernels, which skip whatever the segments leave out.

``block_mask`` derives from the segment ids which pairs of blocks hold an allowed pair; here these become bounds for
each block; ``flash`` holds the kernels in Triton, ``mosaic_flash`` those for Hopper, which ``mosaic`` runs through
``blocked_attention`` as well. Arrays keep their layout; lengths are padded to whole blocks.
"""

import functools
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.kernels.block_mask import summarise, tile_pairs
from lclm_jax.kernels.gpu import flash
from lclm_jax.kernels.gpu.flash import Back, Operands, Outputs, Pass, Tiling
from lclm_jax.kernels.request import SAVED, AttentionRequest


class Cut(Protocol):
    """How one kernel runs, in Triton or in Mosaic."""

    @property
    def tiling(self) -> tuple[int, ...]:
        """Positions of a block of the own side, of the other side, and what else there is."""

    @property
    def causal(self) -> bool:
        """Whether order limits what a query sees."""

    @property
    def by_queries(self) -> bool:
        """Whether a program owns queries, not keys."""


class Kernels(Protocol):
    """The static part of a call: three kernels in their tilings. It can be hashed."""

    @property
    def block(self) -> int:
        """What lengths are padded to."""

    def output(self, x: Operands) -> list[jax.Array]:
        """Out [B, S, H, d] and the log-sum-exp in base 2 [B, H, S]."""

    def gradients(self, x: Operands, back: Back) -> tuple[jax.Array, jax.Array, jax.Array]:
        """dq, dk, dv; ``back``: dO [B, S, H, d], log-sum-exp and delta [B, H, S]."""


class Layout(NamedTuple):
    """The kernels in Triton."""

    forward: Tiling
    dq: Tiling
    dkv: Tiling
    causal: bool
    interpret: bool = False

    @property
    def block(self) -> int:
        """What lengths are padded to: the largest block; all are powers of two."""
        return max(size for tiling in self[:3] for size in tiling[:2])

    def output(self, x: Operands) -> list[jax.Array]:
        """Out and log-sum-exp."""
        way = Pass(self.forward, self.causal, True, self.interpret)
        outputs: Outputs = [("q", x.q.dtype), ("row", jnp.float32)]
        return way.call(flash.attention_forward, bounds_of(way, x[3:]), x, (), outputs)

    def gradients(self, x: Operands, back: Back) -> tuple[jax.Array, jax.Array, jax.Array]:
        """dq, dk, dv."""
        by_queries = Pass(self.dq, self.causal, True, self.interpret)
        by_keys = Pass(self.dkv, self.causal, False, self.interpret)
        (dq,) = by_queries.call(flash.attention_dq, bounds_of(by_queries, x[3:]), x, back, [("q", x.q.dtype)])
        outputs: Outputs = [("k", x.k.dtype), ("k", x.v.dtype)]
        dk, dv = by_keys.call(flash.attention_dkv, bounds_of(by_keys, x[3:]), x, back, outputs)
        return dq, dk, dv


def unsupported_reason(request: AttentionRequest) -> str | None:
    """Why these kernels cannot honour ``request``; None: they can."""
    if request.platform != "gpu":
        return "runs on GPUs only"
    if request.head_dim not in (64, 128):
        return "takes heads of width 64 or 128"
    if request.dtype not in ("bfloat16", "float32"):
        return "takes bfloat16 or float32"
    if min(request.queries, request.keys) < 64:
        return "takes at least 64 queries and keys"
    return None


def layout_of(width: int, dtype: str, causal: bool) -> Layout:
    """Blocks that a processor of an H100 holds without spilling registers (see docs/explanation/kernels.md)."""
    if dtype == "float32":  # no tensor cores: products of whole float32 go through registers
        return Layout(Tiling(64, 16, 8, 2), Tiling(64, 32, 8, 2), Tiling(32, 32, 8, 2), causal)
    stages = 3 if width == 64 else 2
    return Layout(Tiling(128, 64, 8, stages), Tiling(128, 64, 8, 2), Tiling(128, 32, 8, 2), causal)


def run(
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    causal: bool,
    offset_B: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """As ``attention.attention``; ``interpret``: on any platform, slowly."""
    layout = layout_of(q_BSHd.shape[3], q_BSHd.dtype.name, causal)._replace(interpret=interpret)
    return blocked_attention(layout, q_BSHd, k_BTKd, v_BTKd, segments, offset_B)


def blocked_attention(
    layout: Kernels,
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    offset_B: jax.Array | None = None,
) -> jax.Array:
    """As ``run``, in a chosen layout."""
    offset_B = jnp.zeros(q_BSHd.shape[0], jnp.int32) if offset_B is None else offset_B.astype(jnp.int32)
    q, k, v, q_ids, k_ids = (_padded(x, layout.block) for x in (q_BSHd, k_BTKd, v_BTKd, *segments))
    return _attend(layout, q, k, v, (q_ids, k_ids, offset_B))[:, : q_BSHd.shape[1]]


def bounds_of(way: Cut, marks: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """What each block of the own side goes through: [B, blocks, 4] int32.

    Args:
        way: of the kernel.
        marks: segment ids of queries [B, S] and keys [B, T], offset [B].

    Returns:
        first, stop: the range of the other side's blocks that hold anything (exact where segments are contiguous);
        whole, end: a run of blocks within it that need no mask.
    """
    (q_ids, k_ids, offset_B), (own, other) = marks, way.tiling[:2]
    q_tile, k_tile = (own, other) if way.by_queries else (other, own)
    q_order, k_order = (jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32)[None], x.shape) for x in marks[:2])
    queries = summarise(q_ids, q_order + offset_B[:, None], q_tile)
    pairs = tile_pairs(queries, summarise(k_ids, k_order, k_tile), way.causal)
    pairs = pairs if way.by_queries else pairs.swapaxes(1, 2)
    place, none = jnp.arange(pairs.shape[2], dtype=jnp.int32)[None, None, :], pairs.shape[2]
    first = jnp.where(pairs != 0, place, none).min(2)
    stop = jnp.where(pairs != 0, place + 1, 0).max(2)
    first = jnp.minimum(first, stop)
    whole = jnp.where(pairs == 3, place, none).min(2)
    end = jnp.where((pairs != 3) & (place > whole[..., None]), place, none).min(2)
    whole, end = (jnp.where(whole < none, x, first) for x in (whole, end))
    return jnp.stack([first, stop, whole, end], -1)


Marks = tuple[jax.Array, jax.Array, jax.Array]
"""Segment ids of queries [B, S] and keys [B, T], offset [B]."""
Saved = tuple[jax.Array, jax.Array, jax.Array, Marks, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(layout: Kernels, q_BSHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, marks: Marks) -> jax.Array:
    """Out [B, S, H, d]."""
    return _attend_forward(layout, q_BSHd, k_BTKd, v_BTKd, marks)[0]


def _attend_forward(
    layout: Kernels, q_BSHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, marks: Marks
) -> tuple[jax.Array, Saved]:
    out_BSHd, lse_BHS = layout.output(Operands(q_BSHd, k_BTKd, v_BTKd, *marks))
    # Named here, inside the rule, because a name outside of it would save the output but not the log-sum-exp.
    out_BSHd, lse_BHS = checkpoint_name(out_BSHd, SAVED), checkpoint_name(lse_BHS, SAVED)
    return out_BSHd, (q_BSHd, k_BTKd, v_BTKd, marks, out_BSHd, lse_BHS)


def _attend_backward(
    layout: Kernels, saved: Saved, dout_BSHd: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BSHd, k_BTKd, v_BTKd, marks, out_BSHd, lse_BHS = saved
    # sum over d of dO * O: the term that the softmax's normalisation adds to every score gradient
    delta_BSH = (dout_BSHd.astype(jnp.float32) * out_BSHd.astype(jnp.float32)).sum(-1)
    back = (dout_BSHd, lse_BHS, delta_BSH.swapaxes(1, 2))
    return *layout.gradients(Operands(q_BSHd, k_BTKd, v_BTKd, *marks), back), None


_attend.defvjp(_attend_forward, _attend_backward)


def _padded(x: jax.Array, block: int) -> jax.Array:
    """``x`` with axis 1 padded by zeros to a multiple of ``block``; zero segments are padding."""
    extra = -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x
