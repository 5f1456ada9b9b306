"""The forecast of a compiled program: the TPU compiler's own estimate of each fusion in place of formulas.

XLA for TPUs writes ``estimated_cycles`` beside every fusion and copy of the text that a plan parses. It knows layouts,
padding and what overlaps inside a fusion, and what flags change of it. It has no estimate of custom kernels, whose
rates stay those that were timed.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from lclm_jax.parallel.hardware import Chip
from lclm_jax.plan.expected.expected import Expected
from lclm_jax.plan.expected.rates import EXPOSED
from lclm_jax.plan.hlo import Execution, Instruction, Program
from lclm_jax.plan.kernels import is_kernel

CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9, "tpu7x": 2.2e9}
"""Cycles a second: the peak of the chip by the FLOPs that its matrix units do in a cycle."""

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PRODUCTS = frozenset({"dot", "convolution"})
_ROWS = frozenset({"sort", "scatter", "gather"})
_COLLECTIVE = re.compile(r"all-|reduce-scatter|collective")
_OP_NAME = re.compile(r'op_name="([^"]*/[^"]*)"')
_WRAPPING = re.compile(r"\b(?:jit|jvp|transpose|vmap|remat|custom_vjp)\(([^()]*)\)")
_PLUMBING = frozenset({"while", "body", "cond", "checkpoint", "rematted_computation", "closed_call", "eval_jaxpr"})
"""Parts of an operation's name that say how JAX came to it, not where in the model it stands."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """A fusion or copy of the compiled step, or several of one place, kind and result."""

    place: str
    """Where in the model, and ``backward`` or ``again`` (recomputed) behind it; the compiler's name if it has none."""
    kind: str
    """``products``, ``elementwise``, or ``copy``: elementwise work that only changes a layout or a place."""
    result: str
    runs: float
    """In one step."""
    seconds: float
    """Of all runs, by the compiler's estimate."""


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
    for execution, kind, estimate in _estimated(program):
        totals[kind] += estimate * execution.times
    return totals


def operations(program: Program, chip: Chip) -> tuple[Operation, ...]:
    """What ``cycles`` sums, by place in the model, kind and result; the longest first."""
    clock = CLOCKS.get(chip.name)
    if clock is None:
        return ()
    total: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    runs = total.copy()
    for execution, kind, estimate in _estimated(program):
        instruction = execution.instruction
        result = " ".join(f"{array.dtype}{list(array.dims)}" for array in instruction.arrays[:2])
        key = (_place(instruction), "copy" if instruction.opcode == "copy" else kind, result)
        total[key] += estimate * execution.times
        runs[key] += execution.times
    longest = sorted(total, key=lambda key: -total[key])
    return tuple(Operation(*key, runs[key], total[key] / clock) for key in longest)


def _estimated(program: Program) -> Iterator[tuple[Execution, str, int]]:
    """(what stands alone, its kind, its estimated cycles)."""
    for execution in program.executions():
        estimate = _CYCLES.search(execution.instruction.attributes)
        if execution.fused_in is None and estimate and not is_kernel(execution.instruction):
            kind = _kind(program, execution)
            if kind is not None:
                yield execution, kind, int(estimate[1])


def _place(instruction: Instruction) -> str:
    found = _OP_NAME.search(instruction.attributes)
    if found is None:
        return instruction.name
    name, before = found[1], ""
    turn = "backward" if "transpose(" in name else ""
    turn = "again" if "rematted_computation" in name else turn
    while name != before:
        name, before = _WRAPPING.sub(r"\1", name), name
    parts = [part for part in name.split("/")[1:] if part and part not in _PLUMBING]
    return "/".join(parts) + f" ({turn})" * bool(turn)


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
