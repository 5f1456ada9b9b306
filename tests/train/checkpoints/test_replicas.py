import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.config import MeshConfig
from lclm_jax.parallel import make_mesh
from lclm_jax.train.checkpoints import replicas
from lclm_jax.train.checkpoints.replicas import complete_replica, replica_of, spread, steps_of_a_replica


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(replica=2, fsdp=4))


BITS = [0x80000000, 0x7FC00001, 0xFF800000, 0x00000001, 0x3F800000, 0xFFFFFFFF, 0, 0x80000001]
"""Negative zero, two NaNs, an infinity, the smallest numbers: what a sum of floats would change."""


@pytest.mark.parametrize("source", [0, 1])
@pytest.mark.parametrize(
    ("values", "spec"),
    [
        (np.array(BITS, np.uint32).view(np.float32), PartitionSpec("fsdp")),
        (np.array(BITS, np.uint32).view(ml_dtypes.bfloat16).reshape(8, 2), PartitionSpec("fsdp", None)),
        (np.array(BITS, np.uint32), PartitionSpec()),
        (np.int32(-7), PartitionSpec()),
    ],
)
def test_one_replica_gives_all_its_bits(mesh, source, values, spec):
    sharding = NamedSharding(mesh, spec)
    leaf = jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)
    number = replica_of(mesh)
    where = sharding.addressable_devices_indices_map(values.shape)
    shards = [(device, np.asarray(values[index]) if number[device] == source else None)
              for device, index in where.items()]  # fmt: skip
    found = spread(leaf, shards, source)
    assert found.sharding == sharding and found.dtype == values.dtype
    words = np.dtype(f"uint{8 * values.dtype.itemsize}")
    for shard in found.addressable_shards:
        np.testing.assert_array_equal(
            np.atleast_1d(np.asarray(shard.data)).view(words), np.atleast_1d(values[shard.index]).view(words)
        )
    assert jnp.isnan(found).any() or values.dtype.kind in "iu"


def test_a_replica_is_complete_if_all_of_its_processes_are(mesh, monkeypatch):
    assert complete_replica(mesh, True) == 0 and complete_replica(mesh, False) is None
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(replicas, "processes_of", lambda mesh: [{0, 1}, {2, 3}])
    for said, wanted in (([1, 0, 1, 1], 1), ([1, 1, 0, 1], 0), ([0, 1, 1, 0], None)):
        monkeypatch.setattr(replicas.multihost_utils, "process_allgather", lambda mine, said=said: np.array(said, bool))
        assert complete_replica(mesh, True) == wanted
    assert steps_of_a_replica(mesh, [{5, 10}, {10}, {15, 20}, {20}]) == {10, 20}
    assert steps_of_a_replica(mesh, [{5}, {10}, set(), {20}]) == set()
