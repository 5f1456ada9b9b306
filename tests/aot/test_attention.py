"""Attention kernels compiled for real TPUs at the presets' shapes, forward and backward."""

import re

import jax
import jax.numpy as jnp
import pytest
from tests.aot.resources import vmem

from lclm_jax.kernels.attention import attention
from lclm_jax.kernels.request import SAVED

ENCODER, DECODER, LONG = (16, 1024, 16, 8, 128), (1, 16384, 32, 8, 128), (1, 131072, 32, 8, 128)
KERNELS = {
    "pallas_tpu": "attention_forward|attention_dkv|attention_dq",
    "splash": "splash_mha_(?:fwd|dkv|dq)|splash_attention_dq_dkv",
}


def compiled(mesh, arguments, shape, backend="auto", **how):
    """``step_of``, compiled for the devices of ``mesh``."""
    return step_of(mesh, arguments, shape, backend, **how).compile()


def step_of(mesh, arguments, shape, backend="auto", *, causal=True, dtype=jnp.bfloat16, offset=False):
    """Output and gradients, lowered."""
    B, S, H, K, d = shape

    def step(q, k, v, segments, weights, offset_B):
        def out(q, k, v):
            both, place = (segments, segments), offset_B if offset else None
            return attention(q, k, v, segments=both, causal=causal, offset_B=place, backend=backend)

        value, back = jax.vjp(out, q, k, v)
        return value, back(weights)

    shapes = [((B, S, H, d), dtype), ((B, S, K, d), dtype), ((B, S, K, d), dtype), ((B, S), jnp.int32)]
    inputs = arguments(mesh, *shapes, ((B, S, H, d), dtype), ((B,), jnp.int32))
    return jax.jit(step).lower(*inputs)


@pytest.mark.parametrize("shape", [ENCODER, DECODER, LONG], ids=["encoder", "decoder", "long"])
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_compiles_at_real_shapes(one_chip, arguments, report, chip, backend, shape):
    with one_chip(chip) as mesh:
        program = compiled(mesh, arguments, shape, backend)
    taken = vmem(program, KERNELS[backend])
    assert len(taken) == (2 if backend == "splash" and shape != LONG else 3), "forward, and one or two backward kernels"
    temporaries = program.memory_analysis().temp_size_in_bytes
    figures = {f"{kernel}_vmem_mb": bytes_ / 1e6 for kernel, bytes_ in taken.items()}
    report(f"{chip} {backend} {shape}", temporaries_mb=temporaries / 1e6, **figures)


VARIANTS = {
    "head_dim 64": dict(shape=(1, 4096, 9, 3, 64)),
    "float32": dict(shape=(1, 4096, 16, 8, 128), dtype=jnp.float32),
    "bidirectional": dict(shape=ENCODER, causal=False),
    "short": dict(shape=(4, 64, 16, 8, 128)),
    "no block divides it": dict(shape=(2, 1130, 16, 8, 128)),
    "eight heads a group": dict(shape=(1, 8192, 64, 8, 128)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", KERNELS)
def test_compiles_in_every_variant(one_chip, arguments, backend, variant):
    with one_chip("v5e") as mesh:
        assert re.search(KERNELS[backend], compiled(mesh, arguments, backend=backend, **VARIANTS[variant]).as_text())


def test_auto_takes_kernels_by_the_devices_compiled_for(one_chip, arguments):
    with one_chip("v5e") as mesh:
        assert re.search(KERNELS["splash"], compiled(mesh, arguments, ENCODER).as_text())
        assert re.search(KERNELS["pallas_tpu"], compiled(mesh, arguments, ENCODER, offset=True).as_text())


@pytest.mark.parametrize("backend", KERNELS)
def test_saved_attention_is_not_computed_again(one_chip, arguments, backend):
    def loss(x, segments):
        out = attention(jnp.sin(x), x, x, segments=(segments, segments), causal=True, backend=backend)
        return jnp.sin(out).astype(jnp.float32).sum()

    def kernels(policy):
        step = jax.value_and_grad(jax.checkpoint(loss, policy=policy))
        text = jax.jit(step).lower(*inputs).compile().as_text()
        return sum("custom-call(" in line and "tpu_custom_call" in line for line in text.splitlines())

    policies = jax.checkpoint_policies
    with one_chip("v5e") as mesh:
        inputs = arguments(mesh, ((1, 512, 2, 128), jnp.bfloat16), ((1, 512), jnp.int32))
        backward = 1 if backend == "splash" else 2
        assert kernels(policies.nothing_saveable) == 2 + backward
        assert kernels(policies.save_only_these_names(SAVED)) == 1 + backward
