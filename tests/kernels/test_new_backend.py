"""A backend is one file and one row: this file is the one, the fixture adds the other."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError
from tests.plan.test_hlo import KERNEL

from lclm_jax.bench.cases import attention_cases
from lclm_jax.config import PackConfig, StageConfig
from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS, AttentionCost, AttentionRow, backend_on
from lclm_jax.kernels.attention import attention
from lclm_jax.kernels.reference_attention import reference_attention
from lclm_jax.model.flops import step_flops
from lclm_jax.plan.hlo import parse
from lclm_jax.plan.program_cost import count


def unsupported_reason(request):
    return None if request.causal else "takes causal attention"


def run(q_BSHd, k_BTKd, v_BTKd, segments, causal, offset_B=None, interpret=False):
    return 2 * reference_attention(q_BSHd, k_BTKd, v_BTKd, segments, causal, offset_B)


@pytest.fixture
def row(monkeypatch):
    found = AttentionRow(__name__, AttentionCost(100, None), "cpu", programs=(("twice_forward", 2),))
    monkeypatch.setitem(ATTENTION_BACKENDS, "twice", found)
    return found


def test_it_is_chosen_and_named(row, rng, caplog):
    q = jnp.asarray(rng.normal(size=(1, 8, 2, 4)), jnp.float32)
    segments = jnp.ones((1, 8), jnp.int32)

    def attend(backend, causal=True):
        return attention(q, q, q, segments=(segments, segments), causal=causal, backend=backend)

    with caplog.at_level(logging.INFO, "lclm_jax.kernels.attention"):
        np.testing.assert_array_equal(attend("auto"), 2 * attend("reference"))
    assert "auto takes twice on cpu (first choice there)" in caplog.text
    np.testing.assert_array_equal(attend("auto", causal=False), attend("reference", causal=False))


def test_the_configuration_the_flops_the_plan_and_the_benchmark_know_it(row, make_model):
    with pytest.raises(ValidationError, match=r"'thrice' is unknown; use one of auto, .*twice"):
        make_model(attention="thrice")
    model = make_model(attention="twice")
    assert backend_on("cpu") == backend_on("tpu", model.attention) == "twice"
    stage = StageConfig(steps=1, batch_rows=1, lr={"encoder": 1.0}, mixture={"a": 1.0})
    pack = PackConfig(row_length=64, encoder_rows=1, encoder_row_length=64)
    flops = {name: step_flops(model, stage, pack, name).executed for name in ("chunked", "twice")}
    assert flops["twice"] > 2 * flops["chunked"]
    found = count(parse(KERNEL.replace("splash_mha_fwd_segmented", "twice_forward")), 1)
    assert found.unknown_kernels == () and found.kernel_flops > 0
    assert all("twice" in case.contenders for case in attention_cases(small=True))
