"""One run of a study trained as ``lclm train`` trains it: with checkpoints, on any mesh and any number of processes."""

from contextlib import nullcontext

import jax
import numpy as np

from lclm_jax.ablate.train_vmapped_seeds import Trained
from lclm_jax.config import Config, RunPaths
from lclm_jax.interop.init_from_hf import imported_params
from lclm_jax.ops.run_folder import own_run
from lclm_jax.parallel import make_mesh
from lclm_jax.train.core.stages import load_params, train
from lclm_jax.train.logging.records import NAME, read_metrics, working_seconds


def train_alone(config: Config) -> Trained:
    """Train the run ``config``, or what is left of it after an interruption, and read its records back.

    Raises:
        Interrupted: the process was asked to stop; the state was saved and the same call goes on.
    """
    with own_run(config) if jax.process_index() == 0 else nullcontext():
        train(config, read_imports=imported_params)
    folders = [RunPaths(config).stage(name) for name in config.stages]
    records = [record for folder in folders for record in read_metrics(folder / NAME)]
    losses = [np.nan if record["loss_nats"] is None else record["loss_nats"] for record in records]
    return Trained(
        params=[load_params(config, mesh=make_mesh(config.mesh))],
        steps=list(range(len(records))),
        losses=np.array([losses], np.float64),
        raw_tokens=float(sum(record["raw_tokens"] for record in records)),
        step_seconds=float(sum(working_seconds(record) for record in records)),
        compile_seconds=float(sum(record.get("compile_seconds", 0.0) for record in records)),
    )
