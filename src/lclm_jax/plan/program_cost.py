"""The cost of a compiled program in one call on one device: FLOPs, bytes of memory traffic, collectives."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lclm_jax.plan.hlo import Array, Computation, Execution, Instruction, Program, backend_config, users
from lclm_jax.plan.kernels import Causality, is_kernel, kernel_flops, kernel_name

# fmt: off
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "add-dependency", "opt-barrier", "domain",
})
# fmt: on
"""Instructions that move nothing themselves."""

_EIGHT_BIT = frozenset({"s8", "f8e4m3fn", "f8e5m2"})
"""Types of the operands of 8-bit products."""

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


class Collective(NamedTuple):
    """A collective operation of one device, with all its runs."""

    opcode: str
    payload: float
    """Bytes of one run: the whole gathered, reduced or exchanged array (what a device holds of it in the end, or had
    in the beginning)."""
    group: tuple[int, ...]
    """The devices that take part, as positions in the mesh's flattened order; the group of device 0."""
    times: float
    name: str

    @property
    def received_bytes(self) -> float:
        """Bytes that a device receives, over all runs, in the best algorithm on a ring."""
        return self.times * self.payload * _RECEIVED[self.opcode](max(len(self.group), 1))


_RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}


class ProgramCost(NamedTuple):
    """Totals of one call of the program on one device."""

    dot_flops: float
    """Of matrix products, whether the compiler calls them dots or convolutions."""
    kernel_flops: float
    """Of custom kernels (``kernels``)."""
    unknown_kernels: tuple[str, ...]
    """Kernels that ``kernels`` does not know: their FLOPs are missing."""
    hbm_bytes: float
    """Read from and written to device memory."""
    collectives: tuple[Collective, ...]
    eight_bit_flops: float = 0.0
    """Of ``dot_flops``, those of products of two 8-bit operands: a chip may have a rate of its own for them."""

    @property
    def flops(self) -> float:
        """Everything that was counted."""
        return self.dot_flops + self.kernel_flops


def count(program: Program, devices: int, causality: Causality = Causality()) -> ProgramCost:  # noqa: B008 - immutable
    """The totals of ``program``, compiled for ``devices`` devices; ``causality``: of its attention kernels."""
    dots = kernels = traffic = eight_bit = 0.0
    unknown: dict[str, None] = {}
    collectives: list[Collective] = []
    seen: set[tuple] = set()
    for execution in program.executions():
        instruction, times = execution.instruction, execution.times
        if instruction.opcode in ("dot", "convolution") or _is_cublas(instruction):
            operands = [execution.computation.instructions[name].arrays[0] for name in instruction.operands]
            flops = times * _product_flops(instruction, operands)
            dots += flops
            eight_bit += flops if all(array.dtype in _EIGHT_BIT for array in operands[:2]) else 0.0
        elif is_kernel(instruction):
            operands = [execution.computation.instructions[name].arrays[0] for name in instruction.operands]
            known = kernel_flops(instruction, operands, causality)
            kernels += times * (known or 0.0)
            if known is None:
                unknown[kernel_name(instruction)] = None
        collective = _collective(execution, devices)
        if collective and _is_new(execution, seen):
            collectives.append(collective)
        if execution.fused_in is None and instruction.opcode not in _FREE:
            traffic += times * _boundary(program, execution.computation, instruction)
    return ProgramCost(dots, kernels, tuple(unknown), traffic, tuple(collectives), eight_bit)


def _is_cublas(instruction: Instruction) -> bool:
    """Whether a product is left to NVIDIA's library, as with ``--xla_gpu_enable_triton_gemm=false``."""
    return instruction.opcode == "custom-call" and 'custom_call_target="__cublas$' in instruction.attributes


def _product_flops(product: Instruction, operands: list[Array]) -> float:
    if product.opcode == "convolution":
        return _convolution_flops(product, operands[0], operands[1])
    if _is_cublas(product):
        dimensions = backend_config(product)["gemm_backend_config"]["dot_dimension_numbers"]
        contracted = [int(number) for number in dimensions["lhs_contracting_dimensions"]]
    else:
        contracted = _numbers(product.attributes, "lhs_contracting_dims")
    return 2.0 * product.arrays[0].size * float(np.prod([operands[0].dims[i] for i in contracted]))


