"""Blocks that are visited, and how the time of a step follows from its work."""

import jax.numpy as jnp
import numpy as np
import pytest
from tests.plan.conftest import small_config

from lclm_jax.kernels.tpu.splash import pair_codes
from lclm_jax.parallel.hardware import CHIPS
from lclm_jax.plan.expected.forecast import forecast
from lclm_jax.plan.expected.rates import RATES, Curve, rates_of
from lclm_jax.plan.expected.work import lookup_seconds, visible_pairs, visited
from lclm_jax.plan.topologies import parse_topology

NODE = parse_topology("v5p:2x2x2")


@pytest.mark.parametrize("causal", [True, False])
def test_visited_blocks_are_those_of_the_kernel(causal):
    rows = ((100, 300, 24, 60), (512,), (1, 1, 510), (130,))
    ids = np.zeros((len(rows), 512), np.int32)
    for row, sizes in enumerate(rows):
        ids[row, : sum(sizes)] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    kernel = (np.asarray(pair_codes(jnp.asarray(ids), 64, causal)) != 0).sum() / len(rows)
    assert visited(rows, 512, 64, causal) == kernel


def test_visible_pairs():
    assert visible_pairs(((3, 2), (5,)), True) == ((6 + 3) + 15) / 2
    assert visible_pairs(((3, 2), (5,)), False) == ((9 + 4) + 25) / 2


def test_every_chip_has_rates_its_own_or_those_of_a_kin():
    for name, chip in CHIPS.items():
        rates = rates_of(chip)
        assert bool(rates.assumed_from) == (name not in RATES)
        assert (rates.blocks is None) == (chip.dimensions == 0)
        assert 0.3 < rates.head <= rates.products < 1
    slow, fast = rates_of(CHIPS["v5e"]), rates_of(CHIPS["v5p"])
    assert slow.blocks.pair / fast.blocks.pair == pytest.approx(459 / 197)
    assert rates_of(CHIPS["b200"]).curves["cudnn"][128].forward[0] == pytest.approx(448 * 2250 / 989.4)


def test_rates_between_lengths_follow_the_logarithm():
    curve = Curve((1024, 4096), (100, 300), (50, 70))
    assert curve.at(2048) == (200e12, 60e12)
    assert curve.at(64) == (100e12, 50e12)
    assert curve.at(10**6) == (300e12, 70e12)


def test_segments_spare_attention_alone():
    config = small_config(model__attention="auto")
    whole = forecast(config, "all", NODE)
    cut = forecast(config, "all", NODE, ((20,) * 6,) * 3)
    assert cut.kernels_s <= whole.kernels_s
    assert cut.products_s == whole.products_s
    assert cut.visible_share < 0.2 < whole.visible_share == 1
    assert cut.visible_flops < whole.visible_flops
    assert cut.segments_per_row == 6


def test_what_is_saved_spares_time():
    seconds = [
        forecast(small_config(model__remat=remat), "all", NODE).step_s
        for remat in ("full", "attention", "dots_attention")
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_products_that_are_kept_are_not_taken_again():
    kept = {"decoder": {"device": ["q", "k", "v", "o"]}}
    none, some = (
        forecast(small_config(model__remat_tensors=tensors, model__remat="attention"), "all", NODE)
        for tensors in ({}, kept)
    )
    assert some.products_s < none.products_s
    assert some.kernels_s == none.kernels_s


def test_a_part_that_is_frozen_spares_time():
    less, more = (forecast(small_config(), stage, NODE) for stage in ("adapter", "all"))
    assert less.products_s < more.products_s
    assert less.optimizer_s < more.optimizer_s
    assert less.rows_s < more.rows_s


def test_lookups_cost_the_same_on_any_number_of_chips():
    seconds = []
    for chips, topology in ((64, "v5p:4x4x4"), (512, "v5p:8x8x8")):
        config = small_config(stages__all__batch_rows=chips, mesh={"replica": 1, "fsdp": chips})
        seconds.append(forecast(config, "all", parse_topology(topology)).rows_s)
    assert seconds[0] == pytest.approx(seconds[1])


def test_the_step_is_the_sum_of_its_parts():
    found = forecast(small_config(), "all", NODE)
    parts = ("products", "kernels", "elementwise", "rows", "optimizer", "network")
    assert found.step_s == pytest.approx(sum(getattr(found, f"{part}_s") for part in parts))
    assert lookup_seconds(1000, False, RATES["v5p"]) == pytest.approx(3.9e-6)
