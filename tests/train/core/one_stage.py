"""Trains the stage ``only`` of a configuration file on hand-made batches; a process that a test can kill.

Usage: ``python one_stage.py CONFIG.json [KILL_BEFORE_STEP]``.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from tests.train.core import programs

from lclm_jax.config import MeshConfig, parse_config
from lclm_jax.config.train import parse_skip_range
from lclm_jax.data.loading.position import batch_stats
from lclm_jax.parallel import make_mesh
from lclm_jax.train.core.loop import run_stage
from lclm_jax.train.core.stage_run import StageRun
from lclm_jax.train.logging.progress import SilentReporter

spec = importlib.util.spec_from_file_location("train_conftest", Path(__file__).parents[1] / "conftest.py")
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)


class HandMadeLoader:
    """Batch number k is ``hand_made_batch(seed=k)``."""

    def __init__(self, config, rows_consumed, digest="d" * 64, change=None):
        self.config, self.rows, self.change = config, rows_consumed, change
        self.digest = digest

    def close(self):
        pass

    def describe(self, row):
        return [{"source": "cpt", "record": row}]

    def __next__(self):
        rows = self.config.stages["only"].batch_rows
        number = self.rows // rows
        batch = conftest.hand_made_batch(self.config, rows, seed=number)
        if self.change is not None:
            batch = self.change(number, batch)
        self.rows += rows
        return batch, batch_stats(batch)

    def state(self, rows):
        return {"rows_consumed": rows, "index_digest": self.digest, "cursor": [0, 0, [0]]}


def run_only(
    config, reporter=None, probe=None, force=False, hooks=(), make_step=programs.train_step, teacher=None, **loader
):
    """Train the stage ``only`` on one device."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    run_stage(
        StageRun(
            config=config,
            stage="only",
            mesh=mesh,
            open_loader=lambda start: HandMadeLoader(config, start.rows, **loader),
            initial_params=lambda: programs.initial_params(config.model, config.seed, mesh),
            make_step=make_step,
            reporter=reporter or SilentReporter(),
            teacher=teacher,
            probe=probe,
            hooks=hooks,
            force=force,
        )
    )


def quick_step(losses=None, nonfinite=()):
    """Makes train steps that only count, without a model to compile; ``losses``: of some updates, others are near 1."""

    def make_step(config, stage, optimizer, mesh):
        skips = [parse_skip_range(text) for text in config.stages[stage].skip_steps]
        finite_rows = jax.device_put(np.ones(config.stages[stage].batch_rows, bool))

        def step(state, batch):
            number = int(jax.device_get(state.step))
            values = {
                "loss_nats": (losses or {}).get(number, 1 + 0.01 * number),
                "nonfinite": number in nonfinite,
                "skipped": any(first <= number <= last for first, last in skips),
            }
            metrics = {name: jax.device_put(np.float32(value)) for name, value in values.items()}
            after = jax.device_put(np.int32(number + 1), state.step.sharding)
            return state._replace(step=after), {**metrics, "finite_rows": finite_rows}

        return step

    return make_step


def main(path, kill_before=None):
    def change(number, batch):
        if kill_before is not None and number == int(kill_before):
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    run_only(parse_config(json.loads(Path(path).read_text())), change=change)


if __name__ == "__main__":
    main(*sys.argv[1:])
