import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.config import MeshConfig
from lclm_jax.parallel import make_mesh
from lclm_jax.train.checkpoints.emergency_checkpoint import EmergencyCheckpoints
from lclm_jax.train.core.state import TrainState


def state_on(mesh, step=5):
    rows, alone = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    table = jax.device_put(jnp.arange(24, dtype=jnp.float32).reshape(8, 3), rows)
    scalar = jax.device_put(jnp.int32(step), alone)
    key = jax.device_put(jnp.array([1, 2], jnp.uint32), alone)
    return TrainState(scalar, {"table": table}, {"mu": table.astype(jnp.bfloat16)}, key)


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


@pytest.fixture
def eight():
    return make_mesh(MeshConfig(fsdp=4, replica=2))


def test_the_newest_copy_comes_back_on_its_mesh_only(tmp_path, eight, caplog):
    copies = EmergencyCheckpoints(tmp_path / "copies")
    assert copies.newest() is None and not EmergencyCheckpoints(None).due(10, 5)
    state = state_on(eight)
    for step in (5, 10):
        copies.save(state, step, {"step": step})
    copies.wait()
    assert copies.newest() == 10 and len(list(tmp_path.rglob("*.safetensors"))) == 1
    restored, meta = copies.restore(10, abstract(state))
    assert meta == {"step": 10}
    same = jax.tree.map(lambda a, b: np.array_equal(a, b) and a.sharding == b.sharding, restored, state)
    assert jax.tree.all(same)
    other = state_on(make_mesh(MeshConfig(fsdp=8)))
    assert copies.restore(10, abstract(other)) is None
    assert "the mesh is another" in caplog.text


def test_a_damaged_copy_is_not_used(tmp_path, eight, caplog):
    copies, state = EmergencyCheckpoints(tmp_path), state_on(eight)
    copies.save(state, 5, {})
    copies.wait()
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    assert copies.restore(5, abstract(state)) is None
    path.write_bytes(content[:100])
    assert copies.restore(5, abstract(state)) is None
    assert "is damaged" in caplog.text and "cannot be used" in caplog.text
