"""The forecast of a compiled program: the TPU compiler's own estimate of each fusion in place of formulas.

XLA for TPUs writes ``estimated_cycles`` beside every fusion and copy of the text that a plan parses. It knows layouts,
padding and what overlaps inside a fusion, and what flags change of it. It has no estimate of custom kernels, whose
rates stay those that were timed.
"""

import dataclasses
import re

from lclm_jax.parallel.hardware import Chip
from lclm_jax.plan.expected.expected import Expected
from lclm_jax.plan.expected.rates import EXPOSED
from lclm_jax.plan.hlo import Execution, Program
from lclm_jax.plan.kernels import is_kernel

CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "tpu7x": 2.2e9}
"""Cycles a second: the peak of the chip by the FLOPs that its matrix units do in a cycle."""

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PRODUCTS = frozenset({"dot", "convolution"})
_ROWS = frozenset({"sort", "scatter", "gather"})
_COLLECTIVE = re.compile(r"all-|reduce-scatter|collective")


def refined(expected: Expected, program: Program, network_s: float, chip: Chip) -> Expected:
    """``expected`` with the compiler's estimate of products and elementwise work in ``program``.

    ``network_s`` is the time of its collectives. A program without estimates, as those for GPUs, changes nothing.
    """
    clock = CLOCKS.get(chip.name)
    totals = cycles(program)
    if clock is None or not sum(totals.values()):
        return expected
    return dataclasses.replace(
        expected,
        products_s=totals["products"] / clock,
        elementwise_s=totals["elementwise"] / clock,
        # The update of the parameters is among the elementwise work.
        optimizer_s=0.0,
        network_s=EXPOSED * network_s,
        compiled=True,
    )


def cycles(program: Program) -> dict[str, float]:
    """Estimated cycles of all runs of what stands alone, by kind: ``products``, ``elementwise``.

    Left out is what has a rate of its own (kernels, collectives, lookups) or runs beside the rest (copies that are
    begun and awaited).
    """
    totals = {"products": 0.0, "elementwise": 0.0}
    for execution in program.executions():
        estimate = _CYCLES.search(execution.instruction.attributes)
        if execution.fused_in is None and estimate and not is_kernel(execution.instruction):
            kind = _kind(program, execution)
            if kind is not None:
                totals[kind] += int(estimate[1]) * execution.times
    return totals


def _kind(program: Program, execution: Execution) -> str | None:
    instruction = execution.instruction
    opcodes = {instruction.opcode}
    if instruction.opcode == "fusion":
        body = program.computations[instruction.called()["calls"][0]]
        opcodes = {one.opcode for one in body.instructions.values()}
    if opcodes & _PRODUCTS:
        return "products"
    if opcodes & _ROWS or any(_COLLECTIVE.match(opcode) for opcode in opcodes):
        return None
    return None if instruction.opcode.endswith(("-start", "-done")) else "elementwise"
