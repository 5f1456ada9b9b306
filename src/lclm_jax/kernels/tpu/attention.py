"""Attention on TPUs with our own kernels, which skip whatever the segments leave out.

``block_mask`` turns segment ids into the list of blocks to visit, ``flash`` holds the kernels, ``grid`` is their grid
over that list; here arrays are brought into the kernels' layout and back, and forward and backward are joined.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lclm_jax.kernels.block_mask import Steps, schedule, summarise, tile_pairs
from lclm_jax.kernels.request import SAVED, AttentionRequest
from lclm_jax.kernels.tpu import flash
from lclm_jax.kernels.tpu.grid import Operands, StepGrid, Tiling

MAX_STEPS = 48 * 1024
"""Steps whose four numbers fill three quarters of a core's scalar memory of 1 MiB."""

_QUERY_BYTES = 1 << 20
"""Size of a block of queries: two of it, of the output and of its gradient fit VMEM beside the scores of a tile."""


class Layout(NamedTuple):
    """The static part of a call."""

    tiling: Tiling
    causal: bool
    ordered: bool
    """Queries and keys begin at the same place, so that the blocks above the diagonal are known to be idle."""
    interpret: bool


class Marks(NamedTuple):
    """What stands beside queries and keys, in padded lengths; all int32."""

    q_ids_BS: jax.Array
    q_order_BS: jax.Array
    k_ids_BT: jax.Array


