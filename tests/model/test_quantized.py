"""8-bit products in training: which they are, how close their gradients come, and what is refused."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.model import forward, init_params, quantized, token_nll
from lclm_jax.parallel import make_mesh, use_mesh

PRODUCTS = 7  # of a block: q, k, v, o, gate, up, down


@pytest.fixture
def case(make_model, batches, rng):
    """quantize settings and others -> (the gradient of a loss as a function of parameters, parameters)."""

    model = make_model()
    batch = batches.build(model, [[batches.example(model, rng, [9, 3])]])

    def make(quantize, **settings):
        model = make_model(quantize=quantize, remat="none", **settings)

        def loss(params):
            return token_nll(params, model, forward(params, model, batch), batch.targets).mean()

        return loss, init_params(model, jax.random.key(3))

    with use_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        yield make


def eight_bit_products(lowered):
    return re.findall(r"dot_general.*tensor<[\dx]+x(i8|f8E\w+)>, tensor<[\dx]+x(i8|f8E\w+)>\) ->", lowered.as_text())


@pytest.mark.parametrize(
    ("quantize", "towers", "kinds"),
    [
        ({"encoder": "int8", "decoder": "int8"}, 2, {("i8", "i8")}),
        ({"encoder": "fp8"}, 1, {("f8E4M3FN", "f8E4M3FN"), ("f8E5M2", "f8E4M3FN")}),
    ],
    ids=["int8", "fp8 encoder"],
)
def test_products_of_the_program(case, quantize, towers, kinds):
    pytest.importorskip("qwix")
    loss, params = case(quantize, lora={"decoder": {"rank": 2}})
    found = eight_bit_products(jax.jit(jax.grad(loss)).lower(params))
    # A scanned layer stands in the program once; two products of the backward pass to each of the forward.
    assert len(found) == 3 * PRODUCTS * towers and set(found) == kinds


def both(f, x, kernel):
    return jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(f(x, kernel) ** 2), argnums=(0, 1)))(x, kernel)


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("fp8", 0.08)])
@pytest.mark.parametrize("contracted", [1, 2])
def test_a_product_and_its_gradients_are_close_to_the_plain_ones(rng, kind, error, contracted):
    pytest.importorskip("qwix")
    x_BSHd, kernel_HdD = rng.normal(size=(2, 8, 3, 16)), rng.normal(size=(3, 16, 24)[2 - contracted :]) / 8
    x_BSHd, kernel_HdD = x_BSHd.astype(np.float32), kernel_HdD.astype(np.float32)
    value, gradients = both(lambda x, w: quantized.quantized_product(x, w, contracted, kind), x_BSHd, kernel_HdD)
    wanted, exact = both(lambda x, w: jnp.tensordot(x, w, contracted), x_BSHd, kernel_HdD)
    assert value != wanted and abs(value - wanted) < error * abs(wanted)
    for found, plain in zip(gradients, exact, strict=True):
        assert jnp.linalg.norm(found - plain) < error * jnp.linalg.norm(plain)


def test_a_frozen_kernel_takes_no_product_for_its_gradient():
    pytest.importorskip("qwix")
    kernel_DF = jnp.ones((16, 8))
    gradient = jax.jit(jax.grad(lambda x_SD: jnp.sum(quantized.quantized_product(x_SD, kernel_DF, 1, "int8") ** 2)))
    compiled = gradient.lower(jnp.ones((4, 16))).compile().as_text()
    assert len(re.findall(r" = s32\[[\d,]*\]\S* dot\(", compiled)) == 2


def test_activations_are_scaled_by_position(rng):
    """A position's values do not depend on others, as they must not in a packed row."""
    pytest.importorskip("qwix")
    x_BSD, kernel = rng.normal(size=(2, 5, 16)).astype(np.float32), rng.normal(size=(16, 3)).astype(np.float32)
    alone = quantized.quantized_product(jnp.asarray(x_BSD[:, 1:2]), jnp.asarray(kernel), 1, "int8")
    x_BSD[:, 0] *= 1000
    beside = quantized.quantized_product(jnp.asarray(x_BSD), jnp.asarray(kernel), 1, "int8")
    np.testing.assert_array_equal(beside[:, 1:2], alone)


@pytest.mark.parametrize("remat", ["dots", "dots_attention"])
def test_saved_products_are_refused(make_model, remat):
    with pytest.raises(ValidationError, match=f"remat={remat} saves products.*set model.remat to full"):
        make_model(quantize={"encoder": "int8"}, remat=remat)
    make_model(quantize={"encoder": "none"}, remat=remat)


def test_a_missing_package_is_named(case, monkeypatch):
    quantized._config.cache_clear()
    monkeypatch.setitem(sys.modules, "qwix._src.core.dot_general_qt", None)
    loss, params = case({"decoder": "int8"})
    with pytest.raises(LclmError, match=r"quantize=int8 needs the package qwix .*pip install 'lclm-jax\[quantize\]'"):
        jax.eval_shape(loss, params)


@pytest.mark.parametrize(
    ("device", "kind", "advice"),
    [
        ("TPU v5p", "fp8", "int8 or none"),
        ("TPU v4", "int8", "none"),
        ("TPU7x", "int8", "fp8 or none"),
        ("NVIDIA H100 80GB HBM3", "int8", "fp8 or none"),
        ("NVIDIA A100-SXM4-80GB", "fp8", "none"),
        ("TPU v6 lite", "int8", None),
        ("NVIDIA B200", "fp8", None),
    ],
)
def test_devices_without_such_units_are_refused(monkeypatch, device, kind, advice):
    monkeypatch.setattr(quantized, "platform", lambda: "tpu" if device.startswith("TPU") else "gpu")
    monkeypatch.setattr(quantized, "device_kind", lambda: device)
    if advice is None:
        quantized._check_device(kind)
        return
    with pytest.raises(
        LclmError, match=f"model.quantize={kind} has no units of its own on {device}; set it to {advice}$"
    ):
        quantized._check_device(kind)
