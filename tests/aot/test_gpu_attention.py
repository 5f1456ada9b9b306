"""Our attention kernels compiled for an H100 at the presets' shapes, forward and backward, with what the compiler says.

A kernel that spills registers is slow, one that takes more shared memory than a processor has fails on the first GPU:
both compile, and are seen here.
"""

import re
import subprocess
import sysconfig
from pathlib import Path

import jax.numpy as jnp
import pytest
from tests.aot.test_attention import DECODER, ENCODER, LONG, step_of

KERNELS = ("attention_forward", "attention_dq", "attention_dkv")
SHARED_BYTES = 232448
"""Of one block of threads on an H100, ``shared_memory_per_block_optin`` in plan/h100.textproto."""

SHAPES = {
    "encoder": dict(shape=ENCODER),
    "decoder": dict(shape=DECODER),
    "long": dict(shape=LONG),
    "bidirectional windows": dict(shape=ENCODER, causal=False),
    "head_dim 64": dict(shape=(1, 4096, 9, 3, 64)),
    "float32": dict(shape=(1, 4096, 16, 8, 128), dtype=jnp.float32),
    "offset, no block divides it": dict(shape=(2, 1130, 16, 8, 128), offset=True),
}


def ptxas() -> Path:
    """The assembler of the package nvidia-cuda-nvcc."""
    found = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("**/bin/ptxas"))
    return found[0] if found else pytest.skip("needs nvidia-cuda-nvcc")


def resources(dump: Path) -> dict[str, dict[str, int]]:
    """Kernel -> registers of a thread, bytes spilled, bytes of shared memory; read from XLA's dump of a program."""
    [thunks] = dump.glob("*thunk_sequence.txt")
    shared = dict(re.findall(r"(attention_\w+) grid:.*shared_memory: (\d+) bytes", thunks.read_text()))
    found = {}
    for path in dump.glob("*.ptx"):
        name = re.search(r"\.entry (attention_\w+)", path.read_text())
        if name:
            command = [ptxas(), "-v", "-arch=sm_90a", path, "-o", dump / "cubin"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
            numbers = (registers[1], spilled[1], shared[name[1]])
            found[name[1]] = dict(zip(("registers", "spilled", "shared"), map(int, numbers), strict=True))
    return found


@pytest.mark.parametrize("case", SHAPES)
def test_auto_compiles_to_kernels_that_fit_an_h100(one_chip, arguments, report, tmp_path, case):
    with one_chip("h100") as mesh:
        lowered = step_of(mesh, arguments, **SHAPES[case])
        options = {"xla_dump_to": str(tmp_path), "xla_gpu_dump_llvmir": True, "xla_dump_emitter_re": ".*"}
        program = lowered.compile(compiler_options=options)
    memory = program.memory_analysis().temp_size_in_bytes / 1e6
    found = resources(tmp_path)
    for kernel in KERNELS:
        report(f"h100 {case} {kernel}", **found[kernel], temporaries_of_all_mb=memory)
        assert found[kernel]["shared"] <= SHARED_BYTES
        assert found[kernel]["spilled"] == 0 or case == "float32"  # there to check by, not to be fast
