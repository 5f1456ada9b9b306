import numpy as np
import pytest

from lclm_jax.errors import LclmError
from lclm_jax.eval.statistics import mean_by_position, ratio


def test_standard_error_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(0).normal(size=50)
    estimate = ratio(values, np.ones(50), np.arange(50))
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    assert (estimate.count, estimate.clusters) == (50, 50)


def test_clusters_of_equal_copies_add_no_information():
    values = np.random.default_rng(1).normal(size=20)
    once = ratio(values, np.ones(20), np.arange(20))
    copied = ratio(np.repeat(values, 5), np.ones(100), np.repeat(np.arange(20), 5))
    assert copied.standard_error == pytest.approx(once.standard_error)


def test_delta_method_agrees_with_resampling():
    random = np.random.default_rng(2)
    bottom = random.uniform(1, 2, 400)
    top = 0.6 * bottom + random.normal(scale=0.3, size=400)
    estimate = ratio(top, bottom, np.arange(400))
    draws = random.integers(0, 400, (2000, 400))
    spread = (top[draws].sum(1) / bottom[draws].sum(1)).std()
    assert estimate.standard_error == pytest.approx(spread, rel=0.1)


def test_one_cluster_has_no_standard_error():
    estimate = ratio(np.array([1.0, 2.0]), np.ones(2), np.zeros(2))
    assert np.isnan(estimate.standard_error)
    assert estimate.as_dict()["standard_error"] is None


def test_positions_without_weight_at_the_end_are_cut():
    weights = np.array([[1.0, 1, 0], [1, 0, 0]])
    found = mean_by_position(np.array([[2.0, 4, 9], [4, 9, 9]]), weights, np.arange(2))
    assert [e.value for e in found] == [3.0, 4.0]


def test_empty_measurements_are_refused():
    with pytest.raises(LclmError, match="held-out"):
        ratio(np.array([]), np.array([]), np.array([]))
    with pytest.raises(LclmError, match="sum to 0"):
        ratio(np.ones(2), np.zeros(2), np.arange(2))
