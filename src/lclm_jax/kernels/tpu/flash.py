"""The three Pallas kernels of attention on TPUs: output, gradient of the queries, gradients of keys and values.

Each goes through a list of steps: one step brings a block of queries and a block of keys into VMEM and computes the
pairs of tiles in them that hold anything. Blocks outside the list are never moved. The algorithm is FlashAttention-2's
(Dao 2023, arXiv 2307.08691).

Score tiles are laid out keys x queries: keys along sublanes, queries along lanes. So what each query has one of
(maximum, sum, log-sum-exp, segment id) is a compact row, reductions run down the sublanes, and the G query heads of one
key head lie side by side in the lanes: the products that sum over queries sum over the group as well.

Letters beside the house's: r query rows of one key head (see ``grid.Operands``).
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lclm_jax.kernels.block_mask import Steps
from lclm_jax.kernels.masks import precision_of
from lclm_jax.kernels.tpu.grid import At, Back, Operands, Positions, StepGrid
from lclm_jax.types import Ref

LOW = -1e30
"""Score of a masked pair."""
FLOOR = -0.5e30
"""Where the running maximum begins: far above LOW, so that a query without keys gets weights of exactly 0."""

_LOG2E = math.log2(math.e)
_DOWN = (((0,), (0,)), ((), ()))  # a^T b: sums over sublanes
_ACROSS = (((1,), (1,)), ((), ()))  # a b^T: sums over lanes
_PLAIN = (((1,), (0,)), ((), ()))


def forward(grid: StepGrid, steps: Steps, x: Operands) -> tuple[jax.Array, jax.Array]:
    """(out [B, K, r, d] in the queries' dtype, log-sum-exp [B, K, 1, r] float32); the grid goes by queries."""
    rows, width = grid.tiling.q_rows, x.q.shape[3]
    scratch = [pltpu.VMEM(shape, jnp.float32) for shape in [(1, rows), (1, rows), (width, rows)]]
    out, lse = grid.call(attention_forward, steps, x, (), [("q", x.q.dtype), ("row", jnp.float32)], scratch)
    return out, lse


def query_gradient(grid: StepGrid, steps: Steps, x: Operands, back: Back) -> jax.Array:
    """Dq [B, K, r, d]; ``back``: dout [B, K, r, d], log-sum-exp and delta [B, K, 1, r]; the grid goes by queries."""
    scratch = [pltpu.VMEM((x.q.shape[3], grid.tiling.q_rows), jnp.float32)]
    return grid.call(attention_dq, steps, x, back, [("q", x.q.dtype)], scratch)[0]


def key_gradients(grid: StepGrid, steps: Steps, x: Operands, back: Back) -> tuple[jax.Array, jax.Array]:
    """(dk, dv), both [B, K, T, d]; ``back`` as in ``query_gradient``; the grid goes by keys."""
    scratch = [pltpu.VMEM((grid.tiling.k_block, x.k.shape[3]), jnp.float32)] * 2
    dk, dv = grid.call(attention_dkv, steps, x, back, [("k", x.k.dtype), ("k", x.v.dtype)], scratch)
    return dk, dv


def attention_forward(at: At, out: Ref, lse: Ref, highest_1r: Ref, total_1r: Ref, out_dr: Ref) -> None:
    """Kernel: online softmax in base 2."""
    q, k, v = at.x[:3]

    @pl.when(at.first)
    def _() -> None:
        highest_1r[...] = jnp.full_like(highest_1r, FLOOR)
        total_1r[...] = jnp.zeros_like(total_1r)
        out_dr[...] = jnp.zeros_like(out_dr)

    def fold(rows: Positions, keys: Positions, mask_Tr: jax.Array | None) -> None:
        scores_Tr = _scores(q, k, rows, keys, mask_Tr)
        old_1r = highest_1r[:, rows]
        new_1r = jnp.maximum(old_1r, scores_Tr.max(0, keepdims=True))
        weights_Tr, shrink_1r = jnp.exp2(scores_Tr - new_1r), jnp.exp2(old_1r - new_1r)
        highest_1r[:, rows] = new_1r
        total_1r[:, rows] = total_1r[:, rows] * shrink_1r + weights_Tr.sum(0, keepdims=True)
        out_dr[:, rows] = out_dr[:, rows] * shrink_1r + _dot(v[keys, :], weights_Tr.astype(v.dtype), _DOWN)

    at.each_pair(fold)

    @pl.when(at.last)
    def _() -> None:
        sum_1r = jnp.where(total_1r[...] > 0, total_1r[...], 1.0)  # a query without keys: 0 / 1
        out[...] = (out_dr[...] / sum_1r).T.astype(out.dtype)
        lse[...] = highest_1r[...] / _LOG2E + jnp.log(sum_1r)


def attention_dq(at: At, dout: Ref, lse: Ref, delta: Ref, dq: Ref, dq_dr: Ref) -> None:
    """Kernel: gradient of the queries."""

    @pl.when(at.first)
    def _() -> None:
        dq_dr[...] = jnp.zeros_like(dq_dr)

    def fold(rows: Positions, keys: Positions, mask_Tr: jax.Array | None) -> None:
        _, back_Tr = _backward(at.x, (dout, lse, delta), rows, keys, mask_Tr)
        dq_dr[:, rows] += _dot(at.x.k[keys, :], back_Tr.astype(at.x.k.dtype), _DOWN)

    at.each_pair(fold)

    @pl.when(at.last)
    def _() -> None:
        dq[...] = (dq_dr[...] * at.x.q.shape[1] ** -0.5).T.astype(dq.dtype)


def attention_dkv(at: At, dout: Ref, lse: Ref, delta: Ref, *results: Ref) -> None:
    """Kernel: gradients of keys and values, summed over the group's heads; ``results``: outputs and accumulators."""
    dk, dv, dk_Td, dv_Td = results

    @pl.when(at.first)
    def _() -> None:
        dk_Td[...] = jnp.zeros_like(dk_Td)
        dv_Td[...] = jnp.zeros_like(dv_Td)

    def fold(rows: Positions, keys: Positions, mask_Tr: jax.Array | None) -> None:
        weights_Tr, back_Tr = _backward(at.x, (dout, lse, delta), rows, keys, mask_Tr)
        dv_Td[keys, :] += _dot(weights_Tr.astype(dout.dtype), dout[rows, :], _PLAIN)
        dk_Td[keys, :] += _dot(back_Tr.astype(at.x.q.dtype), at.x.q[rows, :], _PLAIN)

    at.each_pair(fold)

    @pl.when(at.last)
    def _() -> None:
        dk[...] = (dk_Td[...] * at.x.q.shape[1] ** -0.5).astype(dk.dtype)
        dv[...] = dv_Td[...].astype(dv.dtype)


def _backward(
    x: Operands, back: Back, rows: Positions, keys: Positions, mask_Tr: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """(weights, gradient of the scores without the scale) of a pair of tiles, float32 [T, r]."""
    dout, lse, delta = back
    weights_Tr = jnp.exp2(_scores(x.q, x.k, rows, keys, mask_Tr) - lse[:, rows] * _LOG2E)
    dweights_Tr = _dot(x.v[keys, :], dout[rows, :], _ACROSS)
    return weights_Tr, weights_Tr * (dweights_Tr - delta[:, rows])


def _scores(q: Ref, k: Ref, rows: Positions, keys: Positions, mask_Tr: jax.Array | None) -> jax.Array:
    """Scores [T, r] of a pair of tiles in base 2; LOW where masked."""
    scores_Tr = _dot(k[keys, :], q[rows, :], _ACROSS) * (q.shape[1] ** -0.5 * _LOG2E)
    return scores_Tr if mask_Tr is None else jnp.where(mask_Tr, scores_Tr, LOW)


def _dot(a: jax.Array, b: jax.Array, dimensions: jax.lax.DotDimensionNumbers) -> jax.Array:
    """Product accumulated in float32."""
    return jax.lax.dot_general(a, b, dimensions, precision=precision_of(a.dtype), preferred_element_type=jnp.float32)
