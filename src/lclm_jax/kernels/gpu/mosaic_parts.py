"""What the attention kernels in Mosaic GPU are made of: warpgroups, blocks to walk over, tiles, products, masks.

A program owns one block of one side. Two warpgroups, the teams, compute, each for 64 of its positions; a third, the
loader, has blocks of the other side copied into shared memory ahead of them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from lclm_jax.kernels.gpu.flash import Positions
from lclm_jax.types import PyTree, Ref

ROWS = 64
"""Positions of a team: what a ``wgmma`` takes."""
TEAMS = 2
LOG2E = math.log2(math.e)

SCORES = plgpu.Layout.WGMMA
"""How the sums of a ``wgmma`` lie in registers."""
BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)
"""How a number per row or column of such sums lies."""

Carry = TypeVar("Carry")

read: Callable[..., jax.Array] = plgpu.load
"""``read(ref, layout=...)``: numbers from shared memory, as products need them."""


class Tiling(NamedTuple):
    """How one kernel is cut."""

    own: int
    """Positions of the block that a program owns: 64 for each team."""
    other: int
    """Positions of the blocks it goes through, a multiple of 64."""
    stages: int
    """Blocks in shared memory at a time."""


class Pass(NamedTuple):
    """How one kernel runs: by blocks of queries (of one head) or by blocks of keys (of one key head)."""

    tiling: Tiling
    causal: bool
    by_queries: bool
    interpret: PyTree
    """Options of Mosaic's interpreter; None: on a GPU."""

    def call(
        self,
        body: Callable[..., None],
        blocks: tuple[int, int, int],
        outputs: Sequence[jax.ShapeDtypeStruct],
        memory: PyTree,
        arrays: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """``body(way, bounds, *arrays, *outputs, memory)`` in a grid.

        Args:
            body: of every team and the loader; its name is the kernel's.
            blocks: heads, blocks, rows.
            outputs: shapes and dtypes.
            memory: shared memory and barriers.
            arrays: in device memory.
        """

        def run(*references: Ref) -> None:
            body(self, *references)

        run.__name__ = body.__name__
        return plgpu.kernel(
            run,
            out_type=list(outputs),
            scratch_types=[memory],
            grid=blocks,
            grid_names=("head", "turn", "row"),
            num_threads=TEAMS + 1,
            thread_name="team",
            compiler_params=plgpu.CompilerParams(approx_math=True),
            **({} if self.interpret is None else {"interpret": self.interpret}),
        )(*arrays)


class At(NamedTuple):
    """Where a warpgroup is."""

    row: jax.Array
    head: jax.Array
    """Query head, or key head where the program owns keys."""
    team: jax.Array
    """The loader's is ``TEAMS``."""
    start: jax.Array
    """First position of the block."""
    walk: "Walk"

    @classmethod
    def here(cls, way: Pass, bounds: Ref) -> "At":
        """By the grid; ``bounds`` [B, blocks, 4] of ``attention.bounds_of``."""
        row, head, turn, team = (jax.lax.axis_index(name) for name in ("row", "head", "turn", "team"))
        # Blocks with the longest causal way come first, so that no long one is left at the end.
        block = bounds.shape[1] - 1 - turn if way.causal and way.by_queries else turn
        first, stop, whole, end = (bounds[row, block, n] for n in range(4))
        return cls(row, head, team, block * way.tiling.own, Walk(first, whole, end - whole, stop - first))

    @property
    def first(self) -> jax.Array:
        """First position of the team."""
        return self.start + self.team * ROWS

    @property
    def mine(self) -> Positions:
        """Positions of the team."""
        return pl.ds(self.first, ROWS)


class Walk(NamedTuple):
    """The blocks that a program goes through: first those without a mask, then the rest."""

    first: jax.Array
    whole: jax.Array
    unmasked: jax.Array
    """Blocks without a mask, from ``whole`` on."""
    total: jax.Array

    def block(self, n: jax.Array) -> jax.Array:
        """The ``n``-th."""
        rest = self.first + n - self.unmasked
        rest = jnp.where(rest < self.whole, rest, rest + self.unmasked)
        return jnp.where(n < self.unmasked, self.whole + n, rest)

    def each(self, fold: Callable[[jax.Array, jax.Array, bool, Carry], Carry], carry: Carry, times: int = 1) -> Carry:
        """``carry = fold(n, block, masked, carry)`` for every step ``n``, of which a block takes ``times``."""

        def step(masked: bool, n: jax.Array, carry: Carry) -> Carry:
            return fold(n, self.block(jax.lax.div(n, jnp.int32(times))), masked, carry)

        carry = jax.lax.fori_loop(0, self.unmasked * times, functools.partial(step, False), carry)
        return jax.lax.fori_loop(self.unmasked * times, self.total * times, functools.partial(step, True), carry)

    def load(
        self, stages: int, copy: Callable[[jax.Array, jax.Array, jax.Array], None], free: Sequence[Ref], times: int = 1
    ) -> None:
        """``copy(n, block, slot)`` for every step; it waits itself until its slot is free, from step ``stages`` on.

        At the end the barriers ``free`` of the last slots are waited for: Mosaic's rule is that who waits on a barrier
        sees all that it completes.
        """
        steps = self.total * times

        @pl.loop(0, steps)
        def _(n: jax.Array) -> None:
            copy(n, self.block(jax.lax.div(n, jnp.int32(times))), jax.lax.rem(n, jnp.int32(stages)))

        @pl.loop(jnp.maximum(steps - stages, 0), steps)
        def _(n: jax.Array) -> None:
            for barrier in free:
                plgpu.barrier_wait(barrier.at[jax.lax.rem(n, jnp.int32(stages))])


def wait_from(stages: int, n: jax.Array, barrier: Ref) -> None:
    """Wait, but not in the first ``stages`` steps."""

    @pl.when(n >= stages)
    def _() -> None:
        plgpu.barrier_wait(barrier)


def tiles(count: int, length: int, width: int, dtype: DTypeLike) -> PyTree:
    """Tiles in shared memory as ``wgmma`` reads them."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, length, width), dtype, transforms=transforms)


def numbers(count: int, length: int, dtype: DTypeLike = jnp.float32) -> PyTree:
    """A number per position, in shared memory."""
    return plgpu.SMEM((count, length), dtype)


def full(shape: tuple[int, ...], value: float, layout: PyTree) -> jax.Array:
    """Registers of one value."""
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def turned(tile: Ref) -> Ref:
    """Transposed, as ``wgmma`` reads it."""
    return tile.transpose((1, 0))


def along(x: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A number per row (``axis`` 0) or column (1), repeated."""
    return jax.lax.broadcast_in_dim(x, shape, [axis])


def product(shape: tuple[int, int], a: Ref, b: Ref, meanwhile: Callable[[], None] | None = None) -> jax.Array:
    """``a @ b`` in float32; ``meanwhile`` runs while the tensor cores are busy."""

    def compute(sums: Ref) -> jax.Array:
        plgpu.wgmma(sums, a, b)
        if meanwhile is not None:
            meanwhile()
        return sums[...]

    return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))


def add_product(way: Pass, sums: jax.Array, a: jax.Array, b: Ref) -> jax.Array:
    """``sums + a @ b``; ``a`` and ``sums`` stay in registers."""
    if way.interpret is not None:  # the interpreter knows neither operands nor first values in registers
        values = b[...]
        plgpu.commit_smem()
        return sums + jnp.dot(a, values, preferred_element_type=jnp.float32)
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(sums))


def mask_of(way: Pass, own_ids: jax.Array, other_ids: jax.Array, lead: jax.Array) -> jax.Array:
    """[own, other] bool: who may see whom.

    Args:
        way: whether causal, and which side are the queries.
        own_ids: of the team's positions.
        other_ids: of the block's.
        lead: order among the keys of the first own position less that of the first other one.
    """
    shape = (own_ids.shape[0], other_ids.shape[0])
    other = along(other_ids, shape, 1)
    mask = (along(own_ids, shape, 0) == other) & (other != 0)
    if not way.causal:
        return mask
    own_order = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=SCORES) + lead
    other_order = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=SCORES)
    return mask & (other_order <= own_order if way.by_queries else own_order <= other_order)
