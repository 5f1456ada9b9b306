"""A plan without a compiler: FLOPs, memory and wire of a step by formula, and the time they take at best.

Memory traffic has no formula here, so that the time is a looser bound than that of a compiled program.
"""

from typing import NamedTuple

from lclm_jax.config import Config
from lclm_jax.model.flops import ATTENTION, step_flops
from lclm_jax.plan.memory import parameter_counts
from lclm_jax.plan.topologies import Topology

_BFLOAT16 = 2


class Formula(NamedTuple):
    """One step; bytes and FLOPs of one chip."""

    flops: float
    """Executed."""
    wire: dict[str, float]
    """Mesh axis -> bytes received."""
    compute_s: float
    network_s: float

    @property
    def step_s(self) -> float:
        """Arithmetic and wire, which does not overlap with it."""
        return self.compute_s + self.network_s


def by_formula(config: Config, stage: str, topology: Topology) -> Formula:
    """The step of ``stage`` on ``config.mesh`` over ``topology``."""
    flops = step_flops(config.model, config.stages[stage], config.pack(stage), backend_of(config, topology)).executed
    wire = {axis: count for axis, count in _wire(config, stage, topology).items() if count}
    seconds = sum(_seconds(axis, count, mesh_sizes(config, topology), topology) for axis, count in wire.items())
    share = flops / topology.num_chips
    return Formula(share, wire, share / topology.chip.flops, seconds)


def backend_of(config: Config, topology: Topology) -> str:
    """The attention that the formula of FLOPs assumes on ``topology``."""
    if config.model.attention in ATTENTION:
        return config.model.attention
    return "splash" if topology.chip.dimensions else "pallas_gpu"


def mesh_sizes(config: Config, topology: Topology) -> dict[str, int]:
    """Mesh axis -> size on ``topology``, with -1 filled in."""
    sizes = {axis: getattr(config.mesh, axis) for axis in ("replica", "fsdp", "context", "tensor")}
    given = 1
    for size in sizes.values():
        given *= size if size > 0 else 1
    return {axis: size if size > 0 else max(1, topology.num_chips // given) for axis, size in sizes.items()}


def _wire(config: Config, stage: str, topology: Topology) -> dict[str, float]:
    """Bytes along each axis: weights and gradients in bfloat16, once for each microbatch.

    Weights are gathered for the forward and again for the backward pass. Gradients are scattered once; on TPUs a
    reduction over the whole slice is compiled to an all-reduce, of twice the bytes.
    """
    sizes, settings = mesh_sizes(config, topology), config.stages[stage]
    each = _BFLOAT16 / sizes["tensor"] * settings.microbatches
    counts = parameter_counts(config.model)
    weights = each * sum(counts.values())
    gradients = each * sum(count for part, count in counts.items() if settings.peak_lr(part) is not None)
    n, copies, tensor = sizes["fsdp"] * sizes["context"], sizes["replica"], sizes["tensor"]
    whole = topology.chip.dimensions > 0 and n == topology.chips_per_slice
    rows = settings.batch_rows / (copies * sizes["fsdp"])
    # Every layer gathers and scatters its activations, forward, backward and again.
    activations = 12 * config.model.decoder.num_layers * config.model.decoder.hidden_size * _BFLOAT16
    return {
        "replica": gradients / n * 2 * (copies - 1) / copies,
        "fsdp": (2 * weights + (2 if whole else 1) * gradients) * (n - 1) / n,
        "tensor": rows * config.pack(stage).row_length * activations * (tensor - 1) / tensor,
    }


def _seconds(axis: str, count: float, sizes: dict[str, int], topology: Topology) -> float:
    """Time of ``count`` bytes: inside a slice over all its links, between slices what its chips share out."""
    chip = topology.chip
    links = 2 * chip.dimensions if all(topology.wrap) else max(chip.dimensions, 1)
    fast = count / (links * chip.link_bytes_per_s)
    if topology.slices == 1 or axis == "tensor":
        return fast
    if axis == "replica":
        return count / chip.dcn_bytes_per_s
    crosses = sizes["replica"] % topology.slices != 0  # parameters are cut over slices
    return fast + (count / topology.chips_per_slice / chip.dcn_bytes_per_s if crosses else 0.0)
