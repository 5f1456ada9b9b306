"""What one replica of the mesh holds, for all of them: bit for bit, over the links between devices.

Replicas (the mesh axis ``replica``) hold the same values. So a process whose own are lost gets them from any replica
that has all of its own, and storage need not be asked.
"""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "replica"
Shard = tuple[jax.Device, np.ndarray | None]
"""A device of this process and its part of an array; None: it is not needed, as the device is of another replica."""


def replica_of(mesh: Mesh) -> dict[jax.Device, int]:
    """The replica that each device of ``mesh`` belongs to."""
    assert mesh.axis_names[0] == _AXIS
    return {device: number for number, devices in enumerate(mesh.devices) for device in devices.flat}


def processes_of(mesh: Mesh) -> list[set[int]]:
    """The processes that have devices of each replica."""
    return [{device.process_index for device in devices.flat} for devices in mesh.devices]


def one_reads_for_all(mesh: Mesh) -> bool:
    """Whether there are several replicas, and no process has devices of two: then one can read what all need."""
    ranks = processes_of(mesh)
    return len(ranks) > 1 and sum(map(len, ranks)) == len(set().union(*ranks))


def on_first_replica(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """``leaf`` on the devices of the first replica alone."""
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)
    mesh = Mesh(sharding.mesh.devices[:1], sharding.mesh.axis_names)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, sharding.spec))


def from_first_replica(leaf: jax.ShapeDtypeStruct, there: jax.Array | None) -> jax.Array:
    """The array in the sharding of ``leaf``, of the one on the first replica; all processes call it.

    ``there``: that array, None in a process that has none of its devices.
    """
    assert leaf.sharding is not None
    parts = {} if there is None else {shard.device: np.asarray(shard.data) for shard in there.addressable_shards}
    mine = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    return spread(leaf, [(device, parts.get(device)) for device in mine], source=0)


def complete_replica(mesh: Mesh, mine: bool) -> int | None:
    """The first replica all of whose processes say True; None if there is none. All processes call it."""
    if jax.process_count() == 1:
        return 0 if mine else None
    with jax.transfer_guard("allow"):
        said = np.asarray(multihost_utils.process_allgather(np.array(mine)))
    return next((number for number, ranks in enumerate(processes_of(mesh)) if said[list(ranks)].all()), None)


def steps_of_a_replica(mesh: Mesh, by_process: list[Collection[int]]) -> set[int]:
    """Steps that all processes of some replica have."""
    return set().union(*(set.intersection(*(set(by_process[rank]) for rank in ranks)) for ranks in processes_of(mesh)))


def spread(leaf: jax.ShapeDtypeStruct, shards: list[Shard], source: int) -> jax.Array:
    """The array in the sharding of ``leaf``, with the values that the devices of the replica ``source`` have.

    The bits are summed as whole numbers, those of the other replicas being zero: a sum of floats would lose the sign
    of a zero.

    Args:
        leaf: shape, dtype and sharding (a ``NamedSharding``).
        shards: the part of every device of this process.
        source: the replica.
    """
    sharding = leaf.sharding
    assert isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)
    mesh, number = sharding.mesh, replica_of(sharding.mesh)
    part, words = sharding.shard_shape(leaf.shape), np.dtype(f"uint{8 * leaf.dtype.itemsize}")
    pieces = []
    for device, values in shards:
        if number[device] == source:
            assert values is not None
            bits = np.asarray(values).view(words) if values.ndim else np.asarray(values)[None].view(words)[0]
        else:
            bits = np.zeros(part, words)
        pieces.append(jax.device_put(bits.astype(np.uint32)[None], device))
    stacked = NamedSharding(mesh, PartitionSpec(_AXIS, *sharding.spec))
    of_all = jax.make_array_from_single_device_arrays((mesh.shape[_AXIS], *leaf.shape), stacked, pieces)

    def merge(bits: jax.Array) -> jax.Array:
        narrow = bits.sum(axis=0, dtype=jnp.uint32).astype(words)
        return jax.lax.bitcast_convert_type(narrow, leaf.dtype)

    return jax.jit(merge, out_shardings=sharding)(of_all)
