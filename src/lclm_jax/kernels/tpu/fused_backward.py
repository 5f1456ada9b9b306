"""The backward pass of splash as one kernel: dq, dk and dv from one computation of the scores, five products.

Kernels of their own for dq and for dk and dv compute the scores and their gradient twice, seven products; splash's own
fused kernel writes one partial dq for each block of keys to memory, gigabytes at our lengths. Here dk and dv of a whole
row of one key head are summed in VMEM, 8 bytes an element: TPUs from v5 on have room for 32,768 positions. The
algorithm is FlashAttention-2's (Dao 2023, arXiv 2307.08691).

Score tiles are laid out keys x queries, as in ``kernels/tpu/flash.py``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lclm_jax.kernels.masks import precision_of
from lclm_jax.types import Ref

Number = int | jax.Array

LANES = 128
VMEM_BYTES = 60 * 2**20
"""What the kernel may take of a core's VMEM: v5e and v6e have 128 MiB, v5p and tpu7x 64."""
SCALAR_BYTES = 2**18
"""What schedules may take of the scalar memory of 1 MiB; 8 bytes a pair of blocks of each row."""
BLOCKS_BYTES = 16 * 2**20
"""Room for the blocks of a step, twice where they move, and for tiles of scores."""

LOW = -1e30
"""Score of a masked pair."""

_DOWN = (((0,), (0,)), ((), ()))  # a^T b: sums over sublanes
_ACROSS = (((1,), (1,)), ((), ()))  # a b^T: sums over lanes
_PLAIN = (((1,), (0,)), ((), ()))


class Forward(NamedTuple):
    """What the forward pass was given and found."""

    q: jax.Array
    """[B, H, S, d], scaled."""
    k: jax.Array
    """[B, K, S, d]"""
    v: jax.Array
    segments: jax.Array
    """[B, S] int32."""
    lse: jax.Array
    """[B, H, S] float32: log-sum-exp of each query's scores."""


class Schedule(NamedTuple):
    """Steps of the kernel, int32 [B, blocks, blocks]: block of queries i, block of keys j."""

    codes: jax.Array
    """``block_mask.tile_pairs``: 0 is skipped, 1 masked, 3 needs no mask."""
    following: jax.Array
    """The block of keys that the next step of a code other than 0 reads, from this one on."""


class Shape(NamedTuple):
    """What the kernel is compiled for, beside the arrays' shapes. Hashable."""

    block: int
    """Queries and keys of a block."""
    part: int
    """Keys that are computed at a time; divides ``block``."""
    causal: bool
    interpret: bool


def has_room(length: int, head_dim: int, kind: str) -> bool:
    """Whether a core of a TPU of ``kind`` (``v5p`` or as the device says) can sum dk and dv of ``length`` in VMEM."""
    small = any(name in kind.lower() for name in ("v2", "v3", "v4"))  # 16 MiB
    sums = 2 * 4 * length * (head_dim + -head_dim % LANES)
    return not small and sums + BLOCKS_BYTES <= VMEM_BYTES


