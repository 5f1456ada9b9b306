from types import SimpleNamespace

import pytest

from lclm_jax.plan.program_cost import Collective, ProgramCost
from lclm_jax.plan.roofline import Wiring, collective_bytes_by_axes, roofline
from lclm_jax.plan.topologies import parse_topology


def wiring(name, **sizes):
    """Devices of a topology in their natural order, x fastest."""
    topology = parse_topology(name)
    devices = []
    for number in range(topology.num_devices):
        inside, coords = number % topology.devices_per_slice, []
        for side in topology.shape:
            inside, rest = divmod(inside, side)
            coords.append(rest)
        part = number // topology.devices_per_slice if topology.chip.dimensions else 0  # nodes of GPUs are one to JAX
        devices.append(SimpleNamespace(id=number, coords=coords, slice_index=part))
    shape = {"replica": 1, "fsdp": 1, "context": 1, "tensor": 1} | sizes
    return Wiring(topology, shape, devices)


def gather(group, payload=1e9):
    return Collective("all-gather", payload, tuple(group), 1.0, "gather")


@pytest.mark.parametrize(
    ("name", "links"), [("v5p:4x4x4", 6), ("v5p:2x2x2", 3), ("v5e:8x8", 2), ("v5e:16x16", 4), ("v5e:8x16", 3)]
)
def test_links_of_a_whole_slice(name, links):
    place = wiring(name, fsdp=parse_topology(name).num_devices)
    collective = gather(range(len(place.devices)))
    assert place.seconds(collective) == pytest.approx(
        collective.received_bytes / (links * place.topology.chip.link_bytes_per_s)
    )


def test_a_group_along_one_side_of_the_torus_has_two_links():
    place = wiring("v5p:4x4x4", fsdp=16, tensor=4)
    assert place.axes_of([0, 1, 2, 3]) == "tensor"
    assert place.axes_of([0, 4, 8]) == "fsdp"
    assert place.seconds(gather([0, 1, 2, 3])) == pytest.approx(0.75e9 / (2 * 90e9))


def test_what_crosses_slices_takes_the_slow_network():
    place = wiring("2xv5e:2x2", replica=2, fsdp=4)
    reduce = Collective("all-reduce", 1e9, tuple(range(8)), 1.0, "reduce")
    inside, across = 2 * 0.75 * 1e9 / (2 * 45e9), 2 * 0.5 * 0.25e9 / 3.125e9
    assert place.axes_of(reduce.group) == "replica+fsdp"
    assert place.seconds(reduce) == pytest.approx(inside + across)


def test_what_crosses_nodes_of_gpus_takes_the_slow_network():
    place = wiring("h100:2x4", replica=2, fsdp=4)
    assert place.seconds(gather([0, 1, 2, 3])) == pytest.approx(0.75e9 / 450e9)
    assert place.seconds(gather([0, 4])) == pytest.approx(0.5e9 / 50e9)


@pytest.mark.parametrize(("name", "rate"), [("v5p:4x4x4", 918e12), ("v4:4x4x4", 275e12), ("h100:8", 1978.9e12)])
def test_products_of_8_bits_have_a_rate_of_their_own(name, rate):
    place = wiring(name)
    cost = ProgramCost(2 * rate + place.topology.chip.flops, 0.0, (), 0.0, (), eight_bit_flops=2 * rate)
    assert roofline(cost, place).compute_s == pytest.approx(3.0)


def test_bound_and_totals():
    place = wiring("v5p:4x4x4", fsdp=64)
    cost = ProgramCost(459e12, 0.0, (), 2765e9 * 2, (gather(range(64)),))
    times = roofline(cost, place)
    assert (times.compute_s, times.hbm_s, times.bound) == (1.0, 2.0, "HBM")
    assert times.step_s == 2.0 + times.network_s
    assert collective_bytes_by_axes(cost, place) == {"fsdp": pytest.approx(63 / 64 * 1e9)}
