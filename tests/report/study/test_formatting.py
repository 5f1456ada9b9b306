from lclm_jax.ablate.statistics import Interval
from lclm_jax.report.study import formatting as wording


def test_two_figures_of_the_interval_are_shown():
    assert wording.decimals([0.012, 0.034, 0.5]) == 3
    assert wording.decimals([0.00066]) == 5
    assert wording.decimals([1.7]) == 1
    assert wording.decimals([0.0, float("nan")]) == 3
    assert wording.plus_minus(Interval(2.3456, 0.0123), 3) == "2.346 ± 0.012"


def test_lists_and_quantities():
    assert wording.names(["a"]) == "`a`"
    assert wording.names(["a", "b", "c"]) == "`a`, `b` and `c`"
    assert [wording.count(n) for n in (12, 98_800, 53.2e9, 2.5e15)] == ["12", "98.8 k", "53.2 G", "2.5 P"]
    assert [wording.duration(n) for n in (61, 600, 9000)] == ["61 s", "10 min", "2.5 h"]
    assert [wording.p_value(p) for p in (0.0004, 0.0287, 0.5)] == ["< 0.001", "0.029", "0.50"]
    assert wording.baseline("baseline") == "the baseline"
