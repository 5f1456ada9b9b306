"""Lists of blocks: nothing that counts is missed, and on packed rows little else is visited."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.backends import anything, runs

from lclm_jax.kernels.block_mask import code_bit, schedule, summarise, tile_pairs
from lclm_jax.kernels.gpu.attention import bounds_of, layout_of
from lclm_jax.kernels.gpu.flash import Pass, Tiling
from lclm_jax.kernels.masks import allowed_BST
from lclm_jax.kernels.tpu.attention import Layout, marks_of, steps_of, tiling_of

TILE = 4


def visited(steps):
    """Pairs of tiles that a kernel following ``steps`` computes."""
    live = jnp.arange(steps.codes.shape[0]) < steps.total
    return jnp.where(live, jax.lax.population_count(steps.codes & np.int32(0x55555555)), 0).sum()


def pairs_of(segments, causal, offset=0):
    order = np.broadcast_to(np.arange(segments.shape[1], dtype=np.int32), segments.shape)
    queries, keys = summarise(segments, order + offset, TILE), summarise(segments, order, TILE)
    return np.asarray(tile_pairs(queries, keys, causal))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(segments=runs(24) | anything(24), causal=st.booleans(), offset=st.integers(0, 9))
def test_no_pair_is_missed(segments, causal, offset):
    mask = np.asarray(allowed_BST(segments, segments, causal, np.full(2, offset, np.int32)))
    tiles = mask.reshape(2, 6, TILE, 6, TILE)
    pairs = pairs_of(segments, causal, offset)
    assert (pairs > 0)[tiles.any((2, 4))].all()
    np.testing.assert_array_equal(pairs == 3, tiles.all((2, 4)) & (pairs > 0))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(segments=runs(24), causal=st.booleans())
def test_steps_hold_the_pairs_once_each_and_stop_at_every_outer_block(segments, causal):
    pairs = pairs_of(segments, causal)
    steps = schedule(pairs, outer_tiles=2, inner_tiles=3)
    found, total = np.zeros_like(pairs), int(steps.total)
    outer, inner, edges, codes = (np.asarray(x)[:total] for x in steps[:4])
    for o, i, code in zip(outer, inner, codes, strict=True):
        for x, y in np.ndindex(2, 3):
            found[o // 3, o % 3 * 2 + x, i * 3 + y] += (int(code) >> code_bit(x, y, 3)) & 3
    np.testing.assert_array_equal(found, pairs)
    assert (np.diff(outer) >= 0).all() and set(outer) == set(range(6))
    np.testing.assert_array_equal(edges & 1, np.diff(outer, prepend=-1) > 0)
    np.testing.assert_array_equal(edges >> 1, np.diff(outer, append=6) > 0)
    assert int(visited(steps)) == (pairs > 0).sum()


def packed_row(rng, shuffled, moved):
    """16 segments of 16,384 positions, boundaries off the tiles by up to ``moved``, ids in order or not."""
    ends = np.arange(1, 17) * 1024 + np.append(rng.integers(-moved, moved + 1, 15), 0)
    ids = rng.permutation(16) + 1 if shuffled else np.arange(1, 17)
    return np.repeat(ids, np.diff(ends, prepend=0)).astype(np.int32)[None]


@pytest.mark.parametrize("by_queries", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
@pytest.mark.parametrize("moved", [0, 100, 255])
def test_a_packed_row_takes_at_most_15_percent_of_the_causal_work(rng, moved, shuffled, by_queries):
    tiling = tiling_of(16384, 16384, group=4, dtype="bfloat16")
    assert tiling.q_block == tiling.k_block == 1024
    layout = Layout(tiling, True, True, interpret=False)
    whole = visited(steps_of(layout, marks_of(layout, (np.ones((1, 16384), np.int32),) * 2, None), by_queries))
    assert int(whole) == 64 * 65 // 2
    row = packed_row(rng, shuffled, moved)
    packed = visited(steps_of(layout, marks_of(layout, (row, row), None), by_queries))
    assert int(packed) <= 0.15 * int(whole)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(segments=runs(24) | anything(24), causal=st.booleans(), by_queries=st.booleans(), offset=st.integers(0, 9))
def test_bounds_hold_all_that_counts_and_whole_runs_need_no_mask(segments, causal, by_queries, offset):
    offset_B = np.full(2, offset, np.int32)
    way = Pass(Tiling(8, 4, 1, 1), causal, by_queries, interpret=True)
    mask = np.asarray(allowed_BST(segments, segments, causal, offset_B))
    mask = mask if by_queries else mask.swapaxes(1, 2)
    blocks = mask.reshape(2, 3, 8, 6, 4)
    for b, i in np.ndindex(2, 3):
        first, stop, whole, end = np.asarray(bounds_of(way, (segments, segments, offset_B)))[b, i]
        assert 0 <= first <= whole <= end <= stop <= 6
        assert not blocks[b, i, :, :first].any() and not blocks[b, i, :, stop:].any()
        assert blocks[b, i, :, whole:end].all()


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkv"])
@pytest.mark.parametrize("moved", [0, 255])
def test_on_gpus_a_packed_row_takes_at_most_15_percent_too(rng, moved, kernel):
    way = Pass(getattr(layout_of(128, "bfloat16", causal=True), kernel), True, kernel != "dkv", interpret=False)

    def blocks(row):
        first, stop, whole, end = np.moveaxis(np.asarray(bounds_of(way, (row, row, np.zeros(1, np.int32)))), -1, 0)
        return (stop - first).sum(), (end - whole).sum()

    count, unmasked = blocks(np.ones((1, 16384), np.int32))
    assert count <= 1.02 * 16384**2 / 2 / (way.tiling.own * way.tiling.other)
    assert unmasked >= 0.98 * count, "only the diagonal needs a mask"
    assert blocks(packed_row(rng, True, moved))[0] <= 0.15 * count
