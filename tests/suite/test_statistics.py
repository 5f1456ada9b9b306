"""Bootstrap over documents against cases that can be worked out."""

import math

import numpy as np
import pytest

from lclm_jax.suite.statistics import Interval, mean_interval, ratio_interval, recovered_share, verdict


def test_two_documents_by_hand():
    """Two documents with means 0 and 1 draw 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: the 95 % interval is all of it."""
    found = mean_interval([0, 0, 1, 1], ["a", "a", "b", "b"])
    assert found[:3] == (0.5, 0.0, 1.0)
    assert (found.samples, found.documents) == (4, 2)


def test_samples_of_one_document_are_drawn_together():
    values = np.random.default_rng(0).normal(size=50)
    alone = mean_interval(values, [str(number) for number in range(50)])
    tripled = mean_interval(np.repeat(values, 3), [str(number) for number in np.repeat(np.arange(50), 3)])
    assert tripled.low == pytest.approx(alone.low)
    assert tripled.high == pytest.approx(alone.high)
    # Close to the normal interval of independent documents.
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(50), rel=0.05)
    assert mean_interval(values, [str(number) for number in range(50)]) == alone


def test_one_document_has_no_interval():
    found = mean_interval([1.0, 2.0], ["a", "a"])
    assert found.value == 1.5
    assert math.isnan(found.low)
    assert found.as_dict()["low"] is None
    assert verdict(found) == "tie"


def test_ratio_without_a_denominator():
    found = ratio_interval([1.0, 1.0], [0.0, 0.0], ["a", "b"])
    assert math.isnan(found.value)
    assert math.isnan(found.high)


def test_recovered_share_is_of_shared_samples():
    none, raw = {"a": 4.0, "b": 6.0, "c": 9.0}, {"a": 2.0, "b": 2.0}
    found = recovered_share(none, {"a": 3.0, "b": 3.0, "c": 0.0}, raw, {"a": "x", "b": "y", "c": "z"})
    assert found.value == pytest.approx((1 + 3) / (2 + 4))
    assert (found.samples, found.low, found.high) == (2, 0.5, 0.75)
    assert recovered_share(none, {}, raw, {}) is None


@pytest.mark.parametrize(
    ("low", "high", "higher", "expected"),
    [(0.1, 0.3, True, "better"), (-0.3, -0.1, True, "worse"), (0.1, 0.3, False, "worse"), (-0.1, 0.3, True, "tie")],
)
def test_verdicts(low, high, higher, expected):
    assert verdict(Interval((low + high) / 2, low, high, 9, 9), higher) == expected
