from lclm_jax.ablate.statistics import Interval
from lclm_jax.report import formatting


def test_two_figures_of_the_interval_are_shown():
    assert formatting.decimals([0.012, 0.034, 0.5]) == 3
    assert formatting.decimals([0.00066]) == 5
    assert formatting.decimals([1.7]) == 1
    assert formatting.decimals([0.0, float("nan")]) == 3
    assert formatting.plus_minus(Interval(2.3456, 0.0123), 3) == "2.346 ± 0.012"


def test_lists_and_quantities():
    assert formatting.names(["a"]) == "`a`"
    assert formatting.names(["a", "b", "c"]) == "`a`, `b` and `c`"
    assert [formatting.count(n) for n in (12, 98_800, 53.2e9, 2.5e15)] == ["12", "98.8 k", "53.2 G", "2.5 P"]
    durations = (61, 600, 9000, 3 * 86400)
    assert [formatting.duration(n) for n in durations] == ["61 s", "10 min", "2 h 30 min", "3.0 days"]
    assert [formatting.p_value(p) for p in (0.0004, 0.0287, 0.5)] == ["< 0.001", "0.029", "0.50"]
    assert formatting.baseline("baseline") == "the baseline"


def test_estimates():
    assert formatting.estimate({"value": 0.5, "standard_error": 0.01}) == "0.5000 ± 0.0100"
    assert formatting.estimate({"value": 0.5, "standard_error": None}) == "0.5000"
    assert formatting.estimate({"value": None, "standard_error": None}) == formatting.estimate(None) == "–"
