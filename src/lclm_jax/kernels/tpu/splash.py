"""JAX's splash attention on TPUs, with segments and padding as ours are, and blocks between segments skipped.

Splash makes its schedule, the list of blocks to visit, from a static mask (causal or full), and masks segments inside
the blocks: on a packed row that is the work of the whole triangle. The kernels read the schedule from scalar memory at
run time, so here it is computed from the segment ids of each row.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask_info,
)

from lclm_jax.kernels.block_mask import summarise, tile_pairs
from lclm_jax.kernels.platform import device_kind
from lclm_jax.kernels.request import SAVED, AttentionRequest
from lclm_jax.kernels.tpu import fused_backward
from lclm_jax.types import PyTree

LANES = 128

Visited = jax.Array | np.ndarray
"""[blocks of queries, blocks of keys] bool."""

MAX_BLOCKS = 128
"""Blocks of a row: two numbers for each pair of them fill an eighth of a core's scalar memory of 1 MiB."""


def unsupported_reason(request: AttentionRequest) -> str | None:
    """Why splash cannot honour ``request``; None: it can."""
    if request.platform != "tpu":
        return "runs on TPUs only"
    if request.offset:
        return "takes no offset"
    if not request.to_itself:
        return "needs one array of segments for queries and keys, so that every query has a key"
    if request.head_dim not in (64, 128):
        return "takes heads of width 64 or 128"
    if request.dtype not in ("bfloat16", "float32"):
        return "takes bfloat16 or float32"
    if request.queries < 64:
        return "takes at least 64 queries"
    return None


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
    assert offset_B is None and segments[0] is segments[1]
    sizes = block_sizes(q_BSHd.shape[1] + -q_BSHd.shape[1] % LANES, q_BSHd.shape[3], q_BSHd.dtype.name, device_kind())
    return scheduled_attention(sizes, (q_BSHd, k_BTKd, v_BTKd), segments[0], causal, interpret)


