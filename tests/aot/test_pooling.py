"""Pooling with its norms, compiled for real accelerators at the presets' widths, forward and backward."""

import re

import jax
import jax.numpy as jnp
import pytest

from lclm_jax.kernels.normed_pooling import Pooling, Scales, normed_pool

WINDOWS = (64, 1024)
# kind, N, width of the encoder, dtype: Qwen3-Embedding 0.6B and 4B.
SETTINGS = [
    ("mean", 2, 1024, "bfloat16"),
    ("mean", 4, 2560, "float32"),
    ("mean", 8, 1024, "bfloat16"),
    ("mean", 16, 1024, "bfloat16"),
    ("mean", 32, 2560, "bfloat16"),
    ("concat", 16, 1024, "bfloat16"),
    ("eos", 16, 1024, "bfloat16"),
]


def compiled(mesh, arguments, setting):
    """Pooled states and all gradients, by what ``auto`` takes for the devices of ``mesh``."""
    kind, ratio, width, dtype = setting
    wide, slots = width * (ratio if kind == "concat" else 1), WINDOWS[1] // ratio
    how = Pooling(kind, ratio, 1e-6, 1e-6)

    def step(x, weights, scale, latent_scale, markers, bar):
        def pooled(x, *scales):
            return normed_pool(how, x, weights, Scales(*scales), markers if kind == "eos" else None)

        value, back = jax.vjp(pooled, x, scale, latent_scale)
        return value, back(bar)

    shapes = [((*WINDOWS, width), dtype), (WINDOWS, "float32"), ((width,), "float32"), ((wide,), "float32")]
    shapes += [((WINDOWS[0], slots), jnp.int32), ((WINDOWS[0], slots, wide), dtype)]
    return jax.jit(step).lower(*arguments(mesh, *shapes)).compile()


def kernels_in(program):
    return set(re.findall(r"pool_(?:mean|concat|eos)_(?:forward|backward)", program.as_text()))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "h100"])
def test_compiles_at_real_shapes(one_chip, arguments, report, chip, setting):
    with one_chip(chip) as mesh:
        program = compiled(mesh, arguments, setting)
    assert kernels_in(program) == {f"pool_{setting[0]}_forward", f"pool_{setting[0]}_backward"}
    report(f"{chip} pooling {setting}", temporaries_mb=program.memory_analysis().temp_size_in_bytes / 1e6)
