"""The three Pallas kernels of attention on GPUs (Triton): output, gradient of queries, gradients of keys and values.

A program owns one block of one side and goes through blocks of the other: first through those that it sees as a whole
and that need no mask, then through the rest of its bounds with one. The algorithm is FlashAttention-2's (Dao 2023,
arXiv 2307.08691). Keys and values are never repeated: a query head reads its key head, and the gradients of a key head
are summed over the group's heads in registers.

Row statistics are in base 2: the log-sum-exp that is saved is ``log2(sum(exp2(scores * log2 e)))``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy.typing as npt
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lclm_jax.kernels.masks import precision_of
from lclm_jax.types import Ref

LOW = -1e38
"""Product of a masked pair, before the scale."""
FLOOR = -1e30
"""Where the running maximum begins: far above LOW, so that a query without keys gets weights of exactly 0."""

Positions = slice | pl.Slice
"""Positions in a block."""
Index = tuple[jax.Array | int, ...]
Back = tuple[jax.Array, ...]
Outputs = list[tuple[str, npt.DTypeLike]]
"""(kind, dtype) of each output."""
Carry = TypeVar("Carry")
Softmax = tuple[jax.Array, jax.Array, jax.Array]
"""Running maximum, sum and output."""
Pair = tuple[jax.Array, jax.Array]

_LOG2E = math.log2(math.e)
_ACROSS = (((1,), (1,)), ((), ()))  # a b^T
_PLAIN = (((1,), (0,)), ((), ()))


class Tiling(NamedTuple):
    """How one kernel is cut; sizes are powers of two."""

    own: int
    """Positions of the block that a program owns."""
    other: int
    """Positions of the blocks it goes through."""
    warps: int
    stages: int
    """Blocks that are on their way from memory at a time."""


class Operands(NamedTuple):
    """What all kernels read; lengths are multiples of all blocks."""

    q: Ref
    """[B, S, H, d]"""
    k: Ref
    """[B, T, K, d]"""
    v: Ref
    q_ids: Ref
    """[B, S] int32"""
    k_ids: Ref
    """[B, T] int32"""
    offset: Ref
    """[B] int32: order of query 0 among the keys."""


class Pass(NamedTuple):
    """How one kernel runs: by blocks of queries (of one head) or by blocks of keys (of one key head)."""

    tiling: Tiling
    causal: bool
    by_queries: bool
    interpret: bool

    def call(
        self, kernel: Callable[..., None], bounds: jax.Array, x: Operands, back: Back, outputs: Outputs
    ) -> list[jax.Array]:
        """``kernel`` on every block.

        Args:
            kernel: called with an ``At`` and references to ``back`` and the outputs.
            bounds: [B, blocks, 4] int32, of ``bounds.bounds_of``.
            x: what all kernels read.
            back: (dout [B, S, H, d], log-sum-exp [B, H, S], delta [B, H, S]) or nothing.
            outputs: (kind, dtype) of each output; kinds: ``q`` [B, S, H, d], ``k`` [B, T, K, d], ``row`` [B, H, S].
        """
        rows, queries, heads, _ = x.q.shape
        group, kv_heads = heads // x.k.shape[2], x.k.shape[2]
        specs, shapes = self._specs(x), {"q": x.q.shape, "k": x.k.shape, "row": (rows, heads, queries)}
        kinds = ["q", "k", "k", "q_ids", "k_ids", "offset", *("q", "row", "row")][: len(x) + len(back)]

        def body(bounds_ref: Ref, *refs: Ref) -> None:
            block = self.block(bounds.shape[1], pl.program_id(1))
            kernel(At(self, group, block, bounds_ref, Operands(*refs[: len(x)])), *refs[len(x) :])

        return pl.pallas_call(
            body,
            grid=(group if self.by_queries else 1, bounds.shape[1], rows * kv_heads),
            in_specs=[specs[kind] for kind in ("bounds", *kinds)],
            out_specs=[specs[kind] for kind, _ in outputs],
            out_shape=[jax.ShapeDtypeStruct(shapes[kind], dtype) for kind, dtype in outputs],
            compiler_params=plgpu.CompilerParams(num_warps=self.tiling.warps, num_stages=self.tiling.stages),
            interpret=self.interpret,
            name=kernel.__name__,
        )(bounds, *x, *back)

    def block(self, blocks: int, turn: jax.Array) -> jax.Array:
        """The block of a turn: those with the longest causal way come first, so that no long one is left at the end."""
        return blocks - 1 - turn if self.causal and self.by_queries else turn

    def _specs(self, x: Operands) -> dict[str, pl.BlockSpec]:
        """Which part of each kind of array a program gets: its block of its own side, the other side's whole row."""
        own, kv_heads, width = self.tiling.own, x.k.shape[2], x.q.shape[3]
        queries, keys, group = x.q.shape[1], x.k.shape[1], x.q.shape[2] // x.k.shape[2]
        blocks = (queries if self.by_queries else keys) // own

        def at(index: Callable[..., Index]) -> Callable[..., Index]:
            def index_map(member: jax.Array, turn: jax.Array, row_head: jax.Array) -> Index:
                row, head = jax.lax.div(row_head, kv_heads), jax.lax.rem(row_head, kv_heads)
                return index(row, self.block(blocks, turn), head, head * group + member)

            return index_map

        specs = {
            "bounds": pl.BlockSpec((None, None, 4), at(lambda row, block, kv_head, head: (row, block, 0))),
            "offset": pl.BlockSpec((1,), at(lambda row, block, kv_head, head: (row,))),
        }
        ids_own = at(lambda row, block, kv_head, head: (row, block))
        ids_all = at(lambda row, block, kv_head, head: (row, 0))
        k_all = at(lambda row, block, kv_head, head: (row, 0, kv_head, 0))
        if self.by_queries:
            q_own = at(lambda row, block, kv_head, head: (row, block, head, 0))
            row_own = at(lambda row, block, kv_head, head: (row, head, block))
            return specs | {
                "q": pl.BlockSpec((None, own, None, width), q_own),
                "row": pl.BlockSpec((None, None, own), row_own),
                "q_ids": pl.BlockSpec((None, own), ids_own),
                "k": pl.BlockSpec((None, keys, None, width), k_all),
                "k_ids": pl.BlockSpec((None, keys), ids_all),
            }
        k_own = at(lambda row, block, kv_head, head: (row, block, kv_head, 0))
        return specs | {
            "q": pl.BlockSpec((None, queries, group, width), k_all),
            "row": pl.BlockSpec((None, group, queries), at(lambda row, block, kv_head, head: (row, kv_head, 0))),
            "q_ids": pl.BlockSpec((None, queries), ids_all),
            "k": pl.BlockSpec((None, own, None, width), k_own),
            "k_ids": pl.BlockSpec((None, own), ids_own),
        }


