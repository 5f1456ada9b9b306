"""Which pairs of blocks of queries and keys an attention kernel has to visit, from the segment ids alone.

Positions are grouped in *tiles*, tiles in *blocks*. A kernel moves blocks and computes pairs of tiles, and these
functions say which: a pair that no query and key of one segment (in causal order) can fall into is left out, one that
is allowed as a whole needs no mask. What is said of a tile is a summary of its ids, so a pair may be visited in vain
(ids out of order, more than 32 of them), but never missed, whatever the ids are.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Number = int | jax.Array

_TOP = np.iinfo(np.int32).max


class Tiles(NamedTuple):
    """Summary of the tiles of one side; every array [B, tiles], int32. Padding (id 0) is in none of the first three."""

    low: jax.Array
    high: jax.Array
    bits: jax.Array
    """Bit ``id % 32`` of every id in the tile."""
    only: jax.Array
    """The id, if the tile has just one and no padding, else 0."""
    first: jax.Array
    last: jax.Array
    """Orders (positions among the keys) of the tile's first and last element."""


class Steps(NamedTuple):
    """Pairs of blocks in the order of the visit: all inner blocks of outer block 0, then of 1, and so on.

    The first four are [capacity] int32, of which ``total`` count.
    """

    outer: jax.Array
    """``row * blocks + block`` of the side that stays (queries for the output, keys for their gradients)."""
    inner: jax.Array
    """Block of the other side, within the row."""
    edges: jax.Array
    """1 if the step is the outer block's first, plus 2 if it is its last. Every outer block has a step."""
    codes: jax.Array
    """Two bits for each pair of tiles (``code_bit``): 1 = visit, 2 = without a mask."""
    total: jax.Array
    """Number of steps, int32 scalar."""


def summarise(segments_BS: jax.Array, order_BS: jax.Array, tile: int) -> Tiles:
    """Summary by tiles of ``tile`` positions; ``order_BS``: each position's place among the keys, ascending."""
    ids = segments_BS.reshape(segments_BS.shape[0], -1, tile)
    low, high = jnp.where(ids == 0, _TOP, ids).min(-1), jnp.where(ids == 0, -_TOP, ids).max(-1)
    bits = jnp.where(ids == 0, 0, jnp.left_shift(1, ids % 32))
    bits = jax.lax.reduce(bits, np.int32(0), jax.lax.bitwise_or, (2,))
    only = jnp.where(ids.min(-1) == ids.max(-1), ids[..., 0], 0)
    return Tiles(low, high, bits, only, order_BS[:, ::tile], order_BS[:, tile - 1 :: tile])


def tile_pairs(queries: Tiles, keys: Tiles, causal: bool) -> jax.Array:
    """[B, query tiles, key tiles] int32: 0 = no query sees a key, 1 = some may, 3 = all see all."""
    q, k = Tiles(*(x[:, :, None] for x in queries)), Tiles(*(x[:, None, :] for x in keys))
    some = (q.low <= k.high) & (k.low <= q.high) & ((q.bits & k.bits) != 0)
    every = (q.only == k.only) & (q.only != 0)
    if causal:
        some &= k.first <= q.last
        every &= k.last <= q.first
    return jnp.where(every, 3, some.astype(jnp.int32))


def schedule(pairs: jax.Array, outer_tiles: int, inner_tiles: int, capacity: int | None = None) -> Steps:
    """Steps over blocks of ``outer_tiles`` by ``inner_tiles`` tiles, at most 16 pairs a step.

    Args:
        pairs: [B, outer tiles, inner tiles], of ``tile_pairs`` (transposed, if the keys are to be the outer side).
        outer_tiles: tiles in an outer block.
        inner_tiles: tiles in an inner block.
        capacity: steps that can occur at most; None: all pairs of blocks of all rows.
    """
    rows, outer, inner = pairs.shape[0], pairs.shape[1] // outer_tiles, pairs.shape[2] // inner_tiles
    blocks = pairs.reshape(rows, outer, outer_tiles, inner, inner_tiles)
    shifts = np.array([[code_bit(i, j, inner_tiles) for j in range(inner_tiles)] for i in range(outer_tiles)])
    codes = jnp.left_shift(blocks, shifts.astype(np.int32)[None, None, :, None, :]).sum((2, 4))
    codes = codes.reshape(rows * outer, inner)
    place = jnp.arange(inner, dtype=jnp.int32)[None, :]
    # The inner blocks of an outer block are a range: exactly so where segments are contiguous, else with idle steps.
    first = jnp.where(codes != 0, place, inner - 1).min(1, keepdims=True)
    last = jnp.maximum(jnp.where(codes != 0, place, 0).max(1, keepdims=True), first)
    count = last - first + 1
    steps = jnp.where((first <= place) & (place <= last), jnp.cumsum(count, axis=0) - count + place - first, -1)
    numbers = jnp.arange(rows * outer * inner if capacity is None else capacity, dtype=jnp.int32)
    taken = numbers[:, None] == steps.reshape(1, -1)

    def listed(values: jax.Array) -> jax.Array:
        """By number of the step; a sum over a comparison, because TPUs gather single numbers slowly."""
        values = jnp.broadcast_to(values, codes.shape).astype(jnp.int32).reshape(1, -1)
        return jnp.where(taken, values, 0).sum(1)

    edges = (place == first) + 2 * (place == last)
    outers = jnp.arange(rows * outer)[:, None]
    return Steps(listed(outers), listed(place), listed(edges), listed(codes), count.sum())


def code_bit(outer_tile: Number, inner_tile: Number, inner_tiles: int) -> Number:
    """Place of a pair of tiles in a step's code."""
    return 2 * (outer_tile * inner_tiles + inner_tile)
