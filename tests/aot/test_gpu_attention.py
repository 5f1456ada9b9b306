"""Our attention kernels compiled for an H100 at the presets' shapes, forward and backward, with what the compiler says.

A kernel that spills registers is slow, one that takes more shared memory than a processor has fails on the first GPU:
both compile, and are seen here.
"""

import jax.numpy as jnp
import pytest
from tests.aot.resources import SHARED_BYTES, compile_for_gpu
from tests.aot.test_attention import DECODER, ENCODER, LONG, step_of

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
