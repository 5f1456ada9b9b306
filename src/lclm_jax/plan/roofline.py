"""From what a program does to the time it takes at best: arithmetic, memory and network at their peak rates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from lclm_jax.plan.program_cost import Collective, ProgramCost
from lclm_jax.plan.topologies import Topology


class Roofline(NamedTuple):
    """Seconds of one step at peak rates."""

    compute_s: float
    hbm_s: float
    network_s: float

    @property
    def step_s(self) -> float:
        """Arithmetic and memory traffic overlap; collectives do not, unless flags make them asynchronous."""
        return max(self.compute_s, self.hbm_s) + self.network_s

    @property
    def bound(self) -> str:
        """What takes longest: ``compute``, ``HBM`` or ``network``."""
        return max((self.compute_s, "compute"), (self.hbm_s, "HBM"), (self.network_s, "network"))[1]


class Wiring(NamedTuple):
    """The mesh of a plan: which devices stand where."""

    topology: Topology
    shape: dict[str, int]
    """Mesh axis -> size, in the mesh's order."""
    devices: Sequence[jax.Device]
    """In the mesh's flattened order."""

    @property
    def on_gpus(self) -> bool:
        """Whether the devices are GPUs on a switch, not chips of a torus."""
        return self.topology.chip.dimensions == 0

    def axes_of(self, group: Sequence[int]) -> str:
        """The mesh axes along which a group of devices extends, joined by ``+``; ``none`` for a group of one."""
        places = [self._place(member) for member in group]
        varying = [axis for number, axis in enumerate(self.shape) if len({place[number] for place in places}) > 1]
        return "+".join(varying) or "none"

    def seconds(self, collective: Collective) -> float:
        """Time of all runs of a collective: over fast links inside a slice, over the data-centre network between."""
        members = [self.devices[number] for number in collective.group if number < len(self.devices)]
        slices = {slice_of(device, self.topology) for device in members}
        inside = len(members) // max(len(slices), 1)
        links = self._links([device for device in members if slice_of(device, self.topology) == min(slices)])
        time = 0.0
        if inside > 1:
            local = collective._replace(group=collective.group[:inside])
            time += local.received_bytes / (links * self.topology.chip.link_bytes_per_s)
        if len(slices) > 1:
            # Hierarchical: what crosses has first been cut over the chips of the slice.
            across = collective._replace(group=tuple(range(len(slices))), payload=collective.payload / inside)
            time += across.received_bytes / self.topology.chip.dcn_bytes_per_s
        return time

    def _links(self, devices: Sequence[jax.Device]) -> int:
        """Links of a chip that bring in the bytes of a collective among ``devices`` of one slice.

        Two for each dimension of the torus that the group fills and that wraps around; one for any other dimension it
        extends along, where the chips at the ends have only one neighbour.
        """
        if self.on_gpus or len(devices) < 2:
            return 1
        links = 0
        for dimension, (side, wraps) in enumerate(zip(self.topology.shape, self.topology.wrap, strict=True)):
            extent = len({device.coords[dimension] for device in devices})
            if extent > 1:
                links += 2 if wraps and extent == side else 1
        return max(links, 1)

    def _place(self, member: int) -> tuple[int, ...]:
        place = []
        for size in reversed(self.shape.values()):
            member, rest = divmod(member, size)
            place.append(rest)
        return tuple(reversed(place))


def slice_of(device: jax.Device, topology: Topology) -> int:
    """Number of the slice (for GPUs: of the node) that a device belongs to."""
    if topology.slices == 1:
        return 0
    # All GPUs are one slice to JAX, whatever their nodes.
    number = getattr(device, "slice_index", None) if topology.chip.dimensions else None
    return int(number) if number is not None else device.id // topology.devices_per_slice


def roofline(cost: ProgramCost, wiring: Wiring) -> Roofline:
    """Times of ``cost`` at the peak rates of the wiring's chips."""
    chip = wiring.topology.chip
    network = math.fsum(wiring.seconds(collective) for collective in cost.collectives)
    slow, fast = cost.flops - cost.eight_bit_flops, cost.eight_bit_flops
    compute = slow / chip.flops + fast / (chip.eight_bit[1] if chip.eight_bit else chip.flops)
    return Roofline(compute, cost.hbm_bytes / chip.hbm_bytes_per_s, network)


def collective_bytes_by_axes(cost: ProgramCost, wiring: Wiring) -> dict[str, float]:
    """Mesh axes -> bytes that a device receives from collectives along them, largest first."""
    totals: dict[str, float] = {}
    for collective in cost.collectives:
        axes = wiring.axes_of(collective.group)
        totals[axes] = totals.get(axes, 0.0) + collective.received_bytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