def scheduled_attention(
    sizes: "BlockSizes",
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    segments_BS: jax.Array,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """As ``run``, in blocks of chosen sizes, which divide the length as it is padded to whole lanes."""
    q_BSHd, k_BTKd, v_BTKd = arrays
    length, segments_BS = q_BSHd.shape[1], _padded(segments_BS)
    q_BHSd = _padded(q_BSHd * q_BSHd.shape[3] ** -0.5).swapaxes(1, 2)  # splash leaves the scale to its caller
    k_BKTd, v_BKTd = (_padded(x_BTKd).swapaxes(1, 2) for x_BTKd in (k_BTKd, v_BTKd))
    operands = Operands(q_BHSd, k_BKTd, v_BKTd, segments_BS)
    forward, backward = (pair_codes(segments_BS, size, causal) for size in (sizes.forward, sizes.backward))
    how = Splash(sizes, causal, interpret)
    if sizes.fused and 8 * backward.size <= fused_backward.SCALAR_BYTES:
        schedule = fused_backward.Schedule(backward, jax.vmap(next_keys)(backward != 0))
        out_BHSd = _attend(how, operands, forward != 0, schedule)
    else:
        out_BHSd = how.over_rows((forward != 0, backward != 0), operands)
    out_BSHd = out_BHSd.swapaxes(1, 2)
    # To splash padding is a segment like others: its queries see its keys. They return zeros and take no gradient.
    return jnp.where((segments_BS != 0)[:, :, None, None], out_BSHd, 0)[:, :length]


class Operands(NamedTuple):
    """What attention is taken of, padded to whole lanes."""

    q: jax.Array
    """[B, H, S, d], scaled."""
    k: jax.Array
    """[B, K, S, d]"""
    v: jax.Array
    segments: jax.Array
    """[B, S] int32."""


class Splash(NamedTuple):
    """Splash as it is compiled. Hashable."""

    sizes: "BlockSizes"
    causal: bool
    interpret: bool

    def over_rows(self, visited: tuple[jax.Array, jax.Array], operands: Operands, residuals: bool = False) -> PyTree:
        """Output [B, H, S, d]; with ``residuals`` (output, (log-sum-exp [B, H, S] float32,)).

        ``visited``: [B, blocks, blocks] bool, of the forward and of splash's own backward pass.
        """

        def row(visited: tuple[Visited, Visited], x: Operands) -> PyTree:
            ids = splash_attention_kernel.SegmentIds(x.segments, x.segments)
            return _kernel(self, visited, residuals)(x.q, x.k, x.v, ids)

        rows, length = operands.segments.shape
        if self.sizes.forward == self.sizes.backward == length:  # nothing to skip: one schedule for all rows
            whole = np.ones((1, 1), bool)
            return jax.vmap(functools.partial(row, (whole, whole)))(operands)
        if rows > 1:  # over several schedules Pallas loops, and copies what each row reads and writes
            return jax.vmap(row)(visited, operands)
        return jax.tree.map(lambda x: x[None], row(*jax.tree.map(lambda x: x[0], (visited, operands))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: Splash, operands: Operands, forward: jax.Array, backward: fused_backward.Schedule) -> jax.Array:
    """Output [B, H, S, d], whose gradients come from one kernel."""
    return cast(jax.Array, how.over_rows((forward, backward.codes != 0), operands))


def _attend_forward(
    how: Splash, operands: Operands, forward: jax.Array, backward: fused_backward.Schedule
) -> tuple[jax.Array, tuple[fused_backward.Forward, jax.Array, fused_backward.Schedule]]:
    # Splash names them itself, but inside a derivative of its own, where a policy of checkpointing does not look.
    out_BHSd, (lse_BHS,) = jax.tree.map(
        lambda x: checkpoint_name(x, SAVED), how.over_rows((forward, backward.codes != 0), operands, residuals=True)
    )
    return out_BHSd, (fused_backward.Forward(*operands, lse_BHS), out_BHSd, backward)


def _attend_backward(
    how: Splash, saved: tuple[fused_backward.Forward, jax.Array, fused_backward.Schedule], dout_BHSd: jax.Array
) -> tuple[Operands, None, None]:
    x, out_BHSd, schedule = saved
    shape = fused_backward.Shape(how.sizes.backward, how.sizes.backward_part, how.causal, how.interpret)
    gradients = fused_backward.gradients(shape, schedule, x, out_BHSd, dout_BHSd)
    return Operands._make((*gradients, None)), None, None


_attend.defvjp(_attend_forward, _attend_backward)


class BlockSizes(NamedTuple):
    """Positions of a block, of queries and of keys, and keys that are computed at a time."""

    forward: int
    backward: int
    part: int
    fused: bool
    """Whether the gradients come from one kernel (``fused_backward``)."""

    @property
    def backward_part(self) -> int:
        """Keys that a backward kernel computes at a time."""
        return _divisor(self.backward, self.part)


def block_sizes(length: int, head_dim: int, dtype: str, kind: str) -> BlockSizes:
    """Blocks for rows of ``length``, a multiple of 128, on devices of ``kind``.

    Smaller blocks skip more, larger ones take less time for what they visit: by the rates that tokamax 0.0.17 ships
    (``tokamax/data/autotuning``, splash, heads of 128) a block of 1,024 takes 1.7 us on v5p and 3.0 us on v6e, one of
    2,048, with four times the work, 5.6 us and 6.9 us. So packed rows take least time with 1,024 on v5p and 2,048 on
    v6e, whose backward has no room for that. Keys are computed in parts of 256 on v5p and 512 on v6e, as fastest there.
    """
    small = 512 if dtype == "float32" else 1024
    large = 2048 if "v6" in kind and dtype == "bfloat16" else small
    most = (max(size, -(-length // MAX_BLOCKS)) for size in (large, small))
    forward, backward = (_divisor(length, -(-size // LANES) * LANES) for size in most)
    fused = fused_backward.has_room(length, head_dim, kind)
    return BlockSizes(forward, backward, 256 if "v5" in kind else 512, fused)


def pair_codes(segments_BS: jax.Array, block: int, causal: bool) -> jax.Array:
    """[B, blocks, blocks] int32 of query block i and key block j: 0 if no pair may be visible, 3 if all are, else 1.

    The diagonal always counts: to splash, every query has a key.
    """
    rows, length = segments_BS.shape
    order_BS = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], (rows, length))
    tiles = summarise(segments_BS, order_BS, block)
    return jnp.maximum(tile_pairs(tiles, tiles, causal), jnp.eye(length // block, dtype=jnp.int32)[None])


def _kernel(
    how: Splash, visited: tuple[Visited, Visited], residuals: bool
) -> splash_attention_kernel.SplashAttentionKernel:
    """Splash for one row, put together from its schedules; its own backward pass is two kernels."""
    sizes, causal = how.sizes, how.causal
    forward_ij, backward_ij = visited
    order = np.arange(forward_ij.shape[0] * sizes.forward, dtype=np.int32) if causal else None

    def schedule(visited_ij: Visited, data_next: jax.Array) -> splash_attention_mask_info.MaskInfo:
        block_mask = jnp.asarray(visited_ij, jnp.int32)[None]
        return splash_attention_mask_info.MaskInfo(data_next[None], None, block_mask, None, order)

    return splash_attention_kernel.SplashAttentionKernel(
        schedule(forward_ij, next_keys(forward_ij)),
        schedule(backward_ij, next_keys(backward_ij)),
        schedule(backward_ij, next_queries(backward_ij)),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=sizes.forward,
            block_kv=sizes.forward,
            block_kv_compute=_divisor(sizes.forward, sizes.part),
            block_q_dkv=sizes.backward,
            block_kv_dkv=sizes.backward,
            block_kv_dkv_compute=sizes.backward_part,
            block_q_dq=sizes.backward,
            block_kv_dq=sizes.backward,
        ),
        is_mqa=False,
        save_residuals=residuals,
        mask_value=splash_attention_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=SAVED,
        mask_function=_causal if causal else None,
        interpret=how.interpret,
    )


def _causal(query_order: jax.Array, key_order: jax.Array) -> jax.Array:
    """The mask inside a block."""
    return query_order >= key_order


def next_keys(visited_ij: Visited) -> jax.Array:
    """[i, j]: the block of keys to have in memory at step (i, j) of the grid: of the next visited step, if not of this.

    The grid runs over all j of block i of the queries, then of block i + 1. After the last visited step nothing moves.
    """
    blocks = visited_ij.shape[1]
    steps = jnp.arange(visited_ij.size, dtype=jnp.int32)
    following = jax.lax.cummin(jnp.where(visited_ij.reshape(-1), steps, visited_ij.size), reverse=True)
    return jnp.where(following < visited_ij.size, following % blocks, blocks - 1).reshape(visited_ij.shape)


def next_queries(visited_ij: Visited) -> jax.Array:
    """[i, j]: the block of queries at step i of block j of the keys: the next visited one, after the last one itself.

    The grid runs over the steps of every head before it goes on to the next block of keys.
    """
    blocks = visited_ij.shape[0]
    place = jnp.broadcast_to(jnp.arange(blocks, dtype=jnp.int32)[:, None], visited_ij.shape)
    following = jax.lax.cummin(jnp.where(visited_ij, place, blocks), axis=0, reverse=True)
    return jnp.minimum(following, jnp.where(visited_ij, place, 0).max(0, keepdims=True))


def _divisor(length: int, most: int) -> int:
    """The largest multiple of 128 that divides ``length`` (itself one) and is at most ``most``."""
    return max(size for size in range(LANES, min(most, length) + 1, LANES) if length % size == 0)


def _padded(x: jax.Array) -> jax.Array:
    """``x`` with axis 1 padded by zeros to a multiple of 128."""
    extra = -x.shape[1] % LANES
    return jnp.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) if extra else x