class At(NamedTuple):
    """A kernel at one block."""

    way: Pass
    group: int
    block: jax.Array
    bounds: Ref
    x: Operands

    def each_block(self, fold: Callable[[Positions, jax.Array | None, Carry], Carry], carry: Carry) -> Carry:
        """``carry = fold(others, mask, carry)`` for every block of the other side within the bounds.

        ``others`` is the block's slice; ``mask`` [own, other] bool, or None where all pairs are allowed.
        """
        first, stop, whole, end = (self.bounds[n] for n in range(4))
        size = self.way.tiling.other

        def without_a_mask(j: jax.Array, carry: Carry) -> Carry:
            return fold(pl.ds(j * size, size), None, carry)

        def with_a_mask(n: jax.Array, carry: Carry) -> Carry:
            j = first + n
            j = jnp.where(j < whole, j, j + end - whole)
            return fold(pl.ds(j * size, size), self._mask(j), carry)

        carry = jax.lax.fori_loop(whole, end, without_a_mask, carry)
        return jax.lax.fori_loop(0, stop - first - (end - whole), with_a_mask, carry)

    def _mask(self, j: jax.Array) -> jax.Array:
        own, other = self.way.tiling[:2]
        own_order = self.block * own + jnp.arange(own, dtype=jnp.int32)[:, None]
        other_order = j * other + jnp.arange(other, dtype=jnp.int32)[None, :]
        others = pl.ds(j * other, other)
        if self.way.by_queries:
            q_ids, k_ids = self.x.q_ids[...][:, None], self.x.k_ids[others][None, :]
            q_order, k_order = own_order, other_order
        else:
            q_ids, k_ids = self.x.q_ids[others][None, :], self.x.k_ids[...][:, None]
            q_order, k_order = other_order, own_order
        mask = (q_ids == k_ids) & (k_ids != 0)
        return mask & (k_order <= q_order + self.x.offset[0]) if self.way.causal else mask


