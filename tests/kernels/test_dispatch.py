"""Which backend is taken, and which refuses."""

import dataclasses
import logging

import jax.numpy as jnp
import pytest
from tests.kernels.backends import RUN

from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.errors import LclmError
from lclm_jax.kernels.attention import attention, backend_module, choose
from lclm_jax.kernels.request import AttentionRequest

DECODER = AttentionRequest("tpu", 1, 16384, 16384, 32, 8, 128, "bfloat16", causal=True, to_itself=True, offset=False)


def unsupported_reason(name, **changes):
    return backend_module(name).unsupported_reason(dataclasses.replace(DECODER, **changes))


def test_auto_takes_the_first_that_can():
    assert choose(DECODER) == "splash"
    assert choose(dataclasses.replace(DECODER, offset=True)) == "pallas_tpu"
    assert choose(dataclasses.replace(DECODER, to_itself=False)) == "pallas_tpu"
    assert choose(dataclasses.replace(DECODER, queries=1, offset=True)) == "chunked"
    assert choose(dataclasses.replace(DECODER, platform="gpu", offset=True)) == "pallas_gpu"
    assert choose(dataclasses.replace(DECODER, platform="gpu", head_dim=96)) == "chunked"
    assert choose(dataclasses.replace(DECODER, platform="cpu")) == "chunked"
    small = dataclasses.replace(DECODER, platform="cpu", queries=1024, keys=1024, heads=2)
    assert choose(small) == "reference"
    assert choose(dataclasses.replace(small, rows=2)) == choose(dataclasses.replace(small, keys=1025)) == "chunked"
    assert choose(dataclasses.replace(DECODER, platform="gpu", head_dim=96, keys=512)) == "reference"


@pytest.mark.parametrize("name", ["splash", "pallas_tpu", "pallas_gpu"])
def test_kernels_refuse_what_they_cannot_honour(name):
    own, other = ("gpu", "tpu") if name == "pallas_gpu" else ("tpu", "gpu")
    small = dict(rows=16, queries=64, keys=64, head_dim=64, dtype="float32", causal=False)
    assert unsupported_reason(name, platform=own) is None
    assert unsupported_reason(name, platform=own, **small) is None
    for changes in (dict(head_dim=96), dict(dtype="float16"), dict(queries=32, keys=32), dict(platform=other)):
        assert unsupported_reason(name, **{"platform": own} | changes)


def test_each_says_what_it_alone_cannot():
    assert "offset" in unsupported_reason("splash", offset=True)
    assert "one array of segments" in unsupported_reason("splash", to_itself=False)
    assert "scalar memory" in unsupported_reason("pallas_tpu", rows=16, queries=131072, keys=131072)


def test_a_named_backend_raises_with_the_reason_and_the_request():
    q, segments = jnp.zeros((1, 64, 2, 64)), jnp.ones((1, 64), jnp.int32)
    for name, where in (("splash", "TPUs"), ("pallas_tpu", "TPUs"), ("pallas_gpu", "GPUs")):
        with pytest.raises(
            LclmError, match=f"'{name}' runs on {where} only: causal attention of 64 .*on cpu; set model"
        ):
            attention(q, q, q, segments=(segments, segments), causal=True, backend=name)


def test_every_backend_is_tested():
    assert {*RUN, "mosaic_gpu"} == set(ATTENTION_BACKENDS), "test_mosaic.py has the one whose interpreter is slow"


def test_auto_logs_its_choice_once(caplog):
    with caplog.at_level(logging.INFO, "lclm_jax.kernels.attention"):
        for queries in (1000, 2000):
            choose(dataclasses.replace(DECODER, platform="rocm", queries=queries))
    assert [record.getMessage() for record in caplog.records] == [
        "attention: auto takes chunked on rocm (more than 512 keys)"
    ]
