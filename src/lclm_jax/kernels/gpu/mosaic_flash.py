"""The three kernels of attention in Mosaic GPU, for Hopper: output, gradient of queries, gradients of keys and values.

Copies into shared memory are the TMA's, products ``wgmma`` with their sums in registers. In the forward kernel the two
teams take turns: while one has the tensor cores, the other computes its softmax (FlashAttention-3, Shah et al. 2024,
arXiv 2407.08608; jax's own ``attention_mgpu`` is built alike, without segments). Blocks that the segments leave out are
never loaded. Row statistics are in base 2, as in ``flash``, and keys and values are never repeated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lclm_jax.kernels.gpu.flash import FLOOR, LOW, Back, Operands, Positions, Softmax
from lclm_jax.kernels.gpu.mosaic_parts import (
    BY_COLUMN,
    BY_ROW,
    LOG2E,
    ROWS,
    SCORES,
    TEAMS,
    At,
    Pass,
    add_product,
    along,
    full,
    mask_of,
    numbers,
    product,
    read,
    tiles,
    turned,
    wait_from,
)
from lclm_jax.types import Ref

COMPUTE_REGISTERS, LOAD_REGISTERS = 240, 24
"""Of a thread; a processor has 65,536, of which these take 128 x (2 x 240 + 24)."""


class ForwardMemory(NamedTuple):
    """Shared memory and barriers of the forward kernel. Tiles of queries become those of the output."""

    q: Ref
    q_ids: Ref
    lse: Ref
    k: Ref
    v: Ref
    k_ids: Ref
    q_ready: Ref
    k_ready: Ref
    v_ready: Ref
    k_free: Ref
    v_free: Ref
    turn: Ref

    def take_turns(self) -> None:
        """Let the other team have the tensor cores, and wait until it lets go of them."""
        plgpu.barrier_arrive(self.turn)
        plgpu.barrier_wait(self.turn)


def forward(way: Pass, bounds: jax.Array, x: Operands) -> list[jax.Array]:
    """Out [B, S, H, d] and the log-sum-exp [B, H, S]; ``bounds`` [B, blocks, 4] of ``attention.bounds_of``."""
    rows, queries, heads, width = x.q.shape
    own, other, stages = way.tiling
    memory = ForwardMemory(
        q=tiles(TEAMS, ROWS, width, x.q.dtype),
        q_ids=numbers(TEAMS, ROWS, jnp.int32),
        lse=numbers(TEAMS, ROWS),
        k=tiles(stages, other, width, x.q.dtype),
        v=tiles(stages, other, width, x.q.dtype),
        k_ids=numbers(stages, other, jnp.int32),
        q_ready=plgpu.Barrier(num_arrivals=2, num_barriers=TEAMS),
        k_ready=plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        v_ready=plgpu.Barrier(num_barriers=stages),
        k_free=plgpu.Barrier(num_arrivals=TEAMS, num_barriers=stages),
        v_free=plgpu.Barrier(num_arrivals=TEAMS, num_barriers=stages),
        turn=plgpu.Barrier(num_arrivals=TEAMS),
    )
    outputs = [jax.ShapeDtypeStruct(x.q.shape, x.q.dtype), jax.ShapeDtypeStruct((rows, heads, queries), jnp.float32)]
    return way.call(attention_forward, (heads, queries // own, rows), outputs, memory, (bounds, *x))


def attention_forward(way: Pass, bounds: Ref, *refs: Ref) -> None:
    """Kernel: output and log-sum-exp of a block of queries of one head, by an online softmax."""
    x, (out, lse, memory) = Operands(*refs[:6]), refs[6:]
    team = jax.lax.axis_index("team")

    @pl.when(team < TEAMS)
    def compute() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        at = At.here(way, bounds)
        plgpu.copy_gmem_to_smem(x.q.at[at.row, at.mine, at.head], memory.q.at[at.team], memory.q_ready.at[at.team])
        plgpu.copy_gmem_to_smem(x.q_ids.at[at.row, at.mine], memory.q_ids.at[at.team], memory.q_ready.at[at.team])
        plgpu.barrier_wait(memory.q_ready.at[at.team])
        out_Sd, highest_S, total_S = _softmax(way, at, memory, x.offset[at.row])
        total_S = jnp.where(total_S > 0.0, total_S, 1.0)  # a query without keys: 0 / 1
        memory.q.at[at.team][...] = (out_Sd / along(total_S, out_Sd.shape, 0)).astype(out.dtype)
        memory.lse.at[at.team][...] = highest_S + jnp.log(total_S) * LOG2E
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(memory.q.at[at.team], out.at[at.row, at.mine, at.head])
        plgpu.copy_smem_to_gmem(memory.lse.at[at.team], lse.at[at.row, at.head, at.mine])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(team == TEAMS)
    def load() -> None:
        plgpu.set_max_registers(LOAD_REGISTERS, action="decrease")
        at = At.here(way, bounds)
        (_, other, stages), kv_head = way.tiling, jax.lax.div(at.head, jnp.int32(x.q.shape[2] // x.k.shape[2]))

        def copy(n: jax.Array, block: jax.Array, slot: jax.Array) -> None:
            there = pl.ds(block * other, other)
            wait_from(stages, n, memory.k_free.at[slot])
            plgpu.copy_gmem_to_smem(x.k.at[at.row, there, kv_head], memory.k.at[slot], memory.k_ready.at[slot])
            plgpu.copy_gmem_to_smem(x.k_ids.at[at.row, there], memory.k_ids.at[slot], memory.k_ready.at[slot])
            wait_from(stages, n, memory.v_free.at[slot])
            plgpu.copy_gmem_to_smem(x.v.at[at.row, there, kv_head], memory.v.at[slot], memory.v_ready.at[slot])

        at.walk.load(stages, copy, (memory.k_free, memory.v_free))


def _softmax(way: Pass, at: At, memory: ForwardMemory, offset: jax.Array) -> Softmax:
    """Output, before it is divided, and running maximum and sum of a team's queries."""
    (_, other, stages), width = way.tiling, memory.q.shape[2]
    scale, ids_S = width**-0.5 * LOG2E, read(memory.q_ids.at[at.team], layout=BY_ROW)

    def fold(n: jax.Array, block: jax.Array, masked: bool, carry: Softmax) -> Softmax:
        out_Sd, highest_S, total_S = carry
        slot = jax.lax.rem(n, jnp.int32(stages))
        plgpu.barrier_wait(memory.k_ready.at[slot])
        keys = turned(memory.k.at[slot])
        scores_ST = product((ROWS, other), memory.q.at[at.team], keys, memory.take_turns)
        if masked:
            k_ids_T = read(memory.k_ids.at[slot], layout=BY_COLUMN)
            mask_ST = mask_of(way, ids_S, k_ids_T, at.first + offset - block * other)
            scores_ST = jnp.where(mask_ST, scores_ST, LOW)
            plgpu.commit_smem()  # the ids are read before the next ones come
        plgpu.barrier_arrive(memory.k_free.at[slot])
        new_S = jnp.maximum(highest_S, scores_ST.max(axis=1) * scale)
        shrink_S = jnp.exp2(highest_S - new_S)
        weights_ST = jnp.exp2(scores_ST * scale - along(new_S, scores_ST.shape, 0))
        total_S = total_S * shrink_S + weights_ST.sum(axis=1)
        out_Sd = out_Sd * along(shrink_S, out_Sd.shape, 0)
        ready = (out_Sd, total_S, new_S, weights_ST.astype(jnp.bfloat16))
        out_Sd, total_S, new_S, weights_ST = jax.lax.optimization_barrier(ready)
        plgpu.barrier_arrive(memory.turn)
        plgpu.barrier_wait(memory.v_ready.at[slot])
        plgpu.barrier_wait(memory.turn)
        out_Sd = add_product(way, out_Sd, weights_ST, memory.v.at[slot])
        plgpu.barrier_arrive(memory.v_free.at[slot])
        return out_Sd, new_S, total_S

    pl.when(at.team == 1)(memory.take_turns)
    start = (full((ROWS, width), 0.0, SCORES), full((ROWS,), FLOOR, BY_ROW), full((ROWS,), 0.0, BY_ROW))
    result = at.walk.each(fold, start)
    pl.when(at.team == 0)(memory.take_turns)
    return result


