"""Pooling with its norms, compiled for real accelerators at the presets' widths, forward and backward."""

import jax
import jax.numpy as jnp
import pytest
from tests.aot.resources import SHARED_BYTES, compile_for_gpu, vmem

from lclm_jax.kernels.normed_pooling import Pooling, Scales, normed_pool

WINDOWS = (64, 1024)
KERNELS = r"pool_[a-z]+_(?:forward|backward)"
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


def step_of(mesh, arguments, setting):
    """Pooled states and all gradients, by what ``auto`` takes for the devices of ``mesh``; lowered."""
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
    return jax.jit(step).lower(*arguments(mesh, *shapes))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_compiles_at_real_shapes(one_chip, arguments, report, chip, setting):
    with one_chip(chip) as mesh:
        program = step_of(mesh, arguments, setting).compile()
    taken = vmem(program, KERNELS)
    assert set(taken) == {f"pool_{setting[0]}_forward", f"pool_{setting[0]}_backward"}
    figures = {f"{kernel}_vmem_mb": bytes_ / 1e6 for kernel, bytes_ in taken.items()}
    temporaries = program.memory_analysis().temp_size_in_bytes
    report(f"{chip} pooling {setting}", temporaries_mb=temporaries / 1e6, **figures)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_compiles_to_kernels_that_fit_an_h100(one_chip, arguments, report, tmp_path, setting):
    with one_chip("h100") as mesh:
        _, found = compile_for_gpu(step_of(mesh, arguments, setting), tmp_path, KERNELS)
    assert set(found) == {f"pool_{setting[0]}_forward", f"pool_{setting[0]}_backward"}
    for kernel, taken in sorted(found.items()):
        report(f"h100 {setting} {kernel}", **taken)
        assert taken["shared"] <= SHARED_BYTES and taken["spilled"] <= 8  # two registers, where N = 2
