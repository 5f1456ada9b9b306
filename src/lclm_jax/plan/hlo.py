"""Compiled HLO text as data: computations, instructions, and how often each runs in one call of the program."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from lclm_jax.errors import LclmError

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_START = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_END = re.compile(r"\}(\s*$|, execution_thread|\s*//)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(\w+)=(?:%([\w.\-]+)|\{(%[^}]*)\})")
_CALLING = ("calls", "to_apply", "body", "condition", "branch_computations", "true_computation", "false_computation")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Array(NamedTuple):
    """Type of an array, and whether it lies in device memory (HBM) rather than in a scratchpad or on the host."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        product = 1
        for dim in self.dims:
            product *= dim
        return product

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        return self.size * element_bytes(self.dtype)


_SCALARS = [Array(dtype, ()) for dtype in ("s32", "u32", "s64")]


class Instruction(NamedTuple):
    """One line of a computation; a tuple's arrays are listed flat."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """Everything after the operands."""
    is_root: bool = False

    def called(self) -> dict[str, list[str]]:
        """Attribute -> names of the computations that it calls."""
        found: dict[str, list[str]] = {}
        for key, one, several in _CALLED.findall(self.attributes):
            if key in _CALLING:
                found[key] = [one] if one else _NAME.findall(several)
        return found


class Computation(NamedTuple):
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        marked = [i for i in self.instructions.values() if i.is_root]
        return marked[0] if marked else list(self.instructions.values())[-1]


class Program(NamedTuple):
    """A module: its computations and the entry's name."""

    computations: dict[str, Computation]
    entry: str

    def executions(self) -> Iterator["Execution"]:
        """Every instruction that runs.

        A loop's body runs trip-count times, nested loops multiply. Every branch of a conditional counts as taken.
        """
        yield from self._executions(self.entry, 1.0, None)

    def _executions(self, name: str, times: float, fused_in: str | None) -> Iterator["Execution"]:
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            yield Execution(computation, instruction, times, fused_in)
            trips = trip_count(self, computation, instruction) if instruction.opcode == "while" else 1
            inside = fused_in or (name if instruction.opcode == "fusion" else None)
            for key, names in instruction.called().items():
                # A reduction's scalar function and a loop's condition cost nothing to speak of.
                if key == "condition" or (key == "to_apply" and instruction.opcode != "call"):
                    continue
                for called in names:
                    yield from self._executions(called, times * trips, inside)


class Execution(NamedTuple):
    """An instruction and where it stands in the run of the program."""

    computation: Computation
    instruction: Instruction
    times: float
    """How often it runs in one call of the program."""
    fused_in: str | None
    """The computation whose fusion it is part of; None: it stands alone."""


def parse(text: str) -> Program:
    """Parse the text of a compiled module (``compiled.as_text()``).

    Computations may carry an execution thread, and an instruction (a kernel's configuration) may span lines.

    Raises:
        LclmError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current, pending = "", None, ""
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = Computation(header[2], {})
                entry = header[2] if header[1] else entry
            continue
        starts, ends = _START.match(line), _END.match(line)
        if (starts or ends) and pending:
            instruction = _instruction(pending)
            current.instructions[instruction.name] = instruction
        pending = line if starts else "" if ends else f"{pending} {line}" if pending else ""
        if ends:
            computations[current.name] = current
            current = None
    if not entry:
        raise LclmError("the text has no ENTRY computation; give the text of a compiled HLO module")
    return Program(computations, entry)


def element_bytes(dtype: str) -> float:
    """Bytes of one element of an HLO type such as ``f32`` or ``bf16``."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) / 8 if digits else 1.0


