"""One process of several: writes a local copy, loses its file if it is the first, and restores; exit status 0 if whole.

``python copies_of_a_replica.py FOLDER``, with the variables of several processes set.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lclm_jax.config import MeshConfig
from lclm_jax.config.train import ProcessesConfig
from lclm_jax.parallel import join_processes, make_mesh, wait_for_all
from lclm_jax.train.checkpoints.emergency_checkpoint import EmergencyCheckpoints
from lclm_jax.train.core.state import TrainState


def main(folder: Path) -> None:
    with join_processes(ProcessesConfig(start_timeout_seconds=600, lost_timeout_seconds=300)):
        mesh = make_mesh(MeshConfig(replica=2, fsdp=1))
        alone = NamedSharding(mesh, PartitionSpec())
        values = np.array([-0.0, 1.5, -2.0, 3e-39], np.float32)

        def put(array):
            return jax.make_array_from_callback(array.shape, alone, lambda index: array[index])

        state = TrainState(
            put(np.array(7, np.int32)),
            {"table": put(values)},
            {"mu": put(values.astype(jnp.bfloat16))},
            put(np.array([1, 2], np.uint32)),
        )
        copies = EmergencyCheckpoints(folder)
        copies.save(state, 7, {"step": 7})
        copies.wait()
        wait_for_all("saved")
        if jax.process_index() == 0:
            next(folder.glob("*.process-0-of-2.safetensors")).unlink()
        wait_for_all("lost")
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
        )
        assert copies.newest(mesh) == 7
        restored, meta = copies.restore(7, abstract)
        assert meta == {"step": 7}
        for mine, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            ours, theirs = (np.asarray(one.addressable_data(0)).tobytes() for one in (mine, saved))
            assert ours == theirs, (ours, theirs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
