"""``lclm train`` with faults: ``python -m lclm_jax.drills.faulty_train CONFIG [STEP ...]``.

The gradients of the given steps are made NaN inside of the compiled step. Nothing else differs from ``lclm train``.
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lclm_jax.config import Config, load_config
from lclm_jax.ops.run_folder import own_run
from lclm_jax.parallel import join_processes
from lclm_jax.train.core.optimizer import Optimizer
from lclm_jax.train.core.stage_run import MakeStep, StepFunction
from lclm_jax.train.core.stages import train
from lclm_jax.train.core.step import make_train_step
from lclm_jax.types import PyTree


@dataclass(frozen=True)
class FaultyOptimizer(Optimizer):
    """An optimizer that is given NaN gradients at ``steps`` (indices of updates, from 0)."""

    steps: tuple[int, ...] = ()

    def update(
        self,
        grads: PyTree,
        state: PyTree,
        params: PyTree,
        step: jax.Array,
        apply: jax.Array,
        key: jax.Array | None = None,
    ) -> tuple[PyTree, PyTree, PyTree]:
        """As ``Optimizer.update``."""
        factor = jnp.where(jnp.isin(step, jnp.array(self.steps)), jnp.nan, 1.0)
        return super().update(jax.tree.map(lambda leaf: leaf * factor, grads), state, params, step, apply, key)


def nan_gradients_at(steps: Sequence[int]) -> MakeStep:
    """Makes train steps like ``make_train_step``, with NaN gradients at ``steps``."""

    def make_step(config: Config, stage: str, optimizer: Optimizer, mesh: Mesh) -> StepFunction:
        if steps:
            optimizer = FaultyOptimizer(optimizer.settings, optimizer.labels, optimizer.groups, tuple(steps))
        return make_train_step(config, stage, optimizer, mesh)

    return make_step


def main(path: Path, steps: Sequence[int]) -> None:
    """Train the run of the configuration ``path``."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lclm_jax").setLevel(logging.INFO)
    config = load_config(path)
    with ExitStack() as run:
        run.enter_context(join_processes(config.train.processes))
        if jax.process_index() == 0:
            run.enter_context(own_run(config))
        train(config, make_step=nan_gradients_at(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(text) for text in sys.argv[2:]])