def arrays_of(text: str) -> tuple[Array, ...]:
    """The arrays of a type, ``(f32[2]{0}, bf16[])`` for example; ``S(1)`` and up are other memories than HBM."""
    return tuple(
        Array(dtype, tuple(int(d) for d in dims.split(",") if d), "S(" not in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int:
    """How often the body of a while loop in ``computation`` runs.

    That is what the compiler noted, else it follows from the bound that the condition compares with, and from where the
    counter begins: not at 0 where the compiler has peeled off the first run.

    Raises:
        LclmError: no number is noted, and the condition compares with several.
    """
    noted = _TRIPS.search(loop.attributes)
    if noted:
        return int(noted[1])
    values = set(_constants(program, loop.called()["condition"][0]))
    if len(values) != 1:
        raise LclmError(f"the trip count of loop {loop.name} is unknown; its condition compares with {sorted(values)}")
    return -(-(values.pop() - _first(program, computation, loop)) // _stride(program, loop))


def _counters(program: Program, loop: Instruction) -> Iterator[int]:
    """Places in the state of a loop that its condition reads."""
    for read in program.computations[loop.called()["condition"][0]].instructions.values():
        index = re.search(r"index=(\d+)", read.attributes)
        if read.opcode == "get-tuple-element" and index is not None:
            yield int(index[1])


def _first(program: Program, computation: Computation, loop: Instruction) -> int:
    """Where the counter of a loop begins; 0 where that is not plain."""
    state = computation.instructions[loop.operands[0]]
    for index in _counters(program, loop):
        if state.opcode == "tuple":
            made = computation.instructions[state.operands[index]]
            while made.opcode in ("copy", "bitcast"):
                made = computation.instructions[made.operands[0]]
            if _is_number(made):
                return int(made.attributes.split()[0])
    return 0


def _stride(program: Program, loop: Instruction) -> int:
    """By how much the counter of a loop grows; 1 where that is not plain. Unrolled loops of the compiler take two."""
    body = program.computations[loop.called()["body"][0]]
    for index in _counters(program, loop):
        if index >= len(body.root.operands):
            continue
        step = body.instructions[body.root.operands[index]]
        constants = [body.instructions[name] for name in step.operands if step.opcode == "add"]
        constants = [part for part in constants if _is_number(part)]
        if constants:
            return max(1, int(constants[0].attributes.split()[0]))
    return 1


def _is_number(instruction: Instruction) -> bool:
    return instruction.opcode == "constant" and instruction.arrays[0] in _SCALARS


def _constants(program: Program, name: str) -> Iterator[int]:
    """The integer scalars in a computation and in what it calls."""
    for instruction in program.computations[name].instructions.values():
        if _is_number(instruction):
            yield int(instruction.attributes.split()[0])
        for names in instruction.called().values():
            for called in names:
                yield from _constants(program, called)


def backend_config(instruction: Instruction) -> dict:
    """The backend's configuration of an instruction as a mapping; empty if it has none in JSON."""
    start = instruction.attributes.find("backend_config={")
    if start < 0:
        return {}
    try:
        return json.JSONDecoder().raw_decode(instruction.attributes[start + len("backend_config=") :])[0]
    except ValueError:
        return {}


def users(computation: Computation) -> dict[str, list[Instruction]]:
    """Name -> the instructions of ``computation`` that read it."""
    found: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in computation.instructions.values():
        for operand in instruction.operands:
            found[operand].append(instruction)
    return found


def _instruction(text: str) -> Instruction:
    head = _START.match(text)
    assert head is not None
    rest = text[head.end() :]
    type_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode_end = rest.index("(", type_end)
    close = _closing(rest, opcode_end)
    inside, opcode = rest[opcode_end + 1 : close], rest[type_end:opcode_end].strip()
    attributes = rest[close + 1 :].lstrip(", ")
    if opcode in ("constant", "parameter"):
        attributes = f"{inside[:64]} {attributes}"  # its value or number
    operands = tuple(_NAME.findall(inside)) if opcode != "constant" else ()
    return Instruction(head[2], arrays_of(rest[:type_end]), opcode, operands, attributes, bool(head[1]))


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return len(text) - 1