def gradients(
    shape: Shape, schedule: Schedule, x: Forward, out: jax.Array, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) in the shapes and dtypes of (q, k, v).

    Args:
        shape: blocks and mask.
        schedule: which blocks hold pairs that see each other; more change nothing but time.
        x: what the forward pass was given and found.
        out: its result, [B, H, S, d].
        dout: gradient of ``out``, same shape; zero for padding, which may have weights of any size below one.
    """
    rows, heads, length, width = x.q.shape
    kv_heads, blocks, block = x.k.shape[1], length // shape.block, shape.block
    delta_BHS = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1)
    inputs, outputs = _specs(block, width, heads // kv_heads, blocks)
    like = (x.q, x.k, x.v)
    sums = pltpu.VMEM((length, width), jnp.float32)
    dq, dk, dv = pl.pallas_call(
        functools.partial(splash_attention_dq_dkv, shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(rows, kv_heads, heads // kv_heads, blocks, blocks),
            in_specs=inputs,
            out_specs=outputs,
            scratch_shapes=[pltpu.VMEM((width, block), jnp.float32), sums, sums, pltpu.VMEM((block, 1), jnp.int32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in like],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        interpret=shape.interpret,
        name="splash_attention_dq_dkv",
    )(
        *(numbers.reshape(-1) for numbers in schedule),
        *like,
        dout,
        x.lse[:, :, None],
        delta_BHS[:, :, None],
        x.segments[:, None],
        x.segments[:, None],
    )
    return dq, dk, dv


def _specs(block: int, width: int, group: int, blocks: int) -> tuple[list[pl.BlockSpec], list[pl.BlockSpec]]:
    """Blocks of (q, k, v, dout, lse, delta, ids of queries, ids of keys) and of (dq, dk, dv), and where they lie."""

    def at(b: Number, i: Number, j: Number) -> Number:
        """Where the schedule speaks of a step."""
        return (b * blocks + i) * blocks + j

    def done(g: Number, i: Number, j: Number) -> Number:
        """Block of the sums that leaves: each in the last pass over the keys, before which the first one waits."""
        return jnp.where((g == group - 1) & (i == blocks - 1), j, 0)

    q = pl.BlockSpec((None, None, block, width), lambda b, h, g, i, j, *_: (b, h * group + g, i, 0))
    row = pl.BlockSpec((None, None, 1, block), lambda b, h, g, i, j, *_: (b, h * group + g, 0, i))
    k = pl.BlockSpec((None, None, block, width), lambda b, h, g, i, j, _, near: (b, h, near[at(b, i, j)], 0))
    q_ids = pl.BlockSpec((None, 1, block), lambda b, h, g, i, j, *_: (b, 0, i))
    k_ids = pl.BlockSpec((None, 1, block), lambda b, h, g, i, j, _, near: (b, 0, near[at(b, i, j)]))
    sums = pl.BlockSpec((None, None, block, width), lambda b, h, g, i, j, *_: (b, h, done(g, i, j), 0))
    return [q, k, k, q, row, row, q_ids, k_ids], [q, sums, sums]


def splash_attention_dq_dkv(shape: Shape, codes: Ref, following: Ref, *refs: Ref) -> None:
    """Kernel: one step, a block of queries of one head with a block of keys."""
    del following  # index maps read it
    q, k, v, dout, lse, delta, q_ids, k_ids, dq, dk, dv, dq_dq, dk_Td, dv_Td, ids_T1 = refs
    b, g, i, j = (pl.program_id(axis) for axis in (0, 2, 3, 4))
    blocks = pl.num_programs(4)
    code = codes[(b * pl.num_programs(3) + i) * blocks + j]
    begin = pl.multiple_of(j * shape.block, shape.block)

    @pl.when(j == 0)
    def _() -> None:
        dq_dq[...] = jnp.zeros_like(dq_dq)

    @pl.when((g == 0) & (i == 0))
    def _() -> None:
        for sums in (dk_Td, dv_Td):
            sums[pl.ds(begin, shape.block), :] = jnp.zeros((shape.block, sums.shape[1]), jnp.float32)

    def fold(part: int, mask_Tq: jax.Array | None) -> None:
        keys = pl.ds(part * shape.part, shape.part)
        place = pl.ds(pl.multiple_of(begin + part * shape.part, shape.part), shape.part)
        scores_Tq = _dot(k[keys, :], q[...], _ACROSS)
        if mask_Tq is not None:
            scores_Tq = jnp.where(mask_Tq, scores_Tq, LOW)
        weights_Tq = jnp.exp(scores_Tq - lse[...])
        dv_Td[place, :] += _dot(weights_Tq.astype(dout.dtype), dout[...], _PLAIN)
        back_Tq = weights_Tq * (_dot(v[keys, :], dout[...], _ACROSS) - delta[...])
        back_Tq = back_Tq.astype(q.dtype)
        dk_Td[place, :] += _dot(back_Tq, q[...], _PLAIN)
        dq_dq[...] += _dot(k[keys, :], back_Tq, _DOWN)

    parts = range(shape.block // shape.part)

    @pl.when(code == 3)
    def without_a_mask() -> None:
        for part in parts:
            fold(part, None)

    @pl.when(code == 1)
    def with_masks() -> None:
        ids_T1[...] = jnp.broadcast_to(k_ids[...], (LANES, shape.block)).T[:, :1]
        for part in parts:
            mask_Tq = ids_T1[pl.ds(part * shape.part, shape.part), :] == q_ids[...]
            if shape.causal:
                order_Tq = jax.lax.broadcasted_iota(jnp.int32, mask_Tq.shape, 0)
                query_Tq = jax.lax.broadcasted_iota(jnp.int32, mask_Tq.shape, 1)
                mask_Tq &= order_Tq - query_Tq <= (i - j) * shape.block - part * shape.part
            fold(part, mask_Tq)

    @pl.when(j == blocks - 1)
    def _() -> None:
        dq[...] = dq_dq[...].T.astype(dq.dtype)

    @pl.when((g == pl.num_programs(2) - 1) & (i == pl.num_programs(3) - 1))
    def _() -> None:
        dk[...] = dk_Td[pl.ds(begin, shape.block), :].astype(dk.dtype)
        dv[...] = dv_Td[pl.ds(begin, shape.block), :].astype(dv.dtype)


def _dot(a: jax.Array, b: jax.Array, dimensions: jax.lax.DotDimensionNumbers) -> jax.Array:
    """Product accumulated in float32."""
    return jax.lax.dot_general(a, b, dimensions, precision=precision_of(a.dtype), preferred_element_type=jnp.float32)
