"""Devices of accelerators that need not be there: programs are compiled for them, nothing runs."""

import functools
import os
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from lclm_jax.parallel import AXES, use_mesh
from lclm_jax.plan.topologies import (
    GPU_PACKAGES,
    can_compile,
    compile_only_devices,
    parse_topology,
    prepare_environment,
)

prepare_environment()  # JAX is imported but has touched no device yet
# As for a run, not as tests/conftest.py has it, whose LLVM optimises nothing: kernels would spill registers. And there
# is no GPU to try variants of a product on.
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"

SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@functools.cache
def devices_of(name):
    """Devices of a slice by name; for ``h100`` those of one GPU, if the compiler of GPUs is installed."""
    topology = parse_topology("h100:1" if name == "h100" else SLICES.get(name, name))
    if topology.chip.dimensions == 0 and not can_compile(topology):
        pytest.skip(f"needs {', '.join(GPU_PACKAGES)}")
    return compile_only_devices(topology)


@pytest.fixture
def topology():
    """``topology(name)``: compile-only devices of a slice such as ``v5p:2x2x1``, of a kind of chip, or of ``h100``."""
    return devices_of


@pytest.fixture
def one_chip(topology):
    """``with one_chip(name) as mesh``: a mesh of one chip of that kind; kernels see what they are compiled for."""

    @contextmanager
    def entered(name):
        mesh = Mesh(np.asarray(topology(name)[:1]).reshape(1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
        with use_mesh(mesh):
            yield mesh

    return entered


@pytest.fixture
def arguments():
    """``arguments(mesh, *(shape, dtype))``: stand-ins for arrays that every device of the mesh holds."""

    def stand_ins(mesh, *shapes):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        return [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in shapes]

    return stand_ins


_LINES: list[str] = []


@pytest.fixture
def report():
    """``report(name, **figures)``: what the compiler says of a program, listed at the end of the run."""

    def note(name, **figures):
        _LINES.append(name + "".join(f"  {key}={value:.1f}" for key, value in figures.items()))

    return note


def pytest_terminal_summary(terminalreporter):
    """What the compiler gave."""
    terminalreporter.section("compiled")
    for line in _LINES:
        terminalreporter.write_line(line)
