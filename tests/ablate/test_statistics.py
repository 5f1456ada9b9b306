import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lclm_jax.ablate import statistics
from lclm_jax.ablate.effects import Effect
from lclm_jax.ablate.results import MEASURES
from lclm_jax.ablate.statistics import Interval
from lclm_jax.ablate.summary import MeasureSummary, _corrected
from lclm_jax.errors import LclmError

# The worked example of docs/explanation/statistics.md.
BASELINE = {0: 1.00, 1: 1.10, 2: 1.20}
VARIANT = {0: 0.90, 1: 1.03, 2: 1.07}  # differences -0.10 -0.07 -0.13
T = 4.302653  # 97.5 % quantile of Student's t with 2 degrees of freedom, from a printed table


def test_mean_interval_by_hand():
    # Mean 1.1; deviations -0.1 0 0.1, squares sum to 0.02, variance 0.02 / 2, standard deviation 0.1;
    # half-width T * 0.1 / sqrt(3).
    assert statistics.mean_interval(list(BASELINE.values()), 0.95) == pytest.approx((1.1, T * 0.1 / math.sqrt(3)))


def test_pairing_finds_what_the_means_hide():
    # Mean -0.3 / 3 = -0.1; deviations 0 0.03 -0.03, squares sum to 0.0018, standard deviation 0.03;
    # half-width T * 0.03 / sqrt(3) = 0.0745 < 0.1: better, though both means have half-widths above 0.2.
    found = statistics.paired(VARIANT, BASELINE, "lower", 0.95)
    assert (found.difference, found.sd) == pytest.approx((-0.1, 0.03))
    assert found.half_width == pytest.approx(0.0745, abs=5e-5)
    assert found.verdict == "better"
    assert statistics.paired(VARIANT, BASELINE, "higher", 0.95).verdict == "worse"
    # t = 0.1 / (0.03 / sqrt(3)) = 5.77 lies below the 99.5 % quantile, 9.92.
    assert statistics.paired(VARIANT, BASELINE, "lower", 0.99).verdict == "tie"


def test_paired_agrees_with_scipy():
    draws = np.random.default_rng(0).normal(size=(2, 7))
    variant, other = (dict(enumerate(row.tolist())) for row in draws)
    backwards = dict(reversed(other.items()))  # pairs by seed, not by place
    found = statistics.paired(variant, backwards, "lower", 0.9)
    test = stats.ttest_rel(*draws)
    low, high = test.confidence_interval(0.9)
    assert found.p_value == pytest.approx(test.pvalue)
    assert (found.difference - found.half_width, found.difference + found.half_width) == pytest.approx((low, high))


def test_equal_differences_in_all_seeds():
    same = statistics.paired(BASELINE, BASELINE, "lower", 0.95)
    assert (same.verdict, same.p_value) == ("tie", 1.0)
    shifted = statistics.paired({0: 2.0, 1: 3.0}, {0: 1.5, 1: 2.5}, "lower", 0.95)
    assert (shifted.verdict, shifted.p_value) == ("worse", 0.0)


def test_refuses_what_can_not_be_paired():
    with pytest.raises(LclmError, match=r"seeds \[0, 1, 3\] and \[0, 1, 2\] differ"):
        statistics.paired({0: 1.0, 1: 1.0, 3: 1.0}, BASELINE, "lower", 0.95)
    with pytest.raises(LclmError, match="run at least two seeds"):
        statistics.mean_interval([1.0], 0.95)
    with pytest.raises(LclmError, match="diverged"):
        statistics.mean_interval([1.0, math.nan], 0.95)


