"""Our attention kernels compiled for an H100 at the presets' shapes, forward and backward, with what the compiler says.

A kernel that spills registers is slow, one that takes more shared memory than a processor has fails on the first GPU:
both compile, and are seen here.
"""

import jax.numpy as jnp
import pytest
from tests.aot.resources import SHARED_BYTES, compile_for_gpu, mosaic_resources
from tests.aot.test_attention import DECODER, ENCODER, LONG, step_of

from lclm_jax.plan.hlo import parse
from lclm_jax.plan.kernels import is_kernel, kernel_name

KERNELS = "attention_forward|attention_dq|attention_dkv"

SHAPES = {
    "encoder": dict(shape=ENCODER),
    "decoder": dict(shape=DECODER),
    "long": dict(shape=LONG),
    "bidirectional windows": dict(shape=ENCODER, causal=False),
    "head_dim 64": dict(shape=(1, 4096, 9, 3, 64)),
    "float32": dict(shape=(1, 4096, 16, 8, 128), dtype=jnp.float32),
    "offset, no block divides it": dict(shape=(2, 1130, 16, 8, 128), offset=True),
}


@pytest.mark.parametrize("case", SHAPES)
def test_auto_compiles_to_kernels_that_fit_an_h100(one_chip, arguments, report, tmp_path, case):
    with one_chip("h100") as mesh:
        program, found = compile_for_gpu(step_of(mesh, arguments, **SHAPES[case]), tmp_path, KERNELS)
    assert len(found) == 3, "forward and two backward kernels"
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    for kernel, taken in sorted(found.items()):
        report(f"h100 {case} {kernel}", **taken, temporaries_of_all_mb=memory)
        assert taken["shared"] <= SHARED_BYTES and taken["spilled"] == 0


@pytest.mark.parametrize("case", [name for name in SHAPES if name != "float32"])
def test_mosaic_compiles_to_kernels_that_fit_an_h100(one_chip, arguments, report, tmp_path, monkeypatch, case):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    with one_chip("h100") as mesh:
        program = step_of(mesh, arguments, backend="mosaic_gpu", **SHAPES[case]).compile()
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    found = mosaic_resources(tmp_path)
    assert sorted(found) == sorted(KERNELS.split("|"))
    for kernel, taken in sorted(found.items()):
        report(f"h100 mosaic {case} {kernel}", **taken, temporaries_of_all_mb=memory)
        # dk and dv: four numbers that are needed once, after the loops
        assert taken["shared"] <= SHARED_BYTES and taken["spilled"] <= (16 if kernel == "attention_dkv" else 0)
    calls = [one.instruction for one in parse(program.as_text()).executions() if is_kernel(one.instruction)]
    assert sorted(map(kernel_name, calls)) == sorted(found), "lclm plan counts them"
