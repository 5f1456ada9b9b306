from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.errors import LclmError
from lclm_jax.parallel import AXES, make_mesh, row_parts
from lclm_jax.parallel.mesh import _arranged


def test_free_axis_takes_what_is_left():
    mesh = make_mesh(MeshConfig(replica=2, tensor=2))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert mesh.axis_names == AXES


def test_some_of_the_devices():
    mesh = make_mesh(MeshConfig(context=2), jax.devices()[:4])
    assert mesh.shape["fsdp"] == 2 and mesh.devices.size == 4


def test_errors_name_the_product_and_the_devices():
    with pytest.raises(LclmError, match="takes 4 devices and there are 8"):
        make_mesh(MeshConfig(fsdp=4))
    with pytest.raises(LclmError, match="a multiple of 3 devices and there are 8"):
        make_mesh(MeshConfig(tensor=3))
    with pytest.raises(LclmError, match="at most one is -1; change fsdp, tensor"):
        make_mesh(MeshConfig(tensor=-1))
    with pytest.raises(LclmError, match="change context"):
        make_mesh(MeshConfig(context=0))


def test_slices_differ_along_replica_then_fsdp():
    devices = [
        SimpleNamespace(id=i, slice_index=i // 4, process_index=i // 2, platform="cpu", device_kind="cpu")
        for i in range(16)
    ]

    def slices(shape):
        return np.vectorize(lambda device: device.slice_index)(_arranged(shape, devices))

    assert (slices((4, 2, 1, 2)) == np.arange(4)[:, None, None, None]).all()
    both = slices((2, 4, 2, 1))
    assert (both == np.array([[0, 0, 1, 1], [2, 2, 3, 3]])[:, :, None, None]).all()
    with pytest.raises(LclmError, match=r"does not spread over 4 slices.*make mesh.replica a multiple of 4"):
        _arranged((1, 1, 4, 4), devices)


@pytest.mark.parametrize("shape", [(1, 64, 1, 1), (2, 32, 1, 1), (1, 8, 8, 1), (2, 8, 2, 2)], ids=str)
@pytest.mark.parametrize("slices", [1, 2])
def test_any_mesh_lies_on_a_torus(shape, slices):
    devices = [
        SimpleNamespace(
            id=i, coords=(i % 4, i // 4 % 4, i // 16 % 4), core_on_chip=0, slice_index=i // 64, process_index=i // 4,
            platform="tpu", device_kind="TPU v5",
        )
        for i in range(64 * slices)
    ]  # fmt: skip
    mesh = _arranged((shape[0] * slices, *shape[1:]), devices)
    assert sorted(device.id for device in mesh.flat) == list(range(64 * slices))
    by_slice = mesh.reshape(slices, -1)
    assert all(device.slice_index == number for number, part in enumerate(by_slice) for device in part)


def test_row_parts_of_a_process():
    mesh = make_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    assert row_parts(mesh) == ((0, 1, 2, 3), 4)
    others = np.vectorize(lambda number: SimpleNamespace(process_index=number))
    # Process 0 has the first device of parts 0 and 2: what a TPU's order of devices can look like.
    scattered = SimpleNamespace(devices=others([[[[0, 1]], [[2, 3]]], [[[0, 1]], [[2, 3]]]]), shape=mesh.shape)
    assert row_parts(scattered) == ((0, 2), 4)
