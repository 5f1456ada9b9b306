"""What compilers say of a kernel: vector memory on TPUs; registers, spills and shared memory on GPUs."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from lclm_jax.plan.hlo import backend_config, parse
from lclm_jax.plan.kernels import is_kernel, kernel_name

SHARED_BYTES = 232448
"""Of one block of threads on an H100, ``shared_memory_per_block_optin`` in plan/h100.textproto."""
SAID = {"registers": r"Used (\d+) registers", "spilled": r"(\d+) bytes spill stores"}


def vmem(program, names: str) -> dict[str, int]:
    """Kernel (what the pattern ``names`` finds) -> bytes of VMEM, the largest where one is called several times."""
    found: dict[str, int] = {}
    for execution in parse(program.as_text()).executions():
        name = re.search(names, kernel_name(execution.instruction)) if is_kernel(execution.instruction) else None
        if name:
            [taken] = backend_config(execution.instruction)["used_scoped_memory_configs"]
            found[name[0]] = max(found.get(name[0], 0), int(taken["size"]))
    return found


def compile_for_gpu(lowered, dump: Path, names: str):
    """(program, kernel -> ``registers`` of a thread, bytes ``spilled`` and ``shared``), from XLA's dump of it."""
    options = {"xla_dump_to": str(dump), "xla_gpu_dump_llvmir": True, "xla_dump_emitter_re": ".*"}
    program = lowered.compile(compiler_options=options)
    [thunks] = dump.glob("*thunk_sequence.txt")
    shared = dict(re.findall(rf"({names}) grid:.*shared_memory: (\d+) bytes", thunks.read_text()))
    found = {}
    for path in dump.glob("*.ptx"):
        name = re.search(rf"\.entry ({names})\b", path.read_text())
        if name:
            command = [_ptxas(), "-v", "-arch=sm_90a", path, "-o", dump / "cubin"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            numbers = {what: int(re.search(pattern, said)[1]) for what, pattern in SAID.items()}
            found[name[1]] = numbers | {"shared": int(shared[name[1]])}
    return program, found


def mosaic_resources(dump: Path) -> dict[str, dict[str, int]]:
    """The same of the kernels in Mosaic GPU, from what ``MOSAIC_GPU_DUMP_PTXAS`` and ``MOSAIC_GPU_DUMP_TO`` left."""
    found = {}
    for path in dump.glob("*.ptxas"):
        name = re.sub(r"_\d+$", "", path.stem)
        [resources] = dump.glob(f"{name}_*.resources.txt")  # under a number of its own
        numbers = {what: int(re.search(pattern, path.read_text())[1]) for what, pattern in SAID.items()}
        found[name] = numbers | {"shared": int(re.search(r"smem_scratch_bytes=(\d+)", resources.read_text())[1])}
    return found


def _ptxas() -> Path:
    """The assembler of the package nvidia-cuda-nvcc."""
    found = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("**/bin/ptxas"))
    return found[0] if found else pytest.skip("needs nvidia-cuda-nvcc")