class BackwardMemory(NamedTuple):
    """Shared memory and barriers of a backward kernel. Queries, dO and what stands beside them belong together."""

    q: Ref
    dout: Ref
    lse: Ref
    delta: Ref
    q_ids: Ref
    k: Ref
    v: Ref
    k_ids: Ref
    own_ready: Ref
    ready: Ref
    delta_ready: Ref
    """Of blocks of queries: waited for where delta is needed, so that it takes no registers before."""
    free: Ref


def _backward_memory(way: Pass, x: Operands) -> BackwardMemory:
    """The own side has a tile for each team, the other one for each stage."""
    width, (_, other, stages) = x.q.shape[3], way.tiling
    queries, keys = (TEAMS, ROWS), (stages, other)
    if not way.by_queries:
        queries, keys = keys, queries
    own, others = (4, 3) if way.by_queries else (3, 4)  # copies
    return BackwardMemory(
        q=tiles(*queries, width, x.q.dtype),
        dout=tiles(*queries, width, x.q.dtype),
        lse=numbers(*queries),
        delta=numbers(*queries),
        q_ids=numbers(*queries, jnp.int32),
        k=tiles(*keys, width, x.q.dtype),
        v=tiles(*keys, width, x.q.dtype),
        k_ids=numbers(*keys, jnp.int32),
        own_ready=plgpu.Barrier(num_arrivals=own, num_barriers=TEAMS),
        ready=plgpu.Barrier(num_arrivals=others, num_barriers=stages),
        delta_ready=plgpu.Barrier(num_barriers=TEAMS if way.by_queries else stages),
        free=plgpu.Barrier(num_arrivals=TEAMS, num_barriers=stages),
    )


