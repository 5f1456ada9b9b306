import jax.numpy as jnp
import numpy as np
import pytest

from lclm_jax.bench import kernels
from lclm_jax.bench.cases import Case
from lclm_jax.bench.timing import Peaks


@pytest.fixture
def case():
    x = jnp.asarray(np.linspace(-1, 1, 6).reshape(2, 3), jnp.bfloat16)

    def refuse(x):
        raise ValueError("not on this machine")

    contenders = {"right": lambda x: x**2, "wrong": lambda x: x**2 * 1.2, "absent": refuse}
    return Case("square", "2 x 3", (x,), contenders, lambda x: x**2, flops=(6.0, 18.0), bytes=(24.0, 48.0))


def test_right_wrong_and_refused(case, monkeypatch):
    monkeypatch.setitem(kernels.KERNELS, "square", lambda small: [case])
    report = kernels.bench_kernels(["square"])
    right, wrong, absent = report["rows"]
    assert right["right"] and right["error"] < 0.01 and "forward" not in right
    assert not wrong["right"] and wrong["gradient_error"] > 0.1
    assert absent["refused"] == "not on this machine"
    assert "correctness alone" in report["measures"] and report["peaks"] is None


def test_rates_are_work_over_time_and_shares_of_what_was_measured(case):
    rates = kernels.speed(case, 1, 2.0, Peaks(matmul_flops=90.0, copy_bytes=240.0))
    assert rates["tflops"] == 9e-12 and rates["share_of_matmul"] == 0.1
    assert rates["gbytes"] == 24e-9 and rates["share_of_copy"] == 0.1


def test_the_loss_and_pooling_of_this_package_are_right():
    rows = kernels.bench_kernels(["cross_entropy"])["rows"]
    assert [row["right"] for row in rows] == [True] * 3
