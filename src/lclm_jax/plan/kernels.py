"""FLOPs of the attention kernels, which the compiler cannot see into.

A kernel is known by its name, which its row in the registry of backends gives; its FLOPs follow from the shapes of its
operands: products of [S, T] with a head's width over the pairs of blocks that it computes. Rows count as full; a kernel
that skips blocks between segments does less.
"""

import re
from typing import NamedTuple

from lclm_jax.config.registry.attention_backends import ATTENTION_BACKENDS
from lclm_jax.config.registry.pooling_backends import POOLING_BACKENDS
from lclm_jax.plan.hlo import Array, Instruction, backend_config

TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu_v2", "mosaic_gpu")
"""What custom kernels are called in a program: Pallas kernels by Mosaic on TPUs, by Triton and Mosaic GPU on GPUs."""


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a custom kernel."""
    return instruction.opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in TARGETS)


def kernel_name(instruction: Instruction) -> str:
    """What its author calls a kernel."""
    named = r'kernel_name\\*"? ?[=:] ?\\*"([\w.]+)|\bname = "([\w.]+)"|([A-Za-z]\w*)_mosaic_gpu\b'
    for found in re.finditer(named, instruction.attributes):
        name = found[1] or found[2] or found[3]
        if name != "stable":  # stable_mosaic_gpu is the language that the module is written in
            return str(name)
    return instruction.name.rstrip("0123456789.")


class Causality(NamedTuple):
    """Which attention skips the blocks above the diagonal."""

    scopes: tuple[str, ...] = ()
    """Named scopes of the model (``encoder``, ``decoder``) whose attention is causal."""
    block: int = 1024
    """Positions of a block."""

    def block_of(self, instruction: Instruction) -> int | None:
        """Size of the blocks that a kernel skips above the diagonal; None: it computes all of them."""
        named = re.search(r'op_name="([^"]*)"', instruction.attributes)
        inside = named is not None and any(
            f"/{scope}/" in f"{named[1]}/" or f"({scope})" in named[1] for scope in self.scopes
        )
        return self.block if inside else None


def kernel_flops(instruction: Instruction, operands: list[Array], causality: Causality) -> float | None:
    """FLOPs of one call of a custom kernel; None: no registry names it, and it gives no estimate of its own."""
    given = backend_config(instruction).get("custom_call_config", {}).get("cost_estimate", {})
    if given.get("flops"):
        return float(given["flops"])
    name = kernel_name(instruction)
    if any(re.search(row.programs, name) for row in POOLING_BACKENDS.values()):
        return 0.0
    for pattern, products in (program for row in ATTENTION_BACKENDS.values() for program in row.programs):
        if re.search(pattern, name):
            wide = [array for array in operands if array.dtype in ("bf16", "f32") and len(array.dims) >= 3]
            if TARGETS[0] not in instruction.attributes:  # [rows, positions, heads, width] as the model has them
                wide = [array._replace(dims=tuple(array.dims[i] for i in (0, 2, 1, 3))) for array in wide[:2]]
            return 2.0 * products * _width_times_pairs(wide, causality.block_of(instruction))
    return None


def _width_times_pairs(wide: list[Array], causal_block: int | None) -> float:
    """Rows * heads * head width * pairs of one attention, from q [..., S, d] and k [..., T, d], which come first."""
    q, k = wide[0], wide[1]
    queries, keys, width = q.dims[-2], k.dims[-2], q.dims[-1]
    heads = q.size / (queries * width)
    if causal_block is None:
        return heads * width * queries * keys
    # Where the group's heads lie side by side, queries are longer than keys by that factor.
    heads, queries = heads * queries / keys, keys
    blocks = -(-queries // min(causal_block, queries))
    return heads * width * queries * keys * (blocks + 1) / (2 * blocks)