Place = tuple[jax.Array, jax.Array, Positions]
"""Row, head, positions."""


def _copy_queries(x: Operands, back: tuple[Ref, ...], place: Place, to: "Slot") -> None:
    """Queries and what stands beside them."""
    (row, head, there), (dout, lse, delta), memory = place, back, to.memory
    plgpu.copy_gmem_to_smem(x.q.at[row, there, head], memory.q.at[to.number], to.ready)
    plgpu.copy_gmem_to_smem(x.q_ids.at[row, there], memory.q_ids.at[to.number], to.ready)
    plgpu.copy_gmem_to_smem(lse.at[row, head, there], memory.lse.at[to.number], to.ready)
    plgpu.copy_gmem_to_smem(dout.at[row, there, head], memory.dout.at[to.number], to.ready)
    plgpu.copy_gmem_to_smem(delta.at[row, head, there], memory.delta.at[to.number], memory.delta_ready.at[to.number])


def _copy_keys(x: Operands, place: Place, to: "Slot") -> None:
    """Keys and values."""
    (row, head, there), memory = place, to.memory
    plgpu.copy_gmem_to_smem(x.k.at[row, there, head], memory.k.at[to.number], to.ready)
    plgpu.copy_gmem_to_smem(x.v.at[row, there, head], memory.v.at[to.number], to.ready)
    plgpu.copy_gmem_to_smem(x.k_ids.at[row, there], memory.k_ids.at[to.number], to.ready)


class Slot(NamedTuple):
    """Where tiles go."""

    memory: BackwardMemory
    number: jax.Array
    ready: Ref
    """Barrier."""