def test_holm_by_hand():
    # Sorted 0.01 0.02 0.03 0.5 times 4 3 2 1 = 0.04 0.06 0.06 0.5.
    assert statistics.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    # 0.01 * 2 = 0.02 and then 0.015 * 1, raised to the one before it; 0.9 * 2 stops at 1.
    assert statistics.holm([0.015, 0.01]) == pytest.approx([0.02, 0.02])
    assert statistics.holm([0.9, 0.95]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_compare_all_keeps_both_verdicts_and_leaves_out_the_diverged():
    values = {
        "base": BASELINE,
        "variant": VARIANT,  # p = 0.0287, of three comparisons 0.0861: Holm leaves a tie
        "noise": {0: 1.2, 1: 1.0, 2: 1.1},
        "far": {0: 2.00, 1: 2.11, 2: 2.20},
        "diverged": {0: 1.0, 1: math.nan, 2: math.inf},
    }
    found = statistics.compare_all(values, "base", "lower", 0.95)
    verdicts = {name: (one.verdict, one.holm_verdict) for name, one in found.items()}
    assert verdicts == {"variant": ("better", "tie"), "noise": ("tie", "tie"), "far": ("worse", "worse")}
    assert found["variant"].holm_p_value == pytest.approx(2 * found["variant"].p_value)  # far comes before it
    assert statistics.diverged(values["diverged"]) == [1, 2]
    assert statistics.compare_all(values, "diverged", "lower", 0.95) == {}


def test_best_and_ties():
    values = {"base": BASELINE, "variant": VARIANT, "noise": {0: 1.2, 1: 0.8, 2: 1.1}, "nan": {0: math.nan, 1: 0, 2: 0}}
    # noise - variant: 0.30 -0.23 0.03; mean 0.033 lies well inside its interval.
    assert statistics.best_and_ties(values, "lower", 0.95) == ("variant", ["noise"])
    assert statistics.best_and_ties(values, "higher", 0.95) == ("base", ["noise"])
    assert statistics.best_and_ties({"nan": values["nan"]}, "lower", 0.95) == (None, [])


@pytest.mark.parametrize(("seeds", "confidence", "power"), [(2, 0.95, 0.8), (3, 0.95, 0.8), (8, 0.99, 0.9)])
def test_detectable_differences_are_detected_as_often_as_claimed(seeds, confidence, power):
    true = statistics.detectable(2.0, seeds, confidence, power)
    draws = true + 2.0 * np.random.default_rng(seeds).normal(size=(200_000, seeds))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(seeds))
    found = np.mean(np.abs(t) > stats.t.ppf((1 + confidence) / 2, seeds - 1))
    assert found == pytest.approx(power, abs=0.004)  # over four standard errors


def test_detectable_and_seeds_needed_agree_with_tables():
    # Cohen's tables: 34 pairs find d = 0.5 with power 0.8 at 5 %, two-sided.
    assert statistics.seeds_needed(0.5, 1.0, 0.95, 0.8) == 34
    assert statistics.detectable(1.0, 33, 0.95, 0.8) > 0.5 > statistics.detectable(1.0, 34, 0.95, 0.8)
    # Many pairs approach (1.96 + 0.8416) / sqrt(n).
    assert statistics.detectable(3.0, 10_000, 0.95, 0.8) == pytest.approx(3 * 2.8016 / 100, rel=1e-3)
    assert statistics.seeds_needed(1.0, 0.001, 0.95, 0.8) == 2
    assert statistics.seeds_needed(1.0, 0.0, 0.95, 0.8) == 2
    with pytest.raises(LclmError, match="needs over 10,000 seeds"):
        statistics.seeds_needed(1e-6, 1.0, 0.95, 0.8)
    with pytest.raises(LclmError, match="above 0"):
        statistics.seeds_needed(0.0, 1.0, 0.95, 0.8)


def test_bound_on_the_spread_of_differences():
    values = list(BASELINE.values())  # standard deviation 0.1
    # The 20 % quantile of chi-square with 2 degrees of freedom is -2 ln(0.8) = 0.4463; sqrt(2 / 0.4463) = 2.117.
    assert statistics.sd_of_differences_bound(values) == pytest.approx(math.sqrt(2) * 0.1 * 2.117, rel=1e-3)


def test_intervals_cover_as_often_as_claimed():
    draws = np.random.default_rng(1).normal(size=(4000, 3))
    intervals = [Interval(*statistics.mean_interval(row.tolist(), 0.9)) for row in draws]
    covered = np.mean([abs(one.mean) <= one.half_width for one in intervals])
    assert covered == pytest.approx(0.9, abs=0.02)  # over four standard errors


def test_a_comparison_that_is_made_twice_counts_once():
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    near, far = (statistics.paired({s: v - d[s] for s, v in base.items()}, base, "lower", 0.95) for d in (
        (0.10, 0.11, 0.16), (0.5, 0.52, 0.51)))  # fmt: skip
    for made in ([near, far], [near, far, near]):
        found = statistics.corrected(made, "lower", 0.95)
        assert [one.holm_p_value for one in found[:2]] == pytest.approx([near.p_value, 2 * far.p_value])
        assert all(one.holm_p_value == found[0].holm_p_value for one in found[2:])


def test_main_effects_and_comparisons_are_corrected_together():
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    one, other = (
        statistics.paired({s: v - d * (1 + s / 10) for s, v in base.items()}, base, "lower", 0.95) for d in (1, 2)
    )
    effect = Effect("factor", "level", "against", 2, replace(other, p_value=0.04))
    primary = MeasureSummary("train_loss", MEASURES["train_loss"], {}, {}, {"a": replace(one, p_value=0.03)}, None, [])
    primary, (found,) = _corrected(primary, [effect], "lower", 0.95)
    assert primary.comparisons["a"].holm_p_value == pytest.approx(0.06)
    assert found.comparison.holm_p_value == pytest.approx(0.06) and found.comparison.holm_verdict == "tie"