def unsupported_reason(request: AttentionRequest) -> str | None:
    """Why these kernels cannot honour ``request``; None: they can."""
    if request.platform != "tpu":
        return "runs on TPUs only"
    if request.head_dim not in (64, 128):
        return "takes heads of width 64 or 128"
    if request.dtype not in ("bfloat16", "float32"):
        return "takes bfloat16 or float32"
    if min(request.queries, request.keys) < 64:
        return "takes at least 64 queries and keys"
    tiling = tiling_of(request.queries, request.keys, request.heads // request.kv_heads, request.dtype)
    steps = request.rows * -(-request.queries // tiling.q_block) * -(-request.keys // tiling.k_block)
    if steps > MAX_STEPS:
        return f"lists at most {MAX_STEPS} pairs of blocks in scalar memory and there are {steps}"
    return None


def tiling_of(queries: int, keys: int, group: int, dtype: str) -> Tiling:
    """Tiles of 256 positions (128 in short rows), up to four in a block, and as few blocks as that allows."""
    q_tile, k_tile = (256 if length > 512 else 128 for length in (queries, keys))
    fit = _QUERY_BYTES // (group * q_tile * 128 * jnp.dtype(dtype).itemsize)
    return Tiling(group, q_tile, _evenly(queries, q_tile, max(1, min(4, fit))), k_tile, _evenly(keys, k_tile, 4))


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
    group = q_BSHd.shape[2] // k_BTKd.shape[2]
    tiling = tiling_of(q_BSHd.shape[1], k_BTKd.shape[1], group, q_BSHd.dtype.name)
    layout = Layout(tiling, causal, offset_B is None and q_BSHd.shape[1] == k_BTKd.shape[1], interpret)
    return tiled_attention(layout, q_BSHd, k_BTKd, v_BTKd, segments, offset_B)


def tiled_attention(
    layout: Layout,
    q_BSHd: jax.Array,
    k_BTKd: jax.Array,
    v_BTKd: jax.Array,
    segments: tuple[jax.Array, jax.Array],
    offset_B: jax.Array | None = None,
) -> jax.Array:
    """As ``run``, in a chosen layout."""
    t, (rows, queries, heads, width), kv_heads = layout.tiling, q_BSHd.shape, k_BTKd.shape[2]
    q_BSHd = _padded(q_BSHd, t.q_block)
    q_BnpKGd = q_BSHd.reshape(rows, -1, t.q_tile, kv_heads, t.group, width)
    q_BKrd = q_BnpKGd.transpose(0, 3, 1, 4, 2, 5).reshape(rows, kv_heads, -1, width)
    k_BKTd, v_BKTd = (_padded(x, t.k_block).swapaxes(1, 2) for x in (k_BTKd, v_BTKd))
    marks = marks_of(layout, segments, offset_B)
    out_BKrd = _attend(layout, q_BKrd, k_BKTd, v_BKTd, marks)
    out_BKnGpd = out_BKrd.reshape(rows, kv_heads, -1, t.group, t.q_tile, width)
    return out_BKnGpd.transpose(0, 2, 4, 1, 3, 5).reshape(rows, -1, heads, width)[:, :queries]


def marks_of(layout: Layout, segments: tuple[jax.Array, jax.Array], offset_B: jax.Array | None) -> Marks:
    """Segments and orders, padded to whole blocks; the padding is in no segment."""
    q_ids_BS, k_ids_BT = _padded(segments[0], layout.tiling.q_block), _padded(segments[1], layout.tiling.k_block)
    order_BS = jnp.broadcast_to(jnp.arange(q_ids_BS.shape[1], dtype=jnp.int32)[None, :], q_ids_BS.shape)
    return Marks(q_ids_BS, order_BS if offset_B is None else order_BS + offset_B[:, None], k_ids_BT)


def steps_of(layout: Layout, marks: Marks, by_queries: bool) -> Steps:
    """The steps of the kernels: by blocks of queries, or by blocks of keys."""
    t = layout.tiling
    k_order_BT = jnp.broadcast_to(jnp.arange(marks.k_ids_BT.shape[1], dtype=jnp.int32)[None, :], marks.k_ids_BT.shape)
    queries = summarise(marks.q_ids_BS, marks.q_order_BS, t.q_tile)
    keys = summarise(marks.k_ids_BT, k_order_BT, t.k_tile)
    pairs = tile_pairs(queries, keys, layout.causal)
    capacity = None
    if layout.causal and layout.ordered:
        begins, ends = range(0, k_order_BT.shape[1], t.k_block), range(0, marks.q_ids_BS.shape[1], t.q_block)
        capacity = pairs.shape[0] * sum(begin < end + t.q_block for begin in begins for end in ends)
    if by_queries:
        return schedule(pairs, t.q_tiles, t.k_tiles, capacity)
    return schedule(pairs.swapaxes(1, 2), t.k_tiles, t.q_tiles, capacity)


Saved = tuple[jax.Array, jax.Array, jax.Array, Marks, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(layout: Layout, q_BKrd: jax.Array, k_BKTd: jax.Array, v_BKTd: jax.Array, marks: Marks) -> jax.Array:
    """out_BKrd."""
    return _attend_forward(layout, q_BKrd, k_BKTd, v_BKTd, marks)[0]


def _attend_forward(
    layout: Layout, q_BKrd: jax.Array, k_BKTd: jax.Array, v_BKTd: jax.Array, marks: Marks
) -> tuple[jax.Array, Saved]:
    x = _operands(layout, q_BKrd, k_BKTd, v_BKTd, marks)
    out_BKrd, lse_BK1r = flash.forward(_grid(layout, x, True), steps_of(layout, marks, by_queries=True), x)
    # Named here, inside the rule, because a name outside of it would save the output but not the log-sum-exp.
    out_BKrd, lse_BK1r = checkpoint_name(out_BKrd, SAVED), checkpoint_name(lse_BK1r, SAVED)
    return out_BKrd, (q_BKrd, k_BKTd, v_BKTd, marks, out_BKrd, lse_BK1r)


def _attend_backward(
    layout: Layout, saved: Saved, dout_BKrd: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q_BKrd, k_BKTd, v_BKTd, marks, out_BKrd, lse_BK1r = saved
    x = _operands(layout, q_BKrd, k_BKTd, v_BKTd, marks)
    # sum over d of dO * O: the term that the softmax's normalisation adds to every score gradient
    delta_BKr = (dout_BKrd.astype(jnp.float32) * out_BKrd.astype(jnp.float32)).sum(-1)
    back = (dout_BKrd, lse_BK1r, delta_BKr[:, :, None, :])
    dq = flash.query_gradient(_grid(layout, x, True), steps_of(layout, marks, by_queries=True), x, back)
    dk, dv = flash.key_gradients(_grid(layout, x, False), steps_of(layout, marks, by_queries=False), x, back)
    return dq, dk, dv, None


_attend.defvjp(_attend_forward, _attend_backward)


def _operands(layout: Layout, q_BKrd: jax.Array, k_BKTd: jax.Array, v_BKTd: jax.Array, marks: Marks) -> Operands:
    """The kernels' inputs: every query row has its own id and order, alike for the heads of a group."""
    t, rows = layout.tiling, q_BKrd.shape[0]

    def by_query_row(x_BS: jax.Array) -> jax.Array:
        x_Bn1p = x_BS.reshape(rows, -1, 1, t.q_tile)
        return jnp.broadcast_to(x_Bn1p, (*x_Bn1p.shape[:2], t.group, t.q_tile)).reshape(rows, 1, -1)

    ids, order = by_query_row(marks.q_ids_BS), by_query_row(marks.q_order_BS)
    return Operands(q_BKrd, k_BKTd, v_BKTd, ids, order, marks.k_ids_BT[:, None, :])


def _grid(layout: Layout, x: Operands, by_queries: bool) -> StepGrid:
    t = layout.tiling
    blocks = (x.q.shape[2] // t.q_rows, x.k.shape[2] // t.k_block)
    return StepGrid(t, layout.causal, by_queries, *blocks, layout.interpret)


def _evenly(length: int, tile: int, most: int) -> int:
    """Tiles per block: at most ``most``, of blocks that leave as little padding as the fewest blocks can."""
    tiles = -(-length // tile)
    return -(-tiles // -(-tiles // most))


def _padded(x: jax.Array, block: int) -> jax.Array:
    """``x`` with axis 1 padded by zeros to a multiple of ``block``."""
    extra = -x.shape[1] % block
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x
