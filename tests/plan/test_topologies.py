import pytest

from lclm_jax.errors import LclmError
from lclm_jax.plan.topologies import can_compile, parse_topology


@pytest.mark.parametrize(
    ("name", "devices", "shape", "slices", "wrap"),
    [
        ("v5p:4x4x4", 64, (4, 4, 4), 1, (True, True, True)),
        ("v5p-128", 64, (4, 4, 4), 1, (True, True, True)),
        ("v4-8", 4, (2, 2, 1), 1, (False, False, False)),
        ("v5p:2x4x4", 32, (2, 4, 4), 1, (False, False, False)),
        ("v5e-256", 256, (16, 16), 1, (True, True)),
        ("v6e-256", 256, (16, 16), 1, (True, True)),
        ("v6e:8x8", 64, (8, 8), 1, (False, False)),
        ("v5e:8x16", 128, (8, 16), 1, (False, True)),
        ("2xv5e-256", 512, (16, 16), 2, (True, True)),
        ("V5E-1", 1, (1, 1), 1, (False, False)),
        ("tpu7x:4x4x4", 128, (4, 4, 4), 1, (True, True, True)),
    ],
)
def test_slices(name, devices, shape, slices, wrap):
    topology = parse_topology(name)
    assert (topology.num_devices, topology.shape, topology.slices, topology.wrap) == (devices, shape, slices, wrap)


@pytest.mark.parametrize(("name", "gpus", "nodes"), [("h100:8", 8, 1), ("h200:8x8", 8, 8), ("gb200:2x4", 4, 2)])
def test_nodes(name, gpus, nodes):
    topology = parse_topology(name)
    assert (topology.devices_per_slice, topology.slices, topology.name) == (gpus, nodes, name)


@pytest.mark.parametrize("name", ["v5p:4x4x4", "v5p-128", "2xv6e-256", "h100:8", "b200:8x8", "v5e-8", "2xtpu7x:4x4x4"])
def test_a_topology_is_found_by_its_own_name(name):
    topology = parse_topology(name)
    assert parse_topology(topology.name) == topology


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v7:4x4", "unknown"),
        ("v5p", "unknown"),
        ("v5p:4x4", "3 dimensions"),
        ("v6e:2x2x2", "2 dimensions"),
        ("v5p-127", "no slice known by number"),
        ("v5e-100", "no slice known by number"),
        ("tpu7x-128", "write its shape: tpu7x:4x4x4"),
        ("v5p:0x4x4", "no chips"),
        ("h100:2x2x2", "NODESxGPUS"),
    ],
)
def test_bad_names(name, says):
    with pytest.raises(LclmError, match=says):
        parse_topology(name)


def test_a_tpu7x_has_two_devices_of_half_the_chip():
    topology = parse_topology("tpu7x:2x2x1")
    assert (topology.num_chips, topology.num_devices) == (4, 8)
    assert topology.chip.flops * topology.chip.devices == pytest.approx(2307e12)


def test_gpus_without_a_description_for_the_compiler_are_planned_by_formula():
    assert not can_compile(parse_topology("b200:8")) and not can_compile(parse_topology("gb200:8"))