def _convolution_flops(product: Instruction, lhs: Array, rhs: Array) -> float:
    """2 * multiply-adds that meet an element, not padding: TPUs write batched products as convolutions."""
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", product.attributes)
    assert labels is not None, product.attributes
    inputs, kernel, _ = (dict(zip(text, array.dims, strict=True)) for text, array in
                         zip(labels.groups(), (lhs, rhs, product.arrays[0]), strict=True))  # fmt: skip
    out = dict(zip(labels[3], product.arrays[0].dims, strict=True))
    groups = _attribute(product.attributes, "batch_group_count", 1)
    flops = 2.0 * inputs["b"] / groups * kernel["i"] * kernel["o"]
    window = _window(product.attributes)
    for order, label in enumerate(sorted(set(labels[1]) - set("bf"))):
        flops *= _valid(inputs[label], kernel[label], out[label], {k: v[order] for k, v in window.items()})
    return flops


def _window(attributes: str) -> dict[str, list[str]]:
    """Field -> its value for each spatial dimension, from ``window={size=4x4 stride=3x1 ...}``."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = found[1].split() if found else []
    return {name: values.split("x") for name, _, values in (field.partition("=") for field in fields)}


def _valid(length: int, size: int, outputs: int, window: dict[str, str]) -> float:
    """Pairs (output, tap of the window) of one spatial dimension that read an element of the input."""
    stride, low = int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0])
    inner, outer = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    starts = np.arange(outputs) * stride - low
    total = 0
    for tap in range(size):
        place = starts + tap * outer
        total += int(((place >= 0) & (place < (length - 1) * inner + 1) & (place % inner == 0)).sum())
    return float(total)


def _collective(execution: Execution, devices: int) -> Collective | None:
    instruction = execution.instruction
    opcode = _between_slices(instruction) or instruction.opcode.removesuffix("-start")
    if opcode not in _COLLECTIVES:
        return None
    operands = [execution.computation.instructions[name].arrays for name in instruction.operands]
    given = sum(array.bytes for arrays in operands for array in arrays)
    read_group = slice_group if instruction.opcode == "send" else replica_group
    group = read_group(instruction.attributes, devices)
    made = sum(array.bytes for array in instruction.arrays)
    if opcode == "all-gather":
        payload = given * len(group)
    elif opcode in ("reduce-scatter", "all-reduce"):
        payload = given
    else:
        payload = min(given, made)
    # On TPUs a reduce-scatter may be an all-reduce in a fusion of that name, which keeps a device's part alone.
    if opcode == "all-reduce" and "reduce-scatter" in execution.computation.name:
        opcode = "reduce-scatter"
    return Collective(opcode, payload, group, execution.times, instruction.name)


def _between_slices(instruction: Instruction) -> str | None:
    """The collective between slices that a ``send`` is part of: TPUs leave those to their hosts."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    return found[1].lower().replace("_", "-") if found and instruction.opcode == "send" else None


def _is_new(execution: Execution, seen: set[tuple]) -> bool:
    """Whether a collective has not been met: one logical gather may be split over several fusions of a computation."""
    if execution.fused_in is None:
        return True
    channel = _attribute(execution.instruction.attributes, "channel_id", 0)
    key = (execution.fused_in, channel, execution.instruction.opcode, execution.instruction.arrays)
    new = key not in seen
    seen.add(key)
    return new


