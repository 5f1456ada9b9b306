"""The blocks that splash visits: those between segments are skipped, and the right ones are in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.backends import anything, arrays, runs

from lclm_jax.bench.simulated.corpus import simulated_rows
from lclm_jax.config import load_config
from lclm_jax.kernels.masks import allowed_BST
from lclm_jax.kernels.reference_attention import reference_attention
from lclm_jax.kernels.tpu import splash
from lclm_jax.kernels.tpu.splash import (
    MAX_BLOCKS,
    BlockSizes,
    block_sizes,
    next_keys,
    next_queries,
    pair_codes,
)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(segments=runs(32) | anything(32), causal=st.booleans())
def test_no_visible_pair_is_skipped(segments, causal):
    visited = np.asarray(pair_codes(jnp.asarray(segments), 4, causal)) != 0
    mask = np.asarray(allowed_BST(segments, segments, causal, None)).reshape(2, 8, 4, 8, 4)
    assert visited[mask.any((2, 4))].all()
    assert visited[:, np.arange(8), np.arange(8)].all()
    assert not (causal and np.triu(visited[0], 1).any())


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(visited=st.lists(st.booleans(), min_size=36, max_size=36))
def test_what_is_in_memory_is_what_the_next_visited_step_needs(visited):
    visited = np.array(visited).reshape(6, 6) | np.eye(6, dtype=bool)
    keys, queries = np.asarray(next_keys(visited)), np.asarray(next_queries(visited))
    steps = [(i, j) for i in range(6) for j in range(6)]
    for number, (i, j) in enumerate(steps):
        following = [b for a, b in steps[number:] if visited[a, b]]
        assert keys[i, j] == (following[0] if following else 5)
        column = np.flatnonzero(visited[:, j])
        assert queries[i, j] == min((a for a in column if a >= i), default=column.max())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rows", "causal"), [(1, True), (2, True), (2, False)])
def test_skipping_changes_nothing(monkeypatch, rows, causal, fused):
    monkeypatch.setattr(splash, "block_sizes", lambda *_: BlockSizes(128, 256, 128, fused))
    q, k, v, weights = arrays(0, (rows, 512, 4, 2, 64))
    segments = np.stack([np.repeat([3, 1, 7, 0], sizes) for sizes in ((100, 160, 140, 112), (260, 120, 132, 0))])
    segments = jnp.asarray(segments[:rows], jnp.int32)

    def results(run):
        def loss(q, k, v):
            out = run(q, k, v, (segments, segments), causal)
            return (out * weights).sum(), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

    found, wanted = results(functools.partial(splash.run, interpret=True)), results(reference_attention)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-5)


@pytest.mark.parametrize("kind", ["TPU v5", "TPU v6 lite"])
@pytest.mark.parametrize("length", [128, 16_384, 131_072, 524_288, 128 * 1031])
def test_scalar_memory_holds_the_schedule_of_any_row(kind, length):
    for size in block_sizes(length, 128, "bfloat16", kind)[:2]:
        assert length % size == 0
        assert length // size <= MAX_BLOCKS or size == 128


@pytest.mark.parametrize(
    ("length", "kind", "fused"),
    [(16_384, "v5p", True), (32_768, "TPU v6 lite", True), (131_072, "TPU v5", False), (1024, "TPU v4", False)],
)
def test_gradients_come_from_one_kernel_where_their_sums_have_room(length, kind, fused):
    assert block_sizes(length, 128, "bfloat16", kind).fused == fused


@pytest.fixture(scope="module")
def packed_rows():
    """Segments of 500 rows of the published layout, int32, from simulated documents."""
    config = load_config("configs/experiments/0.6b-4b-cs16-mean-w1024-causal-mlp-O0.yaml")
    rows = np.zeros((500, 16_384), np.int32)
    for row, sizes in zip(rows, simulated_rows(config, "stage2", 500), strict=True):
        row[: sum(sizes)] = np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)
    return rows


def test_packed_rows_take_at_most_1_4_times_the_visible_work(packed_rows):
    sizes = np.stack([np.bincount(row, minlength=200)[1:] for row in packed_rows]).astype(np.float64)
    visible = (sizes * (sizes + 1) / 2).sum()
    visited = (np.asarray(pair_codes(jnp.asarray(packed_rows), 512, True)) != 0).sum(dtype=np.float64) * 512**2
    assert visited <= 1.4 * visible
    static = len(packed_rows) * 16_384**2 / 2
    assert 0.2 < visible / static < 0.4, "rows of several segments"