def attention_forward(at: At, out: Ref, lse: Ref) -> None:
    """Kernel: out [S, d] and the log-sum-exp [S] of a block of queries of one head, by an online softmax."""
    q_Sd = at.x.q[...]
    rows, width = q_Sd.shape
    scale = width**-0.5 * _LOG2E

    def fold(keys: Positions, mask_ST: jax.Array | None, carry: Softmax) -> Softmax:
        highest_S, total_S, out_Sd = carry
        scores_ST = _scores(q_Sd, at.x.k[keys, :], mask_ST)
        new_S = jnp.maximum(highest_S, scores_ST.max(1) * scale)
        weights_ST, shrink_S = jnp.exp2(scores_ST * scale - new_S[:, None]), jnp.exp2(highest_S - new_S)
        v_Td = at.x.v[keys, :]
        out_Sd = out_Sd * shrink_S[:, None] + _dot(weights_ST.astype(v_Td.dtype), v_Td, _PLAIN)
        return new_S, total_S * shrink_S + weights_ST.sum(1), out_Sd

    start = (jnp.full(rows, FLOOR, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros((rows, width), jnp.float32))
    highest_S, total_S, out_Sd = at.each_block(fold, start)
    total_S = jnp.where(total_S > 0, total_S, 1.0)  # a query without keys: 0 / 1
    out[...] = (out_Sd / total_S[:, None]).astype(out.dtype)
    lse[...] = highest_S + jnp.log2(total_S)


def attention_dq(at: At, dout: Ref, lse: Ref, delta: Ref, dq: Ref) -> None:
    """Kernel: gradient of a block of queries of one head."""
    q_Sd, dout_Sd = at.x.q[...], dout[...]
    lse_S1, delta_S1 = lse[...][:, None], delta[...][:, None]
    width = q_Sd.shape[1]

    def fold(keys: Positions, mask_ST: jax.Array | None, dq_Sd: jax.Array) -> jax.Array:
        k_Td = at.x.k[keys, :]
        weights_ST = jnp.exp2(_scores(q_Sd, k_Td, mask_ST) * (width**-0.5 * _LOG2E) - lse_S1)
        back_ST = weights_ST * (_dot(dout_Sd, at.x.v[keys, :], _ACROSS) - delta_S1)
        return dq_Sd + _dot(back_ST.astype(k_Td.dtype), k_Td, _PLAIN)

    dq_Sd = at.each_block(fold, jnp.zeros(q_Sd.shape, jnp.float32))
    dq[...] = (dq_Sd * width**-0.5).astype(dq.dtype)


def attention_dkv(at: At, dout: Ref, lse: Ref, delta: Ref, dk: Ref, dv: Ref) -> None:
    """Kernel: gradients of a block of keys and values of one key head, summed over its query heads.

    Score tiles are laid out keys x queries, so that both gradients are products without a transpose.
    """
    k_Td, v_Td = at.x.k[...], at.x.v[...]
    width = k_Td.shape[1]

    def of_head(g: jax.Array, grads: Pair) -> Pair:
        def fold(queries: Positions, mask_TS: jax.Array | None, grads: Pair) -> Pair:
            dk_Td, dv_Td = grads
            q_Sd, dout_Sd = at.x.q[queries, g, :], dout[queries, g, :]
            scores_TS = _scores(k_Td, q_Sd, mask_TS) * (width**-0.5 * _LOG2E)
            weights_TS = jnp.exp2(scores_TS - lse[g, queries][None, :])
            dv_Td += _dot(weights_TS.astype(dout_Sd.dtype), dout_Sd, _PLAIN)
            back_TS = weights_TS * (_dot(v_Td, dout_Sd, _ACROSS) - delta[g, queries][None, :])
            return dk_Td + _dot(back_TS.astype(q_Sd.dtype), q_Sd, _PLAIN), dv_Td

        return at.each_block(fold, grads)

    zeros_Td = jnp.zeros(k_Td.shape, jnp.float32)
    dk_Td, dv_Td = jax.lax.fori_loop(0, at.group, of_head, (zeros_Td, zeros_Td))
    dk[...] = (dk_Td * width**-0.5).astype(dk.dtype)
    dv[...] = dv_Td.astype(dv.dtype)


def _scores(own: jax.Array, other: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Products [own, other] before the scale; LOW where masked."""
    scores = _dot(own, other, _ACROSS)
    return scores if mask is None else jnp.where(mask, scores, LOW)


def _dot(a: jax.Array, b: jax.Array, dimensions: jax.lax.DotDimensionNumbers) -> jax.Array:
    """Product accumulated in float32."""
    return jax.lax.dot_general(a, b, dimensions, precision=precision_of(a.dtype), preferred_element_type=jnp.float32)