def replica_group(attributes: str, devices: int) -> tuple[int, ...]:
    """The group of device 0 from ``replica_groups=...`` in any of its spellings, or of a permutation's first pair.

    ``{{0,1},{2,3}}`` lists, ``[2,4]<=[4,2]T(1,0)`` reshapes and transposes a count, ``mesh['a'=2,'b'=4] {'b'}`` names
    the axes of a mesh; empty means all devices.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'(\w+)'", mesh[2])
        ids = np.arange(int(np.prod(list(sizes.values())))).reshape(list(sizes.values()))
        index = tuple(slice(None) if name in axes else 0 for name in sizes)
        return tuple(int(i) for i in np.ravel(ids[index]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        dims = [int(d) for d in iota[3].split(",")]
        ids = np.arange(int(np.prod(dims))).reshape(dims)
        ids = ids.transpose([int(d) for d in iota[4].split(",")]) if iota[4] else ids
        groups = ids.reshape(int(iota[1]), int(iota[2]))
        return tuple(int(i) for i in groups[np.argmax((groups == 0).any(axis=1))])
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)", attributes)
    if pairs:
        all_pairs = [(int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
        return next((pair for pair in all_pairs if pair[0] != pair[1]), all_pairs[0])  # some may keep what they have
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return tuple(int(i) for i in listed[1].split(","))
    return tuple(range(devices))


def slice_group(attributes: str, devices: int) -> tuple[int, ...]:
    """The group of device 0 in a collective between slices; the mesh has the devices slice by slice.

    ``{1,2}x{0:63}`` joins the same device of each of these slices, counted from 1; ``{{100000,300000},...}`` lists
    groups of slice * 100000 + device.
    """
    target = attributes.partition("_xla_megascale_target=")[2].partition("_xla_megascale_transfer")[0]
    groups = [[int(number) for number in text.split(",")] for text in re.findall(r"\{([\d,]+)\}", target)]
    if "}x{" not in target:
        groups = [[number // 100000 for number in group] for group in groups]
    slices = max(map(max, groups))
    return tuple((number - 1) * (devices // slices) for number in groups[0])


def _boundary(program: Program, computation: Computation, instruction: Instruction) -> float:
    """Bytes of device memory that an instruction reads and writes."""
    opcode, made = instruction.opcode, _hbm(instruction.arrays)
    operands = [a for name in instruction.operands for a in computation.instructions[name].arrays]
    if opcode.endswith("-done"):
        return made
    if opcode.removesuffix("-start") in ("slice", "dynamic-slice", "gather"):
        # A slice is read; of an asynchronous one the result is counted when it is done.
        read = min(a.bytes for a in instruction.arrays if a.dims) if operands[0].in_hbm else 0.0
        return read if opcode.endswith("-start") else read + made
    if opcode.endswith("-start") or opcode in ("send", "recv"):
        return _hbm(operands)
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes if operands[0].in_hbm else 0.0
    if opcode == "fusion":
        return _fusion_bytes(program.computations[instruction.called()["calls"][0]], computation, instruction)
    return _hbm(operands) + made


def _fusion_bytes(body: Computation, computation: Computation, fusion: Instruction) -> float:
    """Operands of which a slice is read count with that slice; results that are updated in place, with the update."""
    readers, total = users(body), 0.0
    parameters = {int(i.attributes.split()[0]): i for i in body.instructions.values() if i.opcode == "parameter"}
    for number, name in enumerate(fusion.operands):
        arrays = computation.instructions[name].arrays
        reads = list(_reads(body, readers, parameters[number].name)) if number in parameters else [None]
        known = [size for size in reads if size is not None]
        total += min(_hbm(arrays), sum(known)) if len(known) == len(reads) else _hbm(arrays)
    results = body.root.operands if body.root.opcode == "tuple" else (body.root.name,)
    for array, name in zip(fusion.arrays, results, strict=False):
        if array.in_hbm:
            made = _behind(body, name)
            update = made.opcode == "dynamic-update-slice"
            total += body.instructions[made.operands[1]].arrays[0].bytes if update else array.bytes
    return total


def _reads(body: Computation, readers: dict[str, list[Instruction]], name: str) -> Iterator[float | None]:
    """Bytes that each reader of a value takes of it; None: all of it."""
    for reader in readers.get(name, []):
        if reader.opcode in ("bitcast", "convert") and not reader.is_root:
            yield from _reads(body, readers, reader.name)
        elif reader.opcode in ("dynamic-slice", "slice", "gather") and reader.operands[0] == name:
            yield reader.arrays[0].bytes
        elif reader.opcode == "dynamic-update-slice" and reader.operands[0] == name:
            yield 0.0
        else:
            yield None


def _behind(body: Computation, name: str) -> Instruction:
    """The instruction that makes a value, through changes of shape."""
    instruction = body.instructions[name]
    while instruction.opcode in ("bitcast", "copy", "convert") and instruction.operands[0] in body.instructions:
        instruction = body.instructions[instruction.operands[0]]
    return instruction


def _hbm(arrays: tuple[Array, ...] | list[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_hbm)


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(name + r"=\{([\d,]*)\}", attributes)
    return [int(n) for n in found[1].split(",") if n] if found else []


def _attribute(attributes: str, name: str, default: int) -> int:
    found = re.search(rf"\b{name}=(\d+)", attributes)
    return int(found[1]) if found else default