def gradient_of_queries(way: Pass, bounds: jax.Array, x: Operands, back: Back) -> list[jax.Array]:
    """Dq [B, S, H, d]; ``back``: dO [B, S, H, d], log-sum-exp and delta [B, H, S]."""
    rows, queries, heads, _ = x.q.shape
    outputs = [jax.ShapeDtypeStruct(x.q.shape, x.q.dtype)]
    grid = (heads, queries // way.tiling.own, rows)
    return way.call(attention_dq, grid, outputs, _backward_memory(way, x), (bounds, *x, *back))


def attention_dq(way: Pass, bounds: Ref, *refs: Ref) -> None:
    """Kernel: gradient of a block of queries of one head."""
    x, back, (dq, memory) = Operands(*refs[:6]), refs[6:9], refs[9:]
    team, (_, other, stages), width = jax.lax.axis_index("team"), way.tiling, x.q.shape[3]

    @pl.when(team < TEAMS)
    def compute() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        at = At.here(way, bounds)
        own = Slot(memory, at.team, memory.own_ready.at[at.team])
        _copy_queries(x, back, (at.row, at.head, at.mine), own)
        plgpu.barrier_wait(own.ready)
        plgpu.barrier_wait(memory.delta_ready.at[at.team])
        ids_S, lse_S, delta_S = (
            read(numbers.at[at.team], layout=BY_ROW) for numbers in (memory.q_ids, memory.lse, memory.delta)
        )
        lead = at.first + x.offset[at.row]

        def fold(n: jax.Array, block: jax.Array, masked: bool, dq_Sd: jax.Array) -> jax.Array:
            slot, shape = jax.lax.rem(n, jnp.int32(stages)), (ROWS, other)
            plgpu.barrier_wait(memory.ready.at[slot])
            scores_ST = product(shape, memory.q.at[at.team], turned(memory.k.at[slot]))
            if masked:
                k_ids_T = read(memory.k_ids.at[slot], layout=BY_COLUMN)
                scores_ST = jnp.where(mask_of(way, ids_S, k_ids_T, lead - block * other), scores_ST, LOW)
                plgpu.commit_smem()
            weights_ST = jnp.exp2(scores_ST * (width**-0.5 * LOG2E) - along(lse_S, shape, 0))
            back_ST = product(shape, memory.dout.at[at.team], turned(memory.v.at[slot]))
            back_ST = weights_ST * (back_ST - along(delta_S, shape, 0))
            dq_Sd = add_product(way, dq_Sd, back_ST.astype(dq.dtype), memory.k.at[slot])
            plgpu.barrier_arrive(memory.free.at[slot])
            return dq_Sd

        dq_Sd = at.walk.each(fold, full((ROWS, width), 0.0, SCORES))
        memory.q.at[at.team][...] = (dq_Sd * width**-0.5).astype(dq.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(memory.q.at[at.team], dq.at[at.row, at.mine, at.head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(team == TEAMS)
    def load() -> None:
        plgpu.set_max_registers(LOAD_REGISTERS, action="decrease")
        at = At.here(way, bounds)
        kv_head = jax.lax.div(at.head, jnp.int32(x.q.shape[2] // x.k.shape[2]))

        def copy(n: jax.Array, block: jax.Array, slot: jax.Array) -> None:
            wait_from(stages, n, memory.free.at[slot])
            there = pl.ds(block * other, other)
            _copy_keys(x, (at.row, kv_head, there), Slot(memory, slot, memory.ready.at[slot]))

        at.walk.load(stages, copy, (memory.free,))


def gradients_of_keys(way: Pass, bounds: jax.Array, x: Operands, back: Back) -> list[jax.Array]:
    """Dk and dv [B, T, K, d]; ``back`` as for ``gradient_of_queries``."""
    rows, keys, kv_heads, _ = x.k.shape
    outputs = [jax.ShapeDtypeStruct(x.k.shape, x.k.dtype)] * 2
    grid = (kv_heads, keys // way.tiling.own, rows)
    return way.call(attention_dkv, grid, outputs, _backward_memory(way, x), (bounds, *x, *back))


def attention_dkv(way: Pass, bounds: Ref, *refs: Ref) -> None:
    """Kernel: gradients of a block of keys and values of one key head, summed over its query heads in registers.

    Score tiles are laid out keys x queries, so that both gradients are products without a transpose in registers.
    """
    x, back, (dk, dv, memory) = Operands(*refs[:6]), refs[6:9], refs[9:]
    team, (_, other, stages), width = jax.lax.axis_index("team"), way.tiling, x.q.shape[3]
    group = x.q.shape[2] // x.k.shape[2]

    @pl.when(team < TEAMS)
    def compute() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        at = At.here(way, bounds)
        own = Slot(memory, at.team, memory.own_ready.at[at.team])
        _copy_keys(x, (at.row, at.head, at.mine), own)
        plgpu.barrier_wait(own.ready)
        dk_Td, dv_Td = _fold_queries(way, at, memory, x.offset[at.row], group)
        memory.k.at[at.team][...] = (dk_Td * width**-0.5).astype(dk.dtype)
        memory.v.at[at.team][...] = dv_Td.astype(dv.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(memory.k.at[at.team], dk.at[at.row, at.mine, at.head])
        plgpu.copy_smem_to_gmem(memory.v.at[at.team], dv.at[at.row, at.mine, at.head])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(team == TEAMS)
    def load() -> None:
        plgpu.set_max_registers(LOAD_REGISTERS, action="decrease")
        at = At.here(way, bounds)

        def copy(n: jax.Array, block: jax.Array, slot: jax.Array) -> None:
            head = at.head * group + jax.lax.rem(n, jnp.int32(group))
            wait_from(stages, n, memory.free.at[slot])
            there = pl.ds(block * other, other)
            _copy_queries(x, back, (at.row, head, there), Slot(memory, slot, memory.ready.at[slot]))

        at.walk.load(stages, copy, (memory.free,), times=group)


def _fold_queries(
    way: Pass, at: At, memory: BackwardMemory, offset: jax.Array, group: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients of a team's keys and values, in float32, before the scale."""
    (_, other, stages), width = way.tiling, memory.k.shape[2]
    ids_T, shape = read(memory.k_ids.at[at.team], layout=BY_ROW), (ROWS, other)

    def fold(
        n: jax.Array, block: jax.Array, masked: bool, sums: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (dk_Td, dv_Td), slot = sums, jax.lax.rem(n, jnp.int32(stages))
        plgpu.barrier_wait(memory.ready.at[slot])
        scores_TS = product(shape, memory.k.at[at.team], turned(memory.q.at[slot]))
        if masked:
            q_ids_S = read(memory.q_ids.at[slot], layout=BY_COLUMN)
            mask_TS = mask_of(way, ids_T, q_ids_S, at.first - block * other - offset)
            scores_TS = jnp.where(mask_TS, scores_TS, LOW)
        lse_S = read(memory.lse.at[slot], layout=BY_COLUMN)
        weights_TS = jnp.exp2(scores_TS * (width**-0.5 * LOG2E) - along(lse_S, shape, 1))
        dv_Td = add_product(way, dv_Td, weights_TS.astype(jnp.bfloat16), memory.dout.at[slot])
        back_TS = product(shape, memory.v.at[at.team], turned(memory.dout.at[slot]))
        plgpu.barrier_wait(memory.delta_ready.at[slot])
        back_TS = weights_TS * (back_TS - along(read(memory.delta.at[slot], layout=BY_COLUMN), shape, 1))
        plgpu.commit_smem()  # the numbers are read before the next ones come
        dk_Td = add_product(way, dk_Td, back_TS.astype(jnp.bfloat16), memory.q.at[slot])
        plgpu.barrier_arrive(memory.free.at[slot])
        return dk_Td, dv_Td

    zeros = full((ROWS, width), 0.0, SCORES)
    return at.walk.each(fold, (zeros, zeros), times=group)
