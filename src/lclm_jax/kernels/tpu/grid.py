"""The grid of the attention kernels for TPUs over blocks and tiles: what is read where, which pairs are computed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lclm_jax.kernels.block_mask import Steps, code_bit
from lclm_jax.types import Ref

Positions = slice | pl.Slice
"""Positions in a block."""
Index = tuple[jax.Array | int, ...]
Back = tuple[jax.Array, ...]
Outputs = list[tuple[str, npt.DTypeLike]]
"""(kind, dtype) of each output."""
Fold = Callable[[Positions, Positions, jax.Array | None], None]
"""Of a tile's query rows, its keys, and their mask."""


class Tiling(NamedTuple):
    """How positions are cut. A block has at most four tiles, so that a step has at most 16 pairs of them."""

    group: int
    """Query heads per key head."""
    q_tile: int
    """Positions of a tile of queries."""
    q_tiles: int
    """Tiles in a block of queries."""
    k_tile: int
    k_tiles: int

    @property
    def rows(self) -> int:
        """Query rows of a tile: its positions times the heads of the group."""
        return self.group * self.q_tile

    @property
    def q_block(self) -> int:
        """Positions of a block of queries."""
        return self.q_tile * self.q_tiles

    @property
    def q_rows(self) -> int:
        """Query rows of a block."""
        return self.rows * self.q_tiles

    @property
    def k_block(self) -> int:
        """Keys of a block."""
        return self.k_tile * self.k_tiles


class Operands(NamedTuple):
    """What all kernels read."""

    q: Ref
    """[B, K, r, d]: r are the query rows of one key head, in the order (tile, G, position in the tile)."""
    k: Ref
    """[B, K, T, d]"""
    v: Ref
    q_ids: Ref
    """[B, 1, r] int32: segment of each query row."""
    q_order: Ref
    """[B, 1, r] int32: its place among the keys; looked at if causal."""
    k_ids: Ref
    """[B, 1, T] int32."""


