import jax
import pytest

from lclm_jax.config import MeshConfig
from lclm_jax.parallel import AXES, make_mesh


def test_free_axis_takes_what_is_left():
    mesh = make_mesh(MeshConfig(replica=2, tensor=2))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "context": 1, "tensor": 2}
    assert mesh.axis_names == AXES


def test_some_of_the_devices():
    mesh = make_mesh(MeshConfig(context=2), jax.devices()[:4])
    assert mesh.shape["fsdp"] == 2 and mesh.devices.size == 4


def test_errors_name_the_product_and_the_devices():
    with pytest.raises(ValueError, match="takes 4 devices and there are 8"):
        make_mesh(MeshConfig(fsdp=4))
    with pytest.raises(ValueError, match="a multiple of 3 devices and there are 8"):
        make_mesh(MeshConfig(tensor=3))
    with pytest.raises(ValueError, match="at most one is -1; change fsdp, tensor"):
        make_mesh(MeshConfig(tensor=-1))
    with pytest.raises(ValueError, match="change context"):
        make_mesh(MeshConfig(context=0))
