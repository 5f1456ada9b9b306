"""How long does saving block a step? ``python benchmarks/blocked_save.py CONFIG [--hosts 16] [--saves 3]``.

Makes what one host of ``--hosts`` holds of the training state of CONFIG's last stage (every array cut along its first
axis that divides, as fsdp does), saves it with the checkpoints of training, and prints for each save its bytes, how
long the call took, which is what a step waits for, and how long until the checkpoint was written, read back and sealed.
Run it with a folder on the disk that is to be measured as ``--folder``.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import lclm_jax
from lclm_jax.config.train import CheckpointConfig
from lclm_jax.model.lclm import abstract_params
from lclm_jax.train.checkpoints.checkpoint import Checkpoints
from lclm_jax.train.core.optimizer import make_optimizer
from lclm_jax.train.core.state import TrainState
from lclm_jax.types import PyTree


def share(tree: PyTree, hosts: int) -> PyTree:
    """Random arrays in the shapes of ``tree``, each cut ``hosts`` times along the first axis that divides."""
    numbers = np.random.default_rng(0)

    def cut(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        shape = list(leaf.shape)
        # The axis of layers stays whole: fsdp cuts the width.
        axes = [axis for axis in range(len(shape) > 2, len(shape)) if shape[axis] % hosts == 0]
        if axes:
            shape[axes[0]] //= hosts
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(shape, leaf.dtype)
        # Nothing that a codec could shorten.
        return jnp.asarray(numbers.standard_normal(shape, np.float32), leaf.dtype)

    return jax.tree.map(cut, tree)


def main() -> None:
    """Save and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--hosts", type=int, default=16, help="64 TPU chips are 16 hosts")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    options = parser.parse_args()
    config = lclm_jax.load_config(options.config)
    stage = list(config.stages.values())[-1]
    shapes = abstract_params(config.model)
    optimizer = make_optimizer(config.train.optimizer, stage, shapes)
    opt_state = share(jax.eval_shape(optimizer.init, shapes), options.hosts)
    params = share(shapes, options.hosts)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.zeros(2, jnp.uint32))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        with Checkpoints(folder, CheckpointConfig(keep_last=1)) as checkpoints:
            for step in range(1, options.saves + 1):
                state = jax.block_until_ready(jax.tree.map(lambda leaf: leaf + 1, state))
                started = time.perf_counter()
                checkpoints.save(state, step, {})
                blocked = time.perf_counter() - started
                checkpoints.wait()
                sealed = time.perf_counter() - started
                sys.stdout.write(f"{size / 1e9:.2f} GB: blocked for {blocked:.2f} s, sealed after {sealed:.1f} s\n")
                sys.stdout.flush()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
