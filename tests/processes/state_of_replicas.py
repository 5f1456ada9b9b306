"""One process of several: saves a state that two replicas hold, or restores it and compares; exit status 0 if whole.

``python state_of_replicas.py save|restore FOLDER``, with the variables of several processes set.
"""

import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.config import CheckpointConfig, MeshConfig
from lclm_jax.config.train import ProcessesConfig
from lclm_jax.parallel import join_processes, make_mesh
from lclm_jax.paths import to_path
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.core.state import TrainState


def main(what: str, folder: str) -> None:
    with join_processes(ProcessesConfig(start_timeout_seconds=600, lost_timeout_seconds=300)):
        mesh = make_mesh(MeshConfig(replica=2, fsdp=-1))
        rng = np.random.default_rng(0)

        def put(array, *spec):
            sharding = NamedSharding(mesh, PartitionSpec(*spec))
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        table = rng.standard_normal((1024, 512)).astype(np.float32)
        table[0, 0] = -0.0
        state = TrainState(
            put(np.array(7, np.int32)),
            {"embed": {"table": put(table, "fsdp")}},
            {"mu": put(rng.standard_normal((512, 512)).astype(np.float32), None, "fsdp")},
            put(np.array([1, 2], np.uint32)),
        )
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        with Checkpoints(to_path(folder), CheckpointConfig()) as checkpoints:
            if what == "save":
                checkpoints.save(state, 7, {"step": 7})
                return
            restored = checkpoints.restore(7, shapes)
        for mine, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            assert mine.sharding == saved.sharding
            ours, theirs = (np.asarray(one.addressable_data(0)).tobytes() for one in (mine, saved))
            assert ours == theirs, (ours[:64], theirs[:64])


if __name__ == "__main__":
    main(*sys.argv[1:])
