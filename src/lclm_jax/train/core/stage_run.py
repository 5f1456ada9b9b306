"""What a stage needs beside its configuration."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh

from lclm_jax.config import Config, RunPaths
from lclm_jax.data.loading.position import BatchLoader, Position
from lclm_jax.errors import LclmError
from lclm_jax.train.core.hooks import Hook
from lclm_jax.train.core.optimizer import Optimizer
from lclm_jax.train.core.state import TrainState
from lclm_jax.train.logging.progress import Reporter
from lclm_jax.types import Params, PyTree

Probe = Callable[[Params], dict[str, float]]
"""Sharded parameters, which it only reads -> measurements by name."""

StepFunction = Callable[..., tuple[TrainState, dict[str, PyTree]]]
"""``train_step(state, batch) -> (state, metrics)``; with ``teacher``, its decoder, where the stage has a copied one."""

MakeStep = Callable[[Config, str, Optimizer, Mesh], StepFunction]
"""(config, stage, optimizer, mesh) -> the train step of the stage: ``step.make_train_step``, or a wrapper of it."""


class TrainingDiverged(LclmError):
    """Too many updates in a row were not finite, or there were too many loss spikes."""


@dataclass(frozen=True)
class StageRun:
    """What a stage needs beside its configuration.

    Attributes:
        config: the run, with ``model.memory_token_ids`` set.
        stage: name of the stage.
        mesh: devices.
        open_loader: where to begin -> the loader of the rest of the stage.
        initial_params: makes the sharded parameters that the stage begins with.
        make_step: makes the train step.
        reporter: is told of every step.
        teacher: makes the sharded decoder that teaches a stage whose steps take one (``teacher_copied``).
        probe: measures parameters during training; it only reads them.
        hooks: called after the steps that they ask for.
        force: resume from a checkpoint that was made with other settings or data.
    """

    config: Config
    stage: str
    mesh: Mesh
    open_loader: Callable[[Position], BatchLoader]
    initial_params: Callable[[], Params]
    make_step: MakeStep
    reporter: Reporter
    teacher: Callable[[], Params] | None = None
    probe: Probe | None = None
    hooks: Sequence[Hook] = ()
    force: bool = False

    @property
    def folder(self) -> Path:
        """Everything that the stage writes."""
        return RunPaths(self.config).stage(self.stage)

    @property
    def local_folder(self) -> Path:
        """``folder``, or for a run in a bucket its place on this machine for what a bucket cannot hold."""
        return RunPaths(self.config).local_stage(self.stage)
