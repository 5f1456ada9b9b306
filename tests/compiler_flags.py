"""Flags that make XLA compile faster, for tests: they run each program a few times on tiny shapes."""

from importlib.metadata import version

FAST = [
    # LLVM optimises nothing: a third of the CPU time of tests/model/test_lclm.py less.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if version("jaxlib").startswith("0.10."):  # later releases end the process on the first of these flags
    # Fusions lowered by LLVM alone, in one module: a train step compiles in 6 s of CPU time instead of 16.
    FAST += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