class StepGrid(NamedTuple):
    """The grid of a kernel: a list of steps (``block_mask.Steps``), by blocks of queries or by blocks of keys."""

    tiling: Tiling
    causal: bool
    by_queries: bool
    q_blocks: int
    k_blocks: int
    interpret: bool

    def call(
        self,
        kernel: Callable[..., None],
        steps: Steps,
        x: Operands,
        back: Back,
        outputs: Outputs,
        scratch: list[pl.MemoryRef],
    ) -> list[jax.Array]:
        """``kernel`` at every step, for every key head; the number of steps is known at run time: a dynamic grid.

        Args:
            kernel: called with an ``At`` and references to the blocks of ``back``, of the outputs, and ``scratch``.
            steps: which pairs of blocks to bring in.
            x: what all kernels read.
            back: (dout [B, K, r, d], log-sum-exp [B, K, 1, r], delta [B, K, 1, r]) or nothing.
            outputs: (kind, dtype) of each output; kinds: ``q`` [B, K, r, d], ``k`` [B, K, T, d], ``row`` [B, K, 1, r].
            scratch: what stays in VMEM from step to step.
        """
        shapes = {"q": x.q.shape, "k": x.k.shape, "row": (*x.q.shape[:2], 1, x.q.shape[2])}
        specs, kinds = self._specs(x.q.shape[3]), ["q", "k", "k", "q_ids", "q_ids", "k_ids", *("q", "row", "row")]

        def body(outer: jax.Array, inner: jax.Array, edges: jax.Array, codes: jax.Array, *refs: Ref) -> None:
            step = pl.program_id(1)
            now = (outer[step], inner[step], edges[step], codes[step])
            kernel(At(self, Operands(*refs[:6]), refs[-1], *now), *refs[6:-1])

        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=4,
                grid=(x.q.shape[1], steps.total),
                in_specs=[specs[kind] for kind in kinds[: len(x) + len(back)]],
                out_specs=[specs[kind] for kind, _ in outputs],
                scratch_shapes=[*scratch, pltpu.VMEM((self.tiling.k_block, 1), jnp.int32)],
            ),
            out_shape=[jax.ShapeDtypeStruct(shapes[kind], dtype) for kind, dtype in outputs],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=self.interpret,
            name=kernel.__name__,
        )(*steps[:4], *x, *back)

    def place(self, outer: jax.Array, inner: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(row, block of queries, block of keys) of a step."""
        blocks = self.q_blocks if self.by_queries else self.k_blocks
        row, kept = jax.lax.div(outer, blocks), jax.lax.rem(outer, blocks)
        return (row, kept, inner) if self.by_queries else (row, inner, kept)

    def _specs(self, width: int) -> dict[str, pl.BlockSpec]:
        """Blocks of each kind of array, and where a step finds them."""
        t = self.tiling

        def at(index: Callable[..., Index]) -> Callable[..., Index]:
            def index_map(
                head: jax.Array, step: jax.Array, outer: jax.Array, inner: jax.Array, edges: jax.Array, codes: jax.Array
            ) -> Index:
                return index(head, *self.place(outer[step], inner[step]))

            return index_map

        return {
            "q": pl.BlockSpec((None, None, t.q_rows, width), at(lambda head, row, q, k: (row, head, q, 0))),
            "k": pl.BlockSpec((None, None, t.k_block, width), at(lambda head, row, q, k: (row, head, k, 0))),
            "row": pl.BlockSpec((None, None, 1, t.q_rows), at(lambda head, row, q, k: (row, head, 0, q))),
            "q_ids": pl.BlockSpec((None, 1, t.q_rows), at(lambda head, row, q, k: (row, 0, q))),
            "k_ids": pl.BlockSpec((None, 1, t.k_block), at(lambda head, row, q, k: (row, 0, k))),
        }


class At(NamedTuple):
    """A kernel at one step: references to the blocks, and what to compute of them."""

    grid: StepGrid
    x: Operands
    ids_T1: Ref
    """Scratch for the keys' segment ids, turned from a row into a column."""
    outer: jax.Array
    inner: jax.Array
    edges: jax.Array
    code: jax.Array

    @property
    def first(self) -> jax.Array:
        """Whether the outer block begins here."""
        return self.edges & 1 != 0

    @property
    def last(self) -> jax.Array:
        """Whether the outer block ends here."""
        return self.edges >= 2

    def each_pair(self, fold: Fold) -> None:
        """``fold(rows, keys, mask_Tr)`` for every pair of tiles that the code names, as slices of the blocks.

        ``mask_Tr`` is None where all queries of the tile see all its keys. A step of such pairs alone is unrolled.
        """
        t = self.grid.tiling
        everything = np.array(2 ** (2 * t.q_tiles * t.k_tiles) - 1, np.uint32).astype(np.int32)

        @pl.when(self.code == everything)
        def without_a_mask() -> None:
            for i, j in np.ndindex(t.q_tiles, t.k_tiles):
                fold(pl.ds(i * t.rows, t.rows), pl.ds(j * t.k_tile, t.k_tile), None)

        @pl.when((self.code != everything) & (self.code != 0))
        def with_masks() -> None:
            self.ids_T1[...] = _column(self.x.k_ids[...])
            for i in range(t.q_tiles):
                jax.lax.fori_loop(0, t.k_tiles, functools.partial(self._masked_pair, fold, i), None)

    def _masked_pair(self, fold: Fold, i: int, j: jax.Array, _: None) -> None:
        t = self.grid.tiling
        by_queries = self.grid.by_queries
        bit = code_bit(i, j, t.k_tiles) if by_queries else code_bit(j, i, t.q_tiles)

        pair = jax.lax.shift_right_logical(self.code, bit) & 3
        rows, keys = pl.ds(i * t.rows, t.rows), pl.ds(pl.multiple_of(j * t.k_tile, t.k_tile), t.k_tile)

        @pl.when(pair == 1)
        def some() -> None:
            fold(rows, keys, self._mask(rows, keys))

        @pl.when(pair == 3)
        def whole() -> None:
            fold(rows, keys, None)

    def _mask(self, rows: Positions, keys: Positions) -> jax.Array:
        """[tile's keys, tile's query rows] bool."""
        ids_1r = self.x.q_ids[:, rows]
        mask_Tr = (self.ids_T1[keys, :] == ids_1r) & (ids_1r != 0)
        if not self.grid.causal:
            return mask_Tr
        _, _, k_block = self.grid.place(self.outer, self.inner)
        order_Tr = jax.lax.broadcasted_iota(jnp.int32, mask_Tr.shape, 0)
        begin = k_block * self.grid.tiling.k_block + keys.start
        return mask_Tr & (order_Tr <= self.x.q_order[:, rows] - begin)


def _column(ids_1T: jax.Array) -> jax.Array:
    """[T, 1] of [1, T]; the compiler turns squares of full registers, not single rows."""
    return jnp.broadcast_to(ids_1T, (128, ids_1T.shape[1])).T[:, :1]
